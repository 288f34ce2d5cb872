"""``results.jsonl``: one whole line per evaluated step, split and way of scoring of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from stepdistill_jax import records, storage
from stepdistill_jax.spec import (
    EVAL_FOLDER,
    RESULTS_FILE,
    SCORE_FILE,
    TEACHER,
    InputError,
)

_LOCK_FILE = ".results.lock"

# Values of `Result.selected_on`.
VALIDATION = "validation"
NOT_SELECTED = "none"
# Settings that change how predictions are made and scored, and nothing of the training.
SCORING_MACROS = frozenset({"METRIC", "EVAL_MODE", "MAX_DECODE_LENGTH"})
# The default of earlier versions, enough for every label of their data sets: equal to today's.
_EARLIER_MAX_DECODE_LENGTH = 64


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
        settings: `run.load.identity`: what else can change the result; {} for the teacher.
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
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True, hash=False)


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
    field.name
    for field in dataclasses.fields(Result)
    if field.default is dataclasses.MISSING is field.default_factory
}


def is_result(row: Mapping[str, Any]) -> bool:
    """Whether a line has the fields of a result, of this version or of an earlier one."""
    return _REQUIRED <= set(row) <= set(RESULT_FIELDS)


def read_results(
    model_dir: epath.PathLike, of_run: Callable[[], Mapping[str, str]] = dict
) -> list[Result]:
    """The results of a run so far, in order of evaluation.

    Args:
        model_dir: MODEL_DIR.
        of_run: `RunFacts.settings` of the run, for lines of earlier versions, which lack them.

    Raises:
        InputError: a line is damaged or has other fields (naming the line).
    """
    path = epath.Path(model_dir) / RESULTS_FILE
    if not path.exists():
        return []
    results = []
    for where, row in records.read_jsonl(path):
        # Lines of earlier versions take the defaults of newer fields.
        if not is_result(row):
            raise InputError(
                f"{where}: fields {sorted(row)}, expected {sorted(RESULT_FIELDS)}. Remove the line."
            )
        if "settings" not in row and row["method"] != TEACHER:
            folder = path.parent / EVAL_FOLDER / row["split"] / str(row["step"])
            row["settings"] = _settings_of_score(folder, of_run())
        results.append(Result(**row))
    return results


def _settings_of_score(folder: epath.Path, of_run: Mapping[str, str]) -> dict[str, str]:
    """The identity of a result of an earlier version, which wrote how it scored into `folder`."""
    score = _score_file(folder)
    settings = {name: text for name, text in of_run.items() if name not in SCORING_MACROS}
    if score.get("mode", "decode") != "decode":
        settings["EVAL_MODE"] = repr(score["mode"])
    if "METRIC" in of_run:
        settings["METRIC"] = of_run["METRIC"]
    limit = score.get("max_decode_length", _EARLIER_MAX_DECODE_LENGTH)
    if limit != _EARLIER_MAX_DECODE_LENGTH:
        settings["MAX_DECODE_LENGTH"] = repr(limit)
    return settings


def _score_file(folder: epath.Path) -> dict[str, Any]:
    path = folder / SCORE_FILE
    try:
        stored = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:  # Damaged: the split is scored again.
        return {}
    return stored if isinstance(stored, dict) else {}


def score_folder(
    model_dir: epath.PathLike, step: int, split: str, settings: Mapping[str, str]
) -> epath.Path:
    """Where the files of a result lie: ``eval/<split>/<step>``.

    If that was scored in another way first, a folder in it named by the way:
    ``eval/test/250/eval_mode=choices``, or ``default``.
    """
    folder = epath.Path(model_dir) / EVAL_FOLDER / split / str(step)
    first = _score_file(folder)
    if not first:
        return folder
    stored = first.get("settings")
    if stored is None:
        same_metric = settings.get("METRIC", repr(first["metric"])) == repr(first["metric"])
        stored = _settings_of_score(folder, settings if same_metric else {})
    way = scoring_text(settings)
    return folder if way == scoring_text(stored) else folder / way


def scoring_text(settings: Mapping[str, str]) -> str:
    """How a result is scored: ``eval_mode=choices``, or ``default``."""
    way = sorted((name, text) for name, text in settings.items() if name in SCORING_MACROS)
    text = ",".join(f"{name.lower()}={text}" for name, text in way)
    return text.replace("'", "") or "default"


def find_result(
    model_dir: epath.PathLike, step: int, split: str, settings: Mapping[str, str]
) -> Result | None:
    """The result of one step, split and identity, or None."""
    for result in read_results(model_dir, lambda: settings):
        if (result.step, result.split, result.settings) == (step, split, settings):
            return result
    return None


def append_result(model_dir: epath.PathLike, result: Result) -> bool:
    """Adds a line, unless the step, split and settings have one.

    The whole file is rewritten and renamed, so a crash leaves the old one. Writers on one machine
    or one POSIX file system wait for each other. Object stores have no locks: do not score a run
    there with two programs at once.

    Returns:
        Whether the line was added.
    """
    folder = epath.Path(model_dir)
    with _locked(folder):
        results = read_results(folder, lambda: result.settings)
        key = (result.step, result.split, result.settings)
        if any((old.step, old.split, old.settings) == key for old in results):
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
        results = read_results(folder, lambda: result.settings)
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
