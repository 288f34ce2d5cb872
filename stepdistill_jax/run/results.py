"""``results.jsonl``: one whole line per evaluated step and split of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator

from etils import epath

from stepdistill_jax import records, storage
from stepdistill_jax.spec import RESULTS_FILE, InputError

_LOCK_FILE = ".results.lock"

# Values of `Result.selected_on`.
VALIDATION = "validation"
NOT_SELECTED = "none"


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """The settings of a run that every line of its results repeats.

    Attributes:
        dataset: `data.config.DataConfig.name`.
        labels: ``gold`` or ``teacher``.
        rationales: ``none`` if the method reads none.
        model: name of the model's gin file, or its sizes; ``teacher`` if the teacher is scored.
        data_seed: DATA_SEED.
        train_split: the split trained on.
        triage: the rationale filters and their weight, as ``wrong+states_label:0.5``; "" = none.
        augment: added inputs; "" = none.
        initial: the checkpoint that training started from; "" = random parameters.
        parameters: parameters of the model; None = unknown.
    """

    dataset: str
    method: str
    labels: str
    rationales: str
    fraction: float
    seed: int
    model: str
    data_seed: int = dataclasses.field(default=0, kw_only=True)
    train_split: str = dataclasses.field(default="train", kw_only=True)
    triage: str = dataclasses.field(default="", kw_only=True)
    augment: str = dataclasses.field(default="", kw_only=True)
    initial: str = dataclasses.field(default="", kw_only=True)
    parameters: int | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Result(RunFacts):
    """One line of ``results.jsonl``.

    Attributes:
        n: examples scored.
        accuracy: in [0, 1].
        stderr: binomial standard error over the examples.
        selected_on: ``validation`` if the step was chosen as the best on it, else ``none``.
        train_pairs: pairs in the training data; None if nothing is trained.
        train_flops: model FLOPs of the steps up to this one, forward and backward.
        device_seconds: devices times seconds of those steps, with the first compilation.
        serving_flops: model FLOPs of one prediction, mean over the split.
        The last three are None if unknown.
    """

    step: int
    split: str
    n: int
    accuracy: float
    stderr: float
    selected_on: str
    train_pairs: int | None = dataclasses.field(default=None, kw_only=True)
    train_flops: float | None = dataclasses.field(default=None, kw_only=True)
    device_seconds: float | None = dataclasses.field(default=None, kw_only=True)
    serving_flops: float | None = dataclasses.field(default=None, kw_only=True)


RESULT_FIELDS = tuple(field.name for field in dataclasses.fields(Result))
_REQUIRED = {
    field.name for field in dataclasses.fields(Result) if field.default is dataclasses.MISSING
}


def read_results(model_dir: epath.PathLike) -> list[Result]:
    """The results of a run so far, in order of evaluation.

    Raises:
        InputError: a line is damaged or has other fields (naming the line).
    """
    path = epath.Path(model_dir) / RESULTS_FILE
    if not path.exists():
        return []
    results = []
    for where, row in records.read_jsonl(path):
        # Lines of earlier versions take the defaults of newer fields.
        if not _REQUIRED <= set(row) <= set(RESULT_FIELDS):
            raise InputError(
                f"{where}: fields {sorted(row)}, expected {sorted(RESULT_FIELDS)}. Remove the line."
            )
        results.append(Result(**row))
    return results


def find_result(model_dir: epath.PathLike, step: int, split: str) -> Result | None:
    """The result of one step and split, or None."""
    for result in read_results(model_dir):
        if (result.step, result.split) == (step, split):
            return result
    return None


def append_result(model_dir: epath.PathLike, result: Result) -> bool:
    """Adds a line, unless the step and split have one.

    The whole file is rewritten and renamed, so a crash leaves the old one. Writers on one machine
    or one POSIX file system wait for each other. Object stores have no locks: do not score a run
    there with two programs at once.

    Returns:
        Whether the line was added.
    """
    folder = epath.Path(model_dir)
    with _locked(folder):
        results = read_results(folder)
        if any((old.step, old.split) == (result.step, result.split) for old in results):
            return False
        _write(folder, [*results, result], result)
    return True


def mark_selected(model_dir: epath.PathLike, result: Result) -> Result:
    """Marks a step that was scored before as the best on validation.

    Args:
        model_dir: MODEL_DIR.
        result: as `find_result` returned it.

    Returns:
        The updated result.
    """
    folder = epath.Path(model_dir)
    selected = dataclasses.replace(result, selected_on=VALIDATION)
    with _locked(folder):
        results = read_results(folder)
        _write(folder, [selected if old == result else old for old in results], selected)
    return selected


def _write(folder: epath.Path, results: list[Result], new: Result) -> None:
    """Writes all lines. A split has one selected step: a new one replaces the old."""
    rows = []
    for result in results:
        row = dataclasses.asdict(result)
        if new.selected_on == VALIDATION and result.split == new.split and result.step != new.step:
            row["selected_on"] = NOT_SELECTED
        rows.append({name: row[name] for name in RESULT_FIELDS})
    records.write_jsonl(folder / RESULTS_FILE, rows)


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """Holds the folder's lock; the death of its holder releases it."""
    if storage.is_remote(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.fspath(folder / _LOCK_FILE), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
