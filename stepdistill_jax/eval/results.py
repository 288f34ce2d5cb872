"""``results.jsonl``: one line an evaluated (step, split) of a run, never half a line, never two."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.spec import InputError

RESULTS_FILE = "results.jsonl"
_LOCK_FILE = ".results.lock"


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What a run is, as every line of its results says.

    Attributes:
        rationales: ``none`` where the method trains on none.
        model: name of the model's gin file, or its sizes.
    """

    dataset: str
    method: str
    labels: str
    rationales: str
    fraction: float
    seed: int
    model: str


@dataclasses.dataclass(frozen=True)
class Result(RunFacts):
    """One line of ``results.jsonl``.

    Attributes:
        n: examples scored.
        accuracy: in [0, 1].
        stderr: binomial standard error over the examples.
        selected_on: ``validation`` where the step was chosen as the best on it, else ``none``.
    """

    step: int
    split: str
    n: int
    accuracy: float
    stderr: float
    selected_on: str


RESULT_FIELDS = tuple(field.name for field in dataclasses.fields(Result))


def read_results(model_dir: epath.PathLike) -> list[Result]:
    """The results of a run so far, in the order they were found.

    Raises:
        InputError: a line is damaged or has other fields (naming the line).
    """
    path = epath.Path(model_dir) / RESULTS_FILE
    if not path.exists():
        return []
    results = []
    for where, row in records.read_jsonl(path):
        if set(row) != set(RESULT_FIELDS):
            raise InputError(
                f"{where}: fields {sorted(row)}, expected {sorted(RESULT_FIELDS)}; remove the line"
            )
        results.append(Result(**row))
    return results


def find_result(model_dir: epath.PathLike, step: int, split: str) -> Result | None:
    """The result of one step and split, where there is one."""
    for result in read_results(model_dir):
        if (result.step, result.split) == (step, split):
            return result
    return None


def append_result(model_dir: epath.PathLike, result: Result) -> bool:
    """Adds a line, unless one of the same step and split is there.

    The whole file is written anew and renamed, so that a crash leaves the old one; writers on one
    machine or one POSIX file system wait for each other. Object stores know no locks: there a run
    must not be scored by two programs at once.

    Returns:
        Whether the line was added.
    """
    folder = epath.Path(model_dir)
    with _locked(folder):
        if find_result(folder, result.step, result.split) is not None:
            return False
        rows = [dataclasses.asdict(row) for row in (*read_results(folder), result)]
        records.write_jsonl(
            folder / RESULTS_FILE, [{name: row[name] for name in RESULT_FIELDS} for row in rows]
        )
    return True


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """Holds the folder's lock, which its holder's death releases."""
    if "://" in os.fspath(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.fspath(folder / _LOCK_FILE), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
