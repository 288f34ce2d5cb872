"""The status of a run of a sweep, read from its folder alone, and its lock."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import pathlib
from typing import Any

from stepdistill_jax import records
from stepdistill_jax.checkpoint import restore
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.folder import TRAIN_LOCK_FILE
from stepdistill_jax.spec import FINISHED_FILE, METRICS_FILE, RESULTS_FILE, InputError
from stepdistill_jax.sweep.matrix import PlannedRun

# In a run's folder: the planned configuration, the process's output, and how it ended.
PLANNED_FILE = "planned.gin"
LOG_FILE = "train.log"
ATTEMPT_FILE = "attempt.json"
_LOCK_FILE = ".sweep.lock"
# Enough for the last lines of a JSON-lines file.
_TAIL_BYTES = 8192


class State(enum.StrEnum):
    """The state of a run, as sweep.json and the tables name it."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    STARTED = "half-trained"
    WAITING = "waiting"
    CHANGED = "changed"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """The latest process of a run that has ended.

    Attributes:
        exit_code: negative if a signal ended the process.
        error: why it failed; "" if it did not.
        seconds: duration of the process.
        from_step: step it resumed from; 0 if it started the run.
    """

    exit_code: int
    error: str
    seconds: float
    from_step: int


@dataclasses.dataclass(frozen=True)
class TrainingProgress:
    """How far a run has trained.

    Attributes:
        step: of the last line of metrics.
        pairs_per_second: at that step; None before the first line.
        validation: label accuracy at the latest evaluation; None before the first.
    """

    step: int = 0
    pairs_per_second: float | None = None
    validation: float | None = None


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """What a run's folder says about the run.

    Attributes:
        saved: step of the latest checkpoint; 0 without one.
        attempt: None if no process has ended, or the sweep was killed together with it.
        accuracy: (split, label accuracy) of a run that is done.
        validation: label accuracy on validation at its best step.
        reason: of FAILED the error, of CHANGED the differing settings, else "".
    """

    state: State
    saved: int = 0
    attempt: Attempt | None = None
    accuracy: tuple[tuple[str, float], ...] = ()
    validation: float | None = None
    reason: str = ""


def read_status(run: PlannedRun, *, locked_here: bool = False) -> RunStatus:
    """Reads a run's folder and writes nothing; `locked_here`: this process holds its lock."""
    folder = pathlib.Path(run.config.model_dir)
    if not folder.exists():
        return RunStatus(State.WAITING)
    saved = max(restore.available_steps(folder), default=0)
    attempt = read_attempt(folder)
    finished = _read_json(folder / FINISHED_FILE)
    started = saved or finished or (folder / RESULTS_FILE).exists()
    changed = _changed_settings(folder, run.config) if started else ""
    if changed:
        return RunStatus(State.CHANGED, saved, attempt, reason=changed)
    if not locked_here and _is_locked(folder):
        return RunStatus(State.RUNNING, saved, attempt)
    accuracy = dict(finished.get("accuracy", {}))
    # A split added to EVAL_SPLITS since is not scored yet.
    if finished and set(run.config.eval.splits) <= accuracy.keys():
        at_best = [
            row.get("accuracy")
            for row in _last_rows(folder / RESULTS_FILE)
            if row.get("split") == "validation" and row.get("step") == finished.get("best_step")
        ]
        # Later lines of the step were scored in another way.
        validation = at_best[0] if at_best else None
        return RunStatus(State.DONE, saved, attempt, tuple(accuracy.items()), validation)
    if attempt is not None and attempt.error:
        return RunStatus(State.FAILED, saved, attempt, reason=attempt.error)
    return RunStatus(State.STARTED if started else State.WAITING, saved, attempt)


def _changed_settings(folder: pathlib.Path, planned: RunConfig) -> str:
    """Settings that prevent the run in a folder from continuing as planned; "" if none do."""
    try:
        existing = configs.read(folder)
    except InputError as error:
        return str(error)
    differences = configs.difference(existing, planned)
    return ", ".join(f"{n}={old!r} (now {new!r})" for n, (old, new) in differences.items())


def read_attempt(folder: pathlib.Path) -> Attempt | None:
    """How the latest process ended; None if none has."""
    row = _read_json(folder / ATTEMPT_FILE)
    names = {field.name for field in dataclasses.fields(Attempt)}
    return Attempt(**row) if row.keys() == names else None


def write_attempt(folder: pathlib.Path, attempt: Attempt) -> None:
    """Records how a process ended."""
    text = json.dumps(dataclasses.asdict(attempt), ensure_ascii=False, indent=1) + "\n"
    records.write_atomic(folder / ATTEMPT_FILE, text)


def read_progress(folder: pathlib.Path) -> TrainingProgress:
    """How far a run has trained, which may be writing at this moment."""
    metrics = _last_rows(folder / METRICS_FILE)
    scored = [row for row in _last_rows(folder / RESULTS_FILE) if row.get("split") == "validation"]
    latest = max(scored, key=lambda row: row.get("step", 0), default={})
    last = metrics[-1] if metrics else {}
    return TrainingProgress(
        int(last.get("step", 0)), last.get("pairs_per_second"), latest.get("accuracy")
    )


def _last_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The complete lines at the end of a JSON-lines file that may be growing.

    Damaged lines are left out: the display must not stop the sweep, and the run reports them.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    # The first line may lack its start, the last its end.
    return [row for line in lines[size > _TAIL_BYTES : -1] if (row := _json_object(line))]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return _json_object(path.read_bytes()) if path.is_file() else {}


def _json_object(text: bytes) -> dict[str, Any]:
    """A JSON object; {} for any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def lock(folder: pathlib.Path) -> int | None:
    """`records.lock` of a run of a sweep."""
    return records.lock(folder / _LOCK_FILE)


def _is_locked(folder: pathlib.Path) -> bool:
    """Whether a sweep or `launch.train` works on the run."""
    for name in (_LOCK_FILE, TRAIN_LOCK_FILE):
        if (folder / name).exists():
            descriptor = records.lock(folder / name)
            if descriptor is None:
                return True
            os.close(descriptor)
    return False
