"""Results grouped into variants: the runs that differ only in their seeds.

Of a method that was run with several settings (learning rates, say), validation chooses one for all
fractions; only its runs are in the tables and curves.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from stepdistill_jax.report import paper
from stepdistill_jax.report.runs import Line, Runs
from stepdistill_jax.report.statistics import mean_error
from stepdistill_jax.run.results import VALIDATION, Result
from stepdistill_jax.spec import METHOD_STREAMS, TEACHER, InputError

BASELINE = "standard"
# Rationales in the order of the tables: the teacher's before others, the control last.
_RATIONALE_ORDER = {"none": "0", "teacher": "1", "shuffled": "~"}

# (macro, value) of every setting of a result that is not its default, sorted.
_Settings = tuple[tuple[str, str], ...]
_Key = TypeVar("_Key")
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True, order=True)
class Task:
    """A data set and the split that is trained on."""

    dataset: str
    train_split: str


def paper_order(task: Task) -> tuple[int, Task]:
    """Sorts the paper's data sets in its order before others."""
    in_paper = task.dataset in paper.DATASETS
    return (paper.DATASETS.index(task.dataset) if in_paper else len(paper.DATASETS), task)


@dataclasses.dataclass(frozen=True)
class StudentModel:
    """A model and its initial parameters.

    Attributes:
        initial: checkpoint; "" = random parameters.
        parameters: None if the results do not say.
    """

    model: str
    initial: str
    parameters: int | None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method and its training data; the fields are those of `results.RunFacts`."""

    method: str
    labels: str
    rationales: str
    triage: str
    augment: str

    @property
    def order(self) -> tuple[int, str, bool, str, str, str]:
        """Sort key: methods in the order of the paper."""
        methods = [*METHOD_STREAMS]
        return (
            methods.index(self.method) if self.method in methods else len(methods),
            self.labels,
            bool(self.triage or self.augment),
            _RATIONALE_ORDER.get(self.rationales, f"2{self.rationales}"),
            self.triage,
            self.augment,
        )

    @property
    def is_baseline(self) -> bool:
        """Whether this is what other methods on the same data are compared with."""
        return self.method == BASELINE and not self.triage


# Step-by-step with gold labels, for which the paper's text states numbers.
PAPERS_RECIPE = Recipe("step_by_step", "gold", TEACHER, "", "")


@dataclasses.dataclass(frozen=True)
class VariantKey:
    """What the runs of one variant share."""

    task: Task
    student: StudentModel
    recipe: Recipe
    fraction: float

    @property
    def method(self) -> tuple[Task, StudentModel, Recipe]:
        """What the fractions of one learning curve share."""
        return (self.task, self.student, self.recipe)

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key: the same in every report."""
        student = self.student
        size = (student.parameters or 0, student.model, student.initial)
        return (paper_order(self.task), *size, self.recipe.order, self.fraction)


@dataclasses.dataclass(frozen=True)
class Variant:
    """The scored runs of one variant, one a seed.

    Attributes:
        lines: ordered by (seed, data_seed).
    """

    key: VariantKey
    lines: tuple[Line, ...]

    @property
    def seeds(self) -> dict[tuple[int, int], Line]:
        """(seed, data_seed) -> its result."""
        return {(line.result.seed, line.result.data_seed): line for line in self.lines}

    @property
    def mean(self) -> float:
        """Accuracy in [0, 1], mean over seeds."""
        return mean_error([line.result.accuracy for line in self.lines])[0]

    @property
    def error(self) -> float | None:
        """Standard error of the mean over seeds; None for one seed."""
        return mean_error([line.result.accuracy for line in self.lines])[1]

    def cost(self, field: str) -> float | None:
        """Mean of a cost over seeds; None unless every run knows it."""
        values = [getattr(line.result, field) for line in self.lines]
        return None if None in values else mean_error(values)[0]


@dataclasses.dataclass(frozen=True)
class Tried:
    """A variant with one of the settings that its method was run with.

    Attributes:
        settings: macro -> value, where they differ between the settings tried.
        validation: mean accuracy over seeds at the selected steps; None if a run lacks it.
        chosen: whether `variant` stands for the method.
    """

    variant: Variant
    settings: Mapping[str, str]
    validation: float | None
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Scores:
    """All results of a report.

    Attributes:
        splits: data set -> split that its accuracies are of.
        variants: accuracies of steps selected on validation, and of the teacher; in order.
        best_on_test: the paper's protocol, for runs with several steps scored on test; in order.
        unselected: names of runs without a selected step.
        tried: of the methods that were run with several settings; in order.
    """

    runs: Runs
    splits: Mapping[str, str]
    variants: Mapping[VariantKey, Variant]
    best_on_test: Mapping[VariantKey, Variant]
    unselected: tuple[str, ...]
    tried: tuple[Tried, ...] = ()

    @property
    def students(self) -> list[Variant]:
        """Variants that train a model, in order."""
        return [v for v in self.variants.values() if v.key.recipe.method != TEACHER]

    @property
    def datasets(self) -> list[str]:
        """In order."""
        return [*dict.fromkeys(key.task.dataset for key in self.variants)]

    def teacher(self, dataset: str) -> Variant | None:
        """The teacher's own score, whatever split students train on."""
        for key, variant in self.variants.items():
            if key.recipe.method == TEACHER and key.task.dataset == dataset:
                return variant
        return None

    def baseline(self, key: VariantKey) -> Variant | None:
        """Standard finetuning on the same data, labels and added inputs."""
        recipe = Recipe(BASELINE, key.recipe.labels, "none", "", key.recipe.augment)
        return self.variants.get(dataclasses.replace(key, recipe=recipe))


def collect(runs: Runs) -> Scores:
    """Groups results into variants.

    Accuracies of a data set are those on test if any of its runs was scored there, else those on
    validation.

    Raises:
        InputError: two runs have the same variant, settings and seeds.
    """
    selected = [line for line in runs.lines if _is_selected(line.result)]
    splits: dict[str, str] = {}
    for result in (line.result for line in selected):
        if result.split == "test" or result.dataset not in splits:
            splits[result.dataset] = result.split
    selected = [line for line in selected if line.result.split == splits[line.result.dataset]]
    with_number = {line.run for line in selected}
    validations = {
        (line.run, line.result.step, _settings(line)): line.result.accuracy
        for line in runs.lines
        if line.result.split == VALIDATION
    }
    tried = _tried(selected, validations)
    return Scores(
        runs=runs,
        splits=splits,
        variants=_chosen(tried),
        best_on_test=_chosen(_tried(_best_on_test(runs), validations)),
        unselected=tuple(name for name in runs.names if name not in with_number),
        tried=tuple(one for one in tried if one.settings),
    )


def _is_selected(result: Result) -> bool:
    return result.selected_on == VALIDATION or result.method == TEACHER


def _best_on_test(runs: Runs) -> Iterable[Line]:
    on_test = [line for line in runs.lines if line.result.split == "test"]
    for lines in group(on_test, lambda line: line.run).values():
        if len(lines) > 1:
            yield max(lines, key=lambda line: (line.result.accuracy, -line.result.step))


def _key(result: Result) -> VariantKey:
    return VariantKey(
        Task(result.dataset, result.train_split),
        StudentModel(result.model, result.initial, result.parameters),
        Recipe(result.method, result.labels, result.rationales, result.triage, result.augment),
        result.fraction,
    )


def _settings(line: Line) -> _Settings:
    return tuple(sorted(line.result.settings.items()))


def _tried(
    lines: Iterable[Line], validations: Mapping[tuple[str, int, _Settings], float]
) -> list[Tried]:
    """Every variant with each of its settings, in order."""
    grouped = group(lines, lambda line: (_key(line.result), _settings(line)))
    variants = {
        (key, settings): Variant(key, tuple(_one_a_seed(grouped[key, settings])))
        for key, settings in sorted(grouped, key=lambda both: (both[0].order, both[1]))
    }
    scores: dict[tuple[VariantKey, _Settings], float | None] = {}
    for both, variant in variants.items():
        found = [validations.get((line.run, line.result.step, both[1])) for line in variant.lines]
        known = [accuracy for accuracy in found if accuracy is not None]
        scores[both] = mean_error(known)[0] if len(known) == len(found) else None
    tried = []
    for of_method in group(variants, lambda both: both[0].method).values():
        largest = max(key.fraction for key, _ in of_method)
        # Without a score on validation, the first is as good as any.
        chosen = max(
            (both for both in of_method if both[0].fraction == largest),
            key=lambda both: -1.0 if (score := scores[both]) is None else score,
        )
        differing = _differing([settings for _, settings in of_method])
        for both in of_method:
            texts = dict(both[1])
            shown = {name: texts.get(name, "default") for name in differing}
            tried.append(Tried(variants[both], shown, scores[both], both[1] == chosen[1]))
    return sorted(tried, key=lambda one: one.variant.key.order)


def _chosen(tried: Iterable[Tried]) -> dict[VariantKey, Variant]:
    return {one.variant.key: one.variant for one in tried if one.chosen}


def _differing(settings: Iterable[_Settings]) -> list[str]:
    """Names of the settings in which some of these differ."""
    counts = collections.Counter(pair for of_one in {*settings} for pair in of_one)
    return sorted({name for (name, _), count in counts.items() if count < len({*settings})})


def _one_a_seed(lines: Iterable[Line]) -> list[Line]:
    by_seeds: dict[tuple[int, int], Line] = {}
    for line in lines:
        result = line.result
        other = by_seeds.setdefault((result.seed, result.data_seed), line)
        if other is not line:
            raise InputError(
                f"{other.folder} and {line.folder}: two runs of one variant and seed: "
                f"{result.dataset}, {result.method}, {result.labels} labels, {result.rationales} "
                f"rationales, fraction {result.fraction}, {result.model}, seed {result.seed}, data "
                f"seed {result.data_seed} ({result.split} {other.result.accuracy:.4f} and "
                f"{result.accuracy:.4f}). Leave one out; their settings are the same."
            )
    return [by_seeds[seeds] for seeds in sorted(by_seeds)]


def group(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """Key -> its items, both in the order of `items`."""
    groups: dict[_Key, list[_Item]] = collections.defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
