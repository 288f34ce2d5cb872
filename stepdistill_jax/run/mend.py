"""Damaged side files of a run, as a full disk or a crash of the machine leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from absl import logging
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.checkpoint import manager, restore
from stepdistill_jax.run import load
from stepdistill_jax.run.costs import Cost
from stepdistill_jax.run.results import is_result
from stepdistill_jax.spec import (
    CONFIG_FILE,
    COSTS_FILE,
    GOODPUT_FILE,
    METRICS_FILE,
    RESULTS_FILE,
)

_IDENTITY = "identity/metadata"
# File -> what its lines are.
_LINES: dict[str, Callable[[dict[str, Any]], bool]] = {
    METRICS_FILE: lambda row: isinstance(row.get("step"), int),
    COSTS_FILE: lambda row: row.keys() == Cost.__dataclass_fields__.keys(),
    RESULTS_FILE: is_result,
}


def mend(model_dir: epath.PathLike) -> None:
    """Sets damaged files of a run aside before it continues, and says so in one line each.

    They are accounts, which the run continues with what can still be read. ``config.gin`` comes
    from the latest checkpoint, which holds a copy. Only the process that owns the folder may call
    it.
    """
    folder = epath.Path(model_dir)
    _mend_config(folder)
    path = folder / GOODPUT_FILE
    if path.exists() and _object(path.read_bytes()).get("seconds") is None:
        _set_aside(path, "begun anew")
    for name, is_valid in _LINES.items():
        if (folder / name).exists():
            _mend_lines(folder / name, is_valid)


def _mend_config(folder: epath.Path) -> None:
    path = folder / CONFIG_FILE
    steps = restore.available_steps(folder)
    if not steps or (path.exists() and not load.is_damaged(path)):
        return  # Without a checkpoint, the run begins anew.
    copy = manager.checkpoints_folder(folder) / str(steps[-1]) / _IDENTITY
    text = _object(copy.read_bytes()).get("config") if copy.exists() else None
    if not isinstance(text, str):
        return  # Reading config.gin says what is wrong.
    if path.exists():
        _set_aside(path, f"written again from the checkpoint of step {steps[-1]}")
    else:
        logging.warning("%s was missing: written again from step %d", path, steps[-1])
    records.write_atomic(path, text)


def _mend_lines(path: epath.Path, is_valid: Callable[[dict[str, Any]], bool]) -> None:
    # A kill leaves a torn last line: no damage.
    lines = path.read_bytes().split(b"\n")[:-1]
    kept = [line for line in lines if is_valid(_object(line))]
    if lost := len(lines) - len(kept):
        _set_aside(path, f"continued without {lost} of {len(lines)} lines")
        records.write_atomic(path, b"".join(line + b"\n" for line in kept))


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; {} for any other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _set_aside(path: epath.Path, what: str) -> None:
    number = 1
    while (aside := path.parent / f"{path.name}.damaged{number}").exists():
        number += 1
    path.rename(aside)
    logging.warning("%s is damaged: kept as %s, and %s", path, aside.name, what)
