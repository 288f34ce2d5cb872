"""A run's claim on MODEL_DIR: its settings are those of the run in the folder; and its finish."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import time
import uuid
from collections.abc import Iterator

from absl import logging
from etils import epath

from stepdistill_jax import records, storage
from stepdistill_jax.checkpoint import restore
from stepdistill_jax.parallel import processes
from stepdistill_jax.run import load
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.results import Result, read_results
from stepdistill_jax.spec import CONFIG_FILE, FINISHED_FILE, InputError

TRAIN_LOCK_FILE = ".train.lock"
# Each host may have its own copy of the data.
_HOST_MACROS = frozenset({"DATA_DIR", "CACHE_DIR"})
_LOOK_SECONDS = 0.2
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
# Settings that one error names.
_NAMED = 5


def reach(config: RunConfig) -> None:
    """Checks that the stores of a run's folders are usable.

    Raises:
        InputError: one is not, with the reason.
    """
    storage.check("MODEL_DIR", config.model_dir, write=True)
    storage.check("CACHE_DIR", config.tokens.root(), write=True)
    storage.check("INITIAL_CHECKPOINT", config.initial_checkpoint or "")


@contextlib.contextmanager
def locked(config: RunConfig) -> Iterator[None]:
    """Keeps a second program from training in MODEL_DIR, until this one ends, however it ends.

    Of several processes the lead does it for all. Object stores and some network disks have no
    locks: do not start two programs there.

    Raises:
        InputError: another program trains in it.
    """
    descriptors: list[int] = []
    processes.from_lead(lambda: descriptors.extend(_lock(config)))
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _lock(config: RunConfig) -> list[int]:
    """The descriptor of the lock; [] where there can be none."""
    if storage.is_remote(config.model_dir):
        return []
    path = pathlib.Path(config.model_dir).expanduser() / TRAIN_LOCK_FILE
    with writable(config):
        try:
            descriptor = records.lock(path)
            if descriptor is None:
                # A sweep that looks whether a run is locked holds the lock for a moment.
                time.sleep(_LOOK_SECONDS)
                descriptor = records.lock(path)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logging.warning("%s has no locks: start no second program there", path.parent)
            return []
    if descriptor is None:
        raise InputError(
            f"MODEL_DIR={config.model_dir!r} is in use by {path.read_text()}. Wait for it, stop "
            "it, or choose another MODEL_DIR."
        )
    return [descriptor]


def claim(config: RunConfig) -> str:
    """Checks that MODEL_DIR holds no other run, and writes ``config.gin``; returns its text.

    Of several processes the lead does it for all.

    Raises:
        InputError: MODEL_DIR holds a run with other settings, or cannot be written; or see
            `check_processes`.
    """
    text = processes.from_lead(lambda: _claim(config))
    check_processes(config)
    return text


def check_processes(config: RunConfig) -> None:
    """Checks that all processes have the same settings and share MODEL_DIR.

    Raises:
        InputError: this process has other settings than the lead, or MODEL_DIR is not shared or
            cannot be written (all processes raise this).
    """
    if processes.count() == 1:
        return
    here = {name: repr(value) for name, value in load.values(config).items()}
    lead = processes.from_lead(lambda: here)
    different = [
        f"{name}={here[name]} (process 0: {value})"
        for name, value in lead.items()
        if here[name] != value and name not in _HOST_MACROS
    ]
    if different:
        raise InputError(
            f"process {processes.index()} was started with {', '.join(different)}. Start the same "
            "command in all processes."
        )
    # A new name each time: a fixed one could be a host's own copy of the lead's file.
    path = epath.Path(config.model_dir) / processes.from_lead(lambda: _write_marker(config))
    visible = processes.gather(f"claim/{path.name}", path.exists())
    if processes.is_lead():
        path.unlink()
    blind = [str(process) for process, is_visible in enumerate(visible) if not is_visible]
    if blind:
        raise InputError(
            f"MODEL_DIR={config.model_dir!r} is not shared: process {', '.join(blind)} cannot see "
            "the files of process 0. Choose a MODEL_DIR that all hosts share (gs://, NFS)."
        )


def _write_marker(config: RunConfig) -> str:
    path = epath.Path(config.model_dir) / f".shared-{uuid.uuid4().hex}"
    with writable(config):
        records.write_atomic(path, "")
    return path.name


def _claim(config: RunConfig) -> str:
    refuse_other_run(config)
    text = load.dump(config)
    with writable(config):
        records.write_atomic(epath.Path(config.model_dir) / CONFIG_FILE, text)
    return text


@contextlib.contextmanager
def writable(config: RunConfig) -> Iterator[None]:
    """Turns the errors of a full, missing or forbidden MODEL_DIR into one `InputError`."""
    try:
        yield
    except OSError as error:
        storage.raise_failure(error)
        raise InputError(
            f"MODEL_DIR={config.model_dir!r} cannot be written: {error.strerror or error}. Choose "
            "another MODEL_DIR, free disk space, or grant write permission."
        ) from error


def refuse_other_run(config: RunConfig) -> None:
    """Checks that a run in MODEL_DIR has the settings of this one (all but FREE_MACROS).

    A run that stopped before its first checkpoint or result is overwritten.

    Raises:
        InputError: it has other settings.
    """
    path = epath.Path(config.model_dir) / CONFIG_FILE
    begun = restore.available_steps(config.model_dir) or read_results(config.model_dir)
    changed = {}
    if path.exists() and begun:
        changed = load.difference(load.read(config.model_dir), config)
    if not changed:
        return
    remedy = "or repeat the settings of its config.gin to continue it."
    before, now = changed.get("TRAIN_STEPS", (0, 0))
    if now > before and (epath.Path(config.model_dir) / FINISHED_FILE).exists():
        remedy = (
            f"with INITIAL_CHECKPOINT={config.model_dir!r} to start from its best step; the "
            "schedule of a finished run cannot be lengthened."
        )
    named = [f"{n}={old!r} (now {new!r})" for n, (old, new) in changed.items()]
    listed = ", ".join(named[:_NAMED])
    if len(named) > _NAMED:
        listed += f" and {len(named) - _NAMED} other settings"
    raise InputError(
        f"{config.model_dir} holds a run with {listed}. Choose another MODEL_DIR, {remedy}"
    )


def mark_finished(config: RunConfig, steps: int, best: int, scored: list[Result]) -> None:
    """Writes that a run of `steps` steps is complete, with its best step and its scores."""
    if not processes.is_lead():
        return
    accuracy = {result.split: result.accuracy for result in scored}
    text = json.dumps({"step": steps, "best_step": best, "accuracy": accuracy}, indent=1) + "\n"
    records.write_atomic(epath.Path(config.model_dir) / FINISHED_FILE, text)
