"""Accuracy against the data fraction (the paper's Figures 4 and 5), and the labels saved."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.stats

from stepdistill_jax.report import paper, plots, words
from stepdistill_jax.report.comparisons import Material
from stepdistill_jax.report.document import (
    MISSING,
    NUMBER,
    PAPER,
    Block,
    Entry,
    Figure,
    Paragraph,
    Section,
    Table,
)
from stepdistill_jax.report.statistics import crossing, crossing_interval
from stepdistill_jax.report.tables import Cell, Recipe, Scores, Student, Task, group

# Recipes of the paper keep their look in every report; others take the next ones.
_LOOKS = (
    ("standard", "none", ""),
    ("step_by_step", "teacher", ""),
    ("single_task", "teacher", ""),
    ("rationale_as_input", "teacher", ""),
    ("pinto", "teacher", ""),
    ("step_by_step", "shuffled", ""),
)


@dataclasses.dataclass(frozen=True)
class CurveSet:
    """Curves that share their data but for the fraction.

    Attributes:
        cells: recipe -> its cells, by fraction.
    """

    task: Task
    student: Student
    labels: str
    augment: str
    cells: dict[Recipe, list[Cell]]

    @property
    def fractions(self) -> list[float]:
        """That any of the recipes was run at, ascending."""
        return sorted({c.setting.fraction for cells in self.cells.values() for c in cells})

    @property
    def title(self) -> str:
        """What the curves are of."""
        added = f", with {self.augment} added" if self.augment else ""
        what = f"{words.task(self.task)}, {words.labels(self.labels)}{added}"
        return f"{what}, {words.student(self.student)}"

    def file(self, kind: str) -> str:
        """Name of its figure of a kind."""
        trained = "" if self.task.train_split == "train" else self.task.train_split
        return file_name(
            kind, self.task.dataset, trained, self.labels, self.augment,
            self.student.model, self.student.initial,
        )  # fmt: skip


def curve_sets(scores: Scores) -> list[CurveSet]:
    """Those with several fractions, in order."""
    found = []
    for (task, student, labels, augment), cells in group(
        scores.students,
        lambda c: (
            c.setting.task, c.setting.student, c.setting.recipe.labels, c.setting.recipe.augment,
        ),
    ).items():  # fmt: skip
        curves = CurveSet(
            task, student, labels, augment, group(cells, lambda cell: cell.setting.recipe)
        )
        if len(curves.fractions) > 1:
            found.append(curves)
    return found


def looks(scores: Scores) -> dict[tuple[str, str, str], int]:
    """(method, rationales, triage) -> number of its look, the same in all of a report."""
    recipes = sorted((c.setting.recipe for c in scores.students), key=lambda r: r.order)
    others = dict.fromkeys(look(r) for r in recipes if look(r) not in _LOOKS)
    return {key: number for number, key in enumerate([*_LOOKS, *others])}


def look(recipe: Recipe) -> tuple[str, str, str]:
    """What a recipe's line in a figure stands for."""
    return (recipe.method, recipe.rationales, recipe.triage)


def file_name(*parts: str) -> str:
    """A file's name out of texts."""
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(filter(None, parts)).lower()).strip("-")


def fraction_curves(material: Material) -> Section:
    """A figure for each task, model and label source with several fractions."""
    sets = curve_sets(material.scores)
    if not sets:
        text = "Not run: no setting has runs at several fractions (FRACTION)."
        return Section("fractions", "Accuracy against data", (Paragraph(text),))
    blocks: list[Block] = [
        Paragraph(
            "As the paper's Figures 4 (gold labels) and 5 (teacher labels). Points are means over "
            "seeds, bars one standard error; the horizontal axis is logarithmic."
        )
    ]
    styles = looks(material.scores)
    blocks += [_figure(material, curves, styles) for curves in sets]
    return Section("fractions", "Accuracy against data", tuple(blocks))


def _figure(
    material: Material, curves: CurveSet, styles: dict[tuple[str, str, str], int]
) -> Figure:
    lines = [
        plots.Curve(
            words.recipe(dataclasses.replace(recipe, augment="")),
            [
                (c.setting.fraction, 100 * c.mean, None if c.error is None else 100 * c.error)
                for c in cells
            ],
            styles[look(recipe)],
        )
        for recipe, cells in curves.cells.items()
    ]
    levels = {}
    base = _full_baseline(curves)
    if base is not None:
        levels["standard, all data"] = 100 * base.mean
    floor = floor_of(material, [c for cells in curves.cells.values() for c in cells])
    if floor is not None:
        levels["floor"] = 100 * floor
    picture = plots.panel(
        lines,
        levels,
        "share of the training data",
        "accuracy, percent",
        {fraction: words.share(fraction) for fraction in curves.fractions},
    )
    alt = plots.in_words(lines, levels, words.share)
    return Figure(
        curves.file("fractions"),
        curves.title,
        f"Accuracy in percent against the share of the training data. {alt}",
        picture.svg,
        picture.png,
        _numbers(curves),
    )


def _numbers(curves: CurveSet) -> Table:
    pairs: dict[float, float] = {}
    for cells in curves.cells.values():
        for cell in cells:
            count = cell.cost("train_pairs")
            if count is not None:
                pairs.setdefault(cell.setting.fraction, count)
    header = ["method"]
    for fraction in curves.fractions:
        shown = f", {pairs[fraction]:.0f} pairs" if fraction in pairs else ""
        header.append(f"{words.share(fraction)}{shown}")
    rows = []
    for recipe, cells in curves.cells.items():
        found = {cell.setting.fraction: cell for cell in cells}
        entries = (words.entry(found.get(fraction)) for fraction in curves.fractions)
        rows.append((Entry(words.recipe(recipe)), *entries))
    return Table(f"Numbers: {curves.title}", tuple(header), tuple(rows))


def floor_of(material: Material, cells: Iterable[Cell]) -> float | None:
    """Mean over the cells' test sets; None without predictions."""
    floors = {id(f): f.accuracy for c in cells for f in material.floors(c) if f is not None}
    return float(np.mean([*floors.values()])) if floors else None


def _full_baseline(curves: CurveSet) -> Cell | None:
    for recipe, cells in curves.cells.items():
        if recipe.is_baseline:
            return next((cell for cell in cells if cell.setting.fraction == 1.0), None)
    return None


def labels_saved(material: Material) -> Section:
    """The fraction at which each method reaches standard finetuning on all data."""
    rows = []
    for curves in curve_sets(material.scores):
        base = _full_baseline(curves)
        for recipe, cells in curves.cells.items():
            if not recipe.is_baseline and len(cells) > 1:
                rows.append(_saved(material, curves, base, recipe, cells))
    title = "Labels saved"
    if not rows:
        text = (
            "Not run: this needs standard finetuning on all data and another method at several "
            "fractions of the same data."
        )
        return Section("labels-saved", title, (Paragraph(text),))
    text = (
        "The share of the labels with which a method's mean curve, straight between the fractions "
        "that were run, first reaches standard finetuning's mean on all of them. “At most” means "
        "that the smallest fraction run was enough. The interval (95%) comes from resampling "
        "seeds, and is rough where there are few. No saving is claimed where standard finetuning "
        "on all data is not above the floor by more than two standard errors (the larger of that "
        "over seeds and that over examples): there is nothing to be saved then."
    )
    header = (
        "setting", "method", "standard, all data", "floor", "labels needed",
        "95% interval", "paper, T5-Base",
    )  # fmt: skip
    table = Table("Labels needed to reach standard finetuning on all data", header, tuple(rows))
    return Section("labels-saved", title, (Paragraph(text), table))


def _saved(
    material: Material,
    curves: CurveSet,
    base: Cell | None,
    recipe: Recipe,
    cells: Sequence[Cell],
) -> tuple[Entry, ...]:
    floor = None if base is None else floor_of(material, [base])
    needed, interval = needed_labels(material, base, cells)
    is_papers = (
        curves.labels == "gold" and not curves.augment
        and look(recipe) == _LOOKS[1] and curves.task.dataset in paper.LABELS_NEEDED
    )  # fmt: skip
    printed = Entry("not in the paper", MISSING)
    if is_papers:
        printed = Entry(f"{paper.LABELS_NEEDED[curves.task.dataset]:.1f}%", PAPER)
    return (
        Entry(words.where(cells[0].setting)),
        Entry(words.recipe(dataclasses.replace(recipe, augment=""))),
        words.entry(base),
        Entry("no predictions", MISSING) if floor is None else Entry(words.percent(floor), NUMBER),
        needed,
        interval,
        printed,
    )


def needed_labels(
    material: Material, base: Cell | None, cells: Sequence[Cell]
) -> tuple[Entry, Entry]:
    """The share of the labels with which a method reaches its baseline, and the interval.

    Args:
        material: of the report.
        base: standard finetuning on all data; None where it was not run.
        cells: of the method, one a fraction.

    Returns:
        Both say why where there is no such number.
    """
    nothing = Entry("no claim", MISSING)
    if base is None:
        return Entry("standard on all data not run", MISSING), nothing
    above = above_floor(material, base)
    if above is None:
        return Entry("floor not known: no predictions", MISSING), nothing
    if not above:
        return Entry("standard is on its floor", MISSING), nothing
    found = crossing({cell.setting.fraction: cell.mean for cell in cells}, base.mean)
    needed = Entry(words.crossing(found), NUMBER if found.fraction else MISSING)
    curve = {
        cell.setting.fraction: {seed: line.result.accuracy for seed, line in cell.seeds.items()}
        for cell in cells
    }
    baseline = {seed: line.result.accuracy for seed, line in base.seeds.items()}
    ends = crossing_interval(curve, baseline)
    if ends is None:
        return needed, Entry("one seed: no interval", MISSING)
    few = min(len(baseline), *(len(points) for points in curve.values()))
    low, high = map(words.crossing, ends)
    interval = low if low == high else f"{low} to {high}"
    return needed, Entry(f"{interval} ({words.seeds(few)})", NUMBER)


def above_floor(material: Material, cell: Cell) -> bool | None:
    """Whether a cell's mean is above its floor by more than two standard errors.

    The larger of two errors: over seeds, and over the examples of one run. Seeds that happen to
    agree share their test set's luck.

    Returns:
        None where a run's predictions are missing, so that its floor is not known.
    """
    floors = [floor.accuracy for floor in material.floors(cell) if floor is not None]
    if len(floors) < len(cell.lines):
        return None
    excess = [line.result.accuracy - floor for line, floor in zip(cell.lines, floors, strict=True)]
    errors = [float(np.mean([line.result.stderr for line in cell.lines]))]
    if len(excess) > 1:
        errors.append(float(scipy.stats.sem(excess)))
    return float(np.mean(excess)) > 2 * max(errors)
