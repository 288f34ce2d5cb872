"""How far a run of a sweep is, read from its folder alone; and who may work on it."""

from __future__ import annotations

import dataclasses
import enum
import fcntl
import json
import os
import pathlib
from typing import Any

from stepdistill_jax import records
from stepdistill_jax.checkpoint import restore
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import FINISHED_FILE, METRICS_FILE, RESULTS_FILE, InputError
from stepdistill_jax.sweep.matrix import PlannedRun

# In a run's folder: what the sweep asked for, what came of the latest attempt, who is at it.
PLANNED_FILE = "planned.gin"
LOG_FILE = "train.log"
ATTEMPT_FILE = "attempt.json"
_LOCK_FILE = ".sweep.lock"
# Holds the last lines of a file of metrics.
_TAIL_BYTES = 8192


class State(enum.StrEnum):
    """What is to be done with a run."""

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
        exit_code: of the process; negative where a signal ended it.
        error: its last line on stderr, where it failed.
        seconds: that it took.
        from_step: optimizer steps done before it; 0 where it began the run.
    """

    exit_code: int
    error: str
    seconds: float
    from_step: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is in its training.

    Attributes:
        step: of the last line of metrics.
        pairs_per_second: at that step; None before the first line.
        validation: label accuracy at the latest evaluation; None before the first.
    """

    step: int = 0
    pairs_per_second: float | None = None
    validation: float | None = None


@dataclasses.dataclass(frozen=True)
class Look:
    """What a run's folder says.

    Attributes:
        state: what is to be done.
        saved: step of the latest checkpoint; 0 where there is none.
        attempt: the latest that ended; None where none did, or the sweep was killed with it.
        accuracy: split -> label accuracy, of a run that is done.
        reason: of FAILED the error, of CHANGED what differs, else "".
    """

    state: State
    saved: int = 0
    attempt: Attempt | None = None
    accuracy: tuple[tuple[str, float], ...] = ()
    reason: str = ""


def look(run: PlannedRun, *, held: bool = False) -> Look:
    """Reads a run's folder; writes nothing.

    Args:
        run: of the matrix.
        held: this process has the run's lock.
    """
    folder = pathlib.Path(run.config.model_dir)
    if not folder.exists():
        return Look(State.WAITING)
    saved = max(restore.available_steps(folder), default=0)
    attempt = read_attempt(folder)
    finished = _read_json(folder / FINISHED_FILE)
    begun = saved or finished or (folder / RESULTS_FILE).exists()
    changed = _changed(folder, run.config) if begun else ""
    if changed:
        return Look(State.CHANGED, saved, attempt, reason=changed)
    if not held and is_locked(folder):
        return Look(State.RUNNING, saved, attempt)
    accuracy = dict(finished.get("accuracy", {}))
    # A split that EVAL_SPLITS was given since is still to be scored.
    if finished and set(run.config.eval.splits) <= accuracy.keys():
        return Look(State.DONE, saved, attempt, tuple(accuracy.items()))
    if attempt is not None and attempt.error:
        return Look(State.FAILED, saved, attempt, reason=attempt.error)
    return Look(State.STARTED if begun else State.WAITING, saved, attempt)


def _changed(folder: pathlib.Path, planned: RunConfig) -> str:
    """What forbids to continue the run in a folder as the planned one; "" = nothing."""
    try:
        found = configs.read(folder)
    except InputError as error:
        return str(error)
    differences = configs.difference(found, planned)
    return ", ".join(f"{n}={old!r} (now {new!r})" for n, (old, new) in differences.items())


def read_attempt(folder: pathlib.Path) -> Attempt | None:
    """What came of the latest process that ended; None where none did."""
    found = _read_json(folder / ATTEMPT_FILE)
    names = {field.name for field in dataclasses.fields(Attempt)}
    return Attempt(**found) if found.keys() == names else None


def write_attempt(folder: pathlib.Path, attempt: Attempt) -> None:
    """Notes what came of a process."""
    text = json.dumps(dataclasses.asdict(attempt), ensure_ascii=False, indent=1) + "\n"
    records.write_atomic(folder / ATTEMPT_FILE, text)


def progress(folder: pathlib.Path) -> Progress:
    """How far a run that may be writing just now is."""
    metrics = _rows(folder / METRICS_FILE)
    scored = [row for row in _rows(folder / RESULTS_FILE) if row.get("split") == "validation"]
    latest = max(scored, key=lambda row: row.get("step", 0), default={})
    last = metrics[-1] if metrics else {}
    return Progress(int(last.get("step", 0)), last.get("pairs_per_second"), latest.get("accuracy"))


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines at the end of a JSON-lines file that may be growing; damaged ones are not.

    What is shown of a run must not end the sweep: what is wrong with the file, the run says.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    # The first may lack its beginning, the last its end.
    return [row for line in lines[size > _TAIL_BYTES : -1] if (row := _json_object(line))]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return _json_object(path.read_bytes()) if path.is_file() else {}


def _json_object(text: bytes) -> dict[str, Any]:
    """A JSON object; {} where the text is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def lock(folder: pathlib.Path) -> int | None:
    """Takes a run for this process and those that inherit the descriptor.

    It is free again when all of them have ended, however they ended. Machines that share the
    folder respect it where the file system knows locks (NFS 4, Lustre, GPFS).

    Returns:
        The open descriptor, to be closed; None where another process has the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(folder: pathlib.Path) -> bool:
    """Whether a process is at the run."""
    if not (folder / _LOCK_FILE).exists():
        return False
    descriptor = lock(folder)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False
