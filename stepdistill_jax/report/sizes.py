"""Accuracy against the model's size (Figures 6 and 7), and what beats the teacher (8 and 9)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from stepdistill_jax.report import formats, paper, plots
from stepdistill_jax.report.accuracy import paper_entry
from stepdistill_jax.report.comparisons import ReportData
from stepdistill_jax.report.curves import accuracy_point, file_name, style_key, styles
from stepdistill_jax.report.document import (
    Figure,
    Paragraph,
    Row,
    Section,
    Table,
    missing,
    number,
)
from stepdistill_jax.report.variants import (
    PAPERS_RECIPE,
    Recipe,
    Scores,
    Task,
    Variant,
    group,
)


@dataclasses.dataclass(frozen=True)
class SizeSet:
    """Variants on all data that differ in method and model.

    Attributes:
        pretrained: whether models start from a checkpoint.
    """

    task: Task
    labels: str
    augment: str
    pretrained: bool
    variants: Sequence[Variant]

    @property
    def sizes(self) -> dict[int, str]:
        """Parameters -> name of the model, ascending."""
        students = {variant.key.student for variant in self.variants}
        return dict(sorted((s.parameters, s.model) for s in students if s.parameters is not None))

    @property
    def title(self) -> str:
        """Data set, labels, added inputs and start."""
        start = "pretrained" if self.pretrained else "from random parameters"
        data = f"{formats.task(self.task)}, {formats.labels(self.labels)}"
        return f"{data}{formats.added(self.augment)}, {start}"


def _size_sets(scores: Scores) -> list[SizeSet]:
    """Those with several sizes, in order."""
    groups = group(
        (variant for variant in scores.students if variant.key.fraction == 1.0),
        lambda v: (
            v.key.task, v.key.recipe.labels, v.key.recipe.augment, bool(v.key.student.initial),
        ),
    )  # fmt: skip
    sets = [SizeSet(*key, variants) for key, variants in groups.items()]
    return [size_set for size_set in sets if len(size_set.sizes) > 1]


def size_curves(data: ReportData) -> Section:
    """A figure for each task and source of labels with several sizes."""
    title = "Accuracy against model size"
    sets = _size_sets(data.scores)
    if not sets:
        text = "Not run: no data set has students of several sizes on all of its data."
        return Section("sizes", title, [Paragraph(text)])
    text = (
        "As the paper's Figures 6 (gold labels) and 7 (teacher labels), with the teacher's "
        "accuracy as a line. Points are means over seeds, bars one standard error; the horizontal "
        "axis is logarithmic."
    )
    return Section("sizes", title, [Paragraph(text)], [_figure(data, sizes) for sizes in sets])


def _figure(data: ReportData, sizes: SizeSet) -> Figure:
    style_of = styles(data.scores)
    by_recipe = group(sizes.variants, lambda variant: variant.key.recipe)
    lines = []
    for recipe, variants in by_recipe.items():
        sized = [(variant.key.student.parameters, variant) for variant in variants]
        points = [accuracy_point(float(size), v) for size, v in sized if size is not None]
        if points:
            name = formats.method(recipe, with_added=False)
            lines.append(plots.Curve(name, points, style_of[style_key(recipe)]))
    teacher = data.scores.teacher(sizes.task.dataset)
    levels = {} if teacher is None else {"few-shot teacher": 100 * teacher.mean}
    picture = plots.panel(
        lines,
        levels,
        "parameters of the student",
        "accuracy, percent",
        {float(count): formats.parameters(count) for count in sizes.sizes},
    )
    alt = plots.describe(lines, levels, lambda count: formats.parameters(int(count)))
    start = "pretrained" if sizes.pretrained else "random"
    return Figure(
        file_name("sizes", sizes.task, sizes.labels, sizes.augment, start),
        sizes.title,
        f"Accuracy in percent against the student's parameters. {alt}",
        picture.svg,
        picture.png,
        _numbers(sizes, by_recipe, teacher),
    )


def _numbers(
    sizes: SizeSet, by_recipe: Mapping[Recipe, Sequence[Variant]], teacher: Variant | None
) -> Table:
    headings = {
        count: f"{name}, {formats.parameters(count)}" for count, name in sizes.sizes.items()
    }
    rows: list[Row] = []
    for recipe, variants in by_recipe.items():
        of_size = {variant.key.student.parameters: variant for variant in variants}
        accuracies = {name: formats.accuracy(of_size.get(n)) for n, name in headings.items()}
        rows.append({"method": formats.method(recipe), **accuracies})
    line = dict.fromkeys(headings.values(), formats.accuracy(teacher))
    rows.append({"method": "few-shot teacher", **line})
    return Table(f"Numbers: {sizes.title}", rows)


def beats_teacher(data: ReportData) -> Section:
    """The smallest model, and the smallest fraction of its data, whose mean beats the teacher."""
    scores = data.scores
    title = "What beats the teacher"
    groups = group(
        scores.students, lambda v: (v.key.task, v.key.recipe, bool(v.key.student.initial))
    )
    if not groups:
        return Section("teacher", title, [Paragraph("No student was trained.")])
    if not any(scores.teacher(task.dataset) for task, _, _ in groups):
        text = "Not run: no data set of this report has a scored teacher (METHOD teacher)."
        return Section("teacher", title, [Paragraph(text)])
    rows = [_row(scores, *key, variants) for key, variants in groups.items()]
    text = (
        "As the paper's Figures 8 and 9: the smallest model whose mean accuracy exceeds the "
        "few-shot teacher's on the same examples, and the smallest fraction of the data with which "
        "it does. Only sizes and fractions that were run count. Means are compared, so check the "
        "standard error."
    )
    return Section("teacher", title, [Paragraph(text), Table("Students above the teacher", rows)])


def _row(
    scores: Scores, task: Task, recipe: Recipe, pretrained: bool, variants: Sequence[Variant]
) -> Row:
    teacher = scores.teacher(task.dataset)
    best = max(variants, key=lambda variant: variant.mean)
    closest = number(
        f"{formats.accuracy_text(best)}, {best.key.student.model}, "
        f"{formats.fraction(best.key.fraction)}"
    )
    size = fraction = accuracy = missing(
        "teacher not scored" if teacher is None else "none of those run"
    )
    above = [v for v in variants if teacher is not None and v.mean > teacher.mean]
    if above:
        # A model of unknown size may be the largest.
        first = min(
            above,
            key=lambda v: (
                v.key.student.parameters or float("inf"), v.key.student.model, v.key.fraction,
            ),
        )  # fmt: skip
        student = first.key.student
        size = number(f"{student.model}, {formats.parameters(student.parameters)}")
        fraction = number(first.key.fraction, formats.fraction)
        accuracy = formats.accuracy(first)
        closest = missing("above the teacher")
    printed = paper.SMALLEST_ABOVE_TEACHER if recipe == PAPERS_RECIPE else {}
    return {
        "data set": formats.task(task),
        "method": formats.method(recipe, with_labels=True),
        "start": "pretrained" if pretrained else "random parameters",
        "teacher": number(teacher, formats.accuracy_text, "not scored"),
        "smallest model above": size,
        "smallest fraction": fraction,
        "its accuracy": accuracy,
        "closest, if none is above": closest,
        "paper's smallest": paper_entry(printed, task.dataset),
    }
