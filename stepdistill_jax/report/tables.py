"""Results grouped into cells: one setting, its seeds, their mean."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from stepdistill_jax.report import paper
from stepdistill_jax.report.read import Line, Runs
from stepdistill_jax.report.statistics import mean_error
from stepdistill_jax.run.results import VALIDATION, Result
from stepdistill_jax.spec import METHOD_STREAMS, InputError

TEACHER = "teacher"
BASELINE = "standard"

_Key = TypeVar("_Key")
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True, order=True)
class Task:
    """What is learned: a data set and the split that is trained on."""

    dataset: str
    train_split: str


def paper_order(task: Task) -> tuple[int, Task]:
    """The paper's data sets in its order, then others."""
    known = task.dataset in paper.DATASETS
    return (paper.DATASETS.index(task.dataset) if known else len(paper.DATASETS), task)


@dataclasses.dataclass(frozen=True)
class Student:
    """What learns: the model and where it starts from ("" = random parameters).

    Attributes:
        parameters: None where the results do not say.
    """

    model: str
    initial: str
    parameters: int | None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How it learns; ``method``, ``labels`` and the like as in `results.RunFacts`."""

    method: str
    labels: str
    rationales: str
    triage: str
    augment: str

    @property
    def order(self) -> tuple[int, str, bool, str, str, str]:
        """Methods in the order of the paper, the teacher's rationales before others."""
        known = [*METHOD_STREAMS]
        method = known.index(self.method) if self.method in known else len(known)
        # The control last.
        rationales = {"none": "0", "teacher": "1", "shuffled": "~"}.get(
            self.rationales, f"2{self.rationales}"
        )
        return (
            method,
            self.labels,
            bool(self.triage or self.augment),
            rationales,
            self.triage,
            self.augment,
        )

    @property
    def is_baseline(self) -> bool:
        """Whether others on the same data are compared with it."""
        return self.method == BASELINE and not self.triage


@dataclasses.dataclass(frozen=True)
class Setting:
    """What two runs must share to be seeds of each other."""

    task: Task
    student: Student
    recipe: Recipe
    fraction: float

    @property
    def order(self) -> tuple[object, ...]:
        """For sorting: the same in every report."""
        size = self.student.parameters or 0
        return (
            paper_order(self.task),
            size,
            self.student.model,
            self.student.initial,
            self.recipe.order,
            self.fraction,
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """The runs of one setting, one a seed.

    Attributes:
        lines: ordered by (seed, data_seed).
    """

    setting: Setting
    lines: tuple[Line, ...]

    @property
    def seeds(self) -> dict[tuple[int, int], Line]:
        """(seed, data_seed) -> its result."""
        return {(line.result.seed, line.result.data_seed): line for line in self.lines}

    @property
    def mean(self) -> float:
        """Accuracy in [0, 1], over seeds."""
        return mean_error([line.result.accuracy for line in self.lines])[0]

    @property
    def error(self) -> float | None:
        """Its standard error over seeds; None of one seed."""
        return mean_error([line.result.accuracy for line in self.lines])[1]

    def cost(self, field: str) -> float | None:
        """Mean of a cost over seeds; None unless all of them know it."""
        values = [getattr(line.result, field) for line in self.lines]
        return None if None in values else mean_error(values)[0]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Everything that a report is made of.

    Attributes:
        runs: as found.
        splits: data set -> the split that its numbers are of.
        cells: the numbers selected on validation, and the teacher's own; in order.
        best_on_test: the paper's protocol, of runs with several steps scored on test; in order.
        unselected: runs without a number for `cells`.
    """

    runs: Runs
    splits: Mapping[str, str]
    cells: Mapping[Setting, Cell]
    best_on_test: Mapping[Setting, Cell]
    unselected: tuple[str, ...]

    @property
    def students(self) -> list[Cell]:
        """Cells of trained models, in order."""
        return [c for c in self.cells.values() if c.setting.recipe.method != TEACHER]

    @property
    def datasets(self) -> list[str]:
        """In order."""
        return [*dict.fromkeys(setting.task.dataset for setting in self.cells)]

    def teacher(self, dataset: str) -> Cell | None:
        """The teacher's own score, whatever split students train on."""
        for cell in self.cells.values():
            if cell.setting.recipe.method == TEACHER and cell.setting.task.dataset == dataset:
                return cell
        return None

    def baseline(self, setting: Setting, fraction: float | None = None) -> Cell | None:
        """Standard finetuning on the data and labels of `setting`, and the same added inputs.

        Args:
            setting: of another method.
            fraction: of the data; None = as `setting`.
        """
        recipe = Recipe(BASELINE, setting.recipe.labels, "none", "", setting.recipe.augment)
        wanted = setting.fraction if fraction is None else fraction
        return self.cells.get(Setting(setting.task, setting.student, recipe, wanted))


def collect(runs: Runs) -> Scores:
    """Groups what was found.

    A data set's numbers are of test where any of its runs was scored there, else of validation.

    Raises:
        InputError: two runs claim the same setting and seed.
    """
    splits: dict[str, str] = {}
    for line in runs.lines:
        if _is_selected(line.result):
            known = splits.get(line.result.dataset)
            splits[line.result.dataset] = (
                "test" if "test" in (known, line.result.split) else (known or line.result.split)
            )
    selected = [
        line
        for line in runs.lines
        if _is_selected(line.result) and line.result.split == splits[line.result.dataset]
    ]
    with_number = {line.run for line in selected}
    return Scores(
        runs=runs,
        splits=splits,
        cells=_cells(selected),
        best_on_test=_cells(_best_on_test(runs)),
        unselected=tuple(name for name in runs.names if name not in with_number),
    )


def _is_selected(result: Result) -> bool:
    return result.selected_on == VALIDATION or result.method == TEACHER


def _best_on_test(runs: Runs) -> Iterable[Line]:
    scored: dict[str, list[Line]] = collections.defaultdict(list)
    for line in runs.lines:
        if line.result.split == "test":
            scored[line.run].append(line)
    for lines in scored.values():
        if len(lines) > 1:
            yield max(lines, key=lambda line: (line.result.accuracy, -line.result.step))


def setting_of(result: Result) -> Setting:
    """What a result's run is, less its seeds."""
    return Setting(
        Task(result.dataset, result.train_split),
        Student(result.model, result.initial, result.parameters),
        Recipe(result.method, result.labels, result.rationales, result.triage, result.augment),
        result.fraction,
    )


def _cells(lines: Iterable[Line]) -> dict[Setting, Cell]:
    claimed: dict[tuple[Setting, int, int], Line] = {}
    for line in lines:
        result = line.result
        key = (setting_of(result), result.seed, result.data_seed)
        other = claimed.setdefault(key, line)
        if other is not line:
            what = (
                f"{result.dataset}, {result.method}, labels {result.labels}, rationales "
                f"{result.rationales}, fraction {result.fraction}, model {result.model}, seed "
                f"{result.seed}, data seed {result.data_seed}"
            )
            raise InputError(
                f"{other.folder} and {line.folder} both claim {what} ({result.split}: "
                f"{other.result.accuracy:.4f} and {result.accuracy:.4f}); leave one of them out "
                "(what else they differ in, as the learning rate, results.jsonl does not say)"
            )
    grouped = group(claimed, lambda key: key[0])
    cells = {
        setting: Cell(setting, tuple(claimed[key] for key in sorted(keys, key=lambda k: k[1:])))
        for setting, keys in grouped.items()
    }
    return {setting: cells[setting] for setting in sorted(cells, key=lambda s: s.order)}


def group(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """Key -> its items, both in the order of `items`."""
    groups: dict[_Key, list[_Item]] = collections.defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
