"""Variants grouped into curves over the data fraction, and what their figures share."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from stepdistill_jax.report import formats, plots
from stepdistill_jax.report.variants import (
    BASELINE,
    Recipe,
    Scores,
    StudentModel,
    Task,
    Variant,
    group,
)

# The paper's recipes have the same style in every report; others take the next ones.
_STYLES = (
    ("standard", "none", ""),
    ("step_by_step", "teacher", ""),
    ("single_task", "teacher", ""),
    ("rationale_as_input", "teacher", ""),
    ("pinto", "teacher", ""),
    ("step_by_step", "shuffled", ""),
)


@dataclasses.dataclass(frozen=True)
class CurveSet:
    """Variants with the same model and the same data, except for the fraction.

    Attributes:
        variants: recipe -> its variants, by fraction.
    """

    task: Task
    student: StudentModel
    labels: str
    augment: str
    variants: Mapping[Recipe, Sequence[Variant]]

    @property
    def fractions(self) -> list[float]:
        """All fractions that were run, ascending."""
        return sorted({v.key.fraction for variants in self.variants.values() for v in variants})

    @property
    def title(self) -> str:
        """Data set, labels, added inputs and model."""
        data = f"{formats.task(self.task)}, {formats.labels(self.labels)}"
        return f"{data}{formats.added(self.augment)}, {formats.student(self.student)}"

    def of(self, method: str, rationales: str) -> Sequence[Variant]:
        """The variants of a method, without triage."""
        return self.variants.get(Recipe(method, self.labels, rationales, "", self.augment), ())

    def on_all_data(self, method: str, rationales: str) -> Variant | None:
        """A method on all data; None if it was not run."""
        return next((v for v in self.of(method, rationales) if v.key.fraction == 1.0), None)

    @property
    def baseline(self) -> Variant | None:
        """Standard finetuning on all data; None if it was not run."""
        return self.on_all_data(BASELINE, "none")


def curve_sets(scores: Scores, *, several: bool = True) -> list[CurveSet]:
    """All curve sets in order; with `several`, only those with more than one fraction."""
    by_data = group(
        scores.students,
        lambda v: (v.key.task, v.key.student, v.key.recipe.labels, v.key.recipe.augment),
    )
    sets = [CurveSet(*key, group(vs, lambda v: v.key.recipe)) for key, vs in by_data.items()]
    return [curves for curves in sets if len(curves.fractions) > 1 or not several]


def styles(scores: Scores) -> dict[tuple[str, str, str], int]:
    """(method, rationales, triage) -> number of its line style, the same in a whole report."""
    recipes = sorted((v.key.recipe for v in scores.students), key=lambda recipe: recipe.order)
    keys = dict.fromkeys([*_STYLES, *map(style_key, recipes)])
    return {key: number for number, key in enumerate(keys)}


def style_key(recipe: Recipe) -> tuple[str, str, str]:
    """Recipes with the same key have the same line style."""
    return (recipe.method, recipe.rationales, recipe.triage)


def accuracy_point(x: float, variant: Variant) -> plots.Point:
    """A point of a figure: accuracy and standard error in percent."""
    return (x, 100 * variant.mean, None if variant.error is None else 100 * variant.error)


def file_name(kind: str, task: Task, *parts: str) -> str:
    """Name of a figure's files, without the ending."""
    trained_on = "" if task.train_split == "train" else task.train_split
    text = "-".join(filter(None, (kind, task.dataset, trained_on, *parts))).lower()
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")
