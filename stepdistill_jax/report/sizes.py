"""Accuracy against the model's size (Figures 6 and 7), and what beats the teacher (8 and 9)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
from stepdistill_jax.report.fractions import file_name, look, looks
from stepdistill_jax.report.tables import Cell, Recipe, Scores, Task, group


@dataclasses.dataclass(frozen=True)
class SizeSet:
    """Cells on all data that differ in method and model.

    Attributes:
        pretrained: whether models start from a checkpoint.
    """

    task: Task
    labels: str
    augment: str
    pretrained: bool
    cells: list[Cell]

    @property
    def sizes(self) -> dict[int, str]:
        """Parameters -> the model's name, ascending."""
        students = {cell.setting.student for cell in self.cells}
        known = [(s.parameters, s.model) for s in students if s.parameters is not None]
        return dict(sorted(known))

    @property
    def title(self) -> str:
        """What the cells are of."""
        added = f", with {self.augment} added" if self.augment else ""
        start = "pretrained" if self.pretrained else "from random parameters"
        return f"{words.task(self.task)}, {words.labels(self.labels)}{added}, {start}"


def size_sets(scores: Scores) -> list[SizeSet]:
    """All of them, of one size too, in order."""
    full = [cell for cell in scores.students if cell.setting.fraction == 1.0]
    groups = group(
        full,
        lambda c: (
            c.setting.task, c.setting.recipe.labels, c.setting.recipe.augment,
            bool(c.setting.student.initial),
        ),
    )  # fmt: skip
    return [SizeSet(*key, cells) for key, cells in groups.items()]


def size_curves(material: Material) -> Section:
    """A figure for each task and label source with several sizes."""
    sets = [found for found in size_sets(material.scores) if len(found.sizes) > 1]
    if not sets:
        text = "Not run: no data set has students of several sizes on all of its data."
        return Section("sizes", "Accuracy against model size", (Paragraph(text),))
    blocks: list[Block] = [
        Paragraph(
            "As the paper's Figures 6 (gold labels) and 7 (teacher labels), with the teacher's "
            "line. Points are means over seeds, bars one standard error; the horizontal axis is "
            "logarithmic."
        )
    ]
    blocks += [_figure(material, found) for found in sets]
    return Section("sizes", "Accuracy against model size", tuple(blocks))


def _figure(material: Material, sizes: SizeSet) -> Figure:
    styles = looks(material.scores)
    by_recipe = group(sizes.cells, lambda cell: cell.setting.recipe)
    lines = []
    for recipe, cells in by_recipe.items():
        points = [
            (
                float(c.setting.student.parameters),
                100 * c.mean,
                None if c.error is None else 100 * c.error,
            )
            for c in cells
            if c.setting.student.parameters is not None
        ]
        if points:
            name = words.recipe(dataclasses.replace(recipe, augment=""))
            lines.append(plots.Curve(name, points, styles[look(recipe)]))
    teacher = material.scores.teacher(sizes.task.dataset)
    levels = {} if teacher is None else {"few-shot teacher": 100 * teacher.mean}
    picture = plots.panel(
        lines,
        levels,
        "parameters of the student",
        "accuracy, percent",
        {float(count): words.parameters(count) for count in sizes.sizes},
    )
    alt = plots.in_words(lines, levels, lambda count: words.parameters(int(count)))
    name = file_name(
        "sizes", sizes.task.dataset,
        "" if sizes.task.train_split == "train" else sizes.task.train_split,
        sizes.labels, sizes.augment, "pretrained" if sizes.pretrained else "random",
    )  # fmt: skip
    return Figure(
        name,
        sizes.title,
        f"Accuracy in percent against the student's parameters. {alt}",
        picture.svg,
        picture.png,
        _numbers(sizes, by_recipe, teacher),
    )


def _numbers(sizes: SizeSet, by_recipe: dict[Recipe, list[Cell]], teacher: Cell | None) -> Table:
    header = ("method", *(f"{name}, {words.parameters(n)}" for n, name in sizes.sizes.items()))
    rows = []
    for recipe, cells in by_recipe.items():
        found = {cell.setting.student.parameters: cell for cell in cells}
        rows.append(
            (Entry(words.recipe(recipe)), *(words.entry(found.get(n)) for n in sizes.sizes))
        )
    line = words.NOT_RUN if teacher is None else Entry(words.accuracy(teacher), NUMBER)
    rows.append((Entry("few-shot teacher"), *[line] * len(sizes.sizes)))
    return Table(f"Numbers: {sizes.title}", header, tuple(rows))


def beats_teacher(material: Material) -> Section:
    """The smallest model, and the least of its data, whose mean is above the teacher's."""
    scores = material.scores
    rows = []
    groups = group(
        scores.students,
        lambda c: (
            c.setting.task, c.setting.recipe, bool(c.setting.student.initial),
        ),
    )  # fmt: skip
    for (task, recipe, pretrained), cells in groups.items():
        rows.append(_row(scores, task, recipe, pretrained, cells))
    title = "What beats the teacher"
    if not rows:
        return Section("teacher", title, (Paragraph("No student was trained."),))
    if not any(scores.teacher(task.dataset) for task, _, _ in groups):
        text = "Not run: no data set of this report has its teacher scored (METHOD teacher)."
        return Section("teacher", title, (Paragraph(text),))
    text = (
        "As the paper's Figures 8 and 9: the smallest model that was run whose mean accuracy is "
        "above the few-shot teacher's on the same examples, and the least share of the data that "
        "is enough for that model. Only sizes and fractions that were run count; “above” is of the "
        "means, so look at the standard error."
    )
    header = (
        "data set", "method", "start", "teacher", "smallest model above", "least data",
        "accuracy there", "closest otherwise", "paper's smallest",
    )  # fmt: skip
    table = Table("What is above the teacher", header, tuple(rows))
    return Section("teacher", title, (Paragraph(text), table))


def _row(
    scores: Scores, task: Task, recipe: Recipe, pretrained: bool, cells: Sequence[Cell]
) -> tuple[Entry, ...]:
    teacher = scores.teacher(task.dataset)
    smallest = least = there = Entry("none of those run", MISSING)
    best = max(cells, key=lambda cell: cell.mean)
    closest = Entry(
        f"{words.accuracy(best)}, {best.setting.student.model}, "
        f"{words.share(best.setting.fraction)}",
        NUMBER,
    )
    if teacher is None:
        smallest = least = there = Entry("teacher not scored", MISSING)
    else:
        above = [cell for cell in cells if cell.mean > teacher.mean]
        if above:
            # A size that is not known may be the largest.
            first = min(
                above,
                key=lambda c: (
                    c.setting.student.parameters or float("inf"),
                    c.setting.student.model,
                    c.setting.fraction,
                ),
            )
            student = first.setting.student
            smallest = Entry(f"{student.model}, {words.parameters(student.parameters)}", NUMBER)
            least = Entry(words.share(first.setting.fraction), NUMBER)
            there = Entry(words.accuracy(first), NUMBER)
            closest = Entry("is above", MISSING)
    printed = Entry("not in the paper", MISSING)
    papers = recipe.labels == "gold" and look(recipe) == ("step_by_step", "teacher", "")
    if papers and not recipe.augment and task.dataset in paper.SMALLEST_ABOVE_TEACHER:
        printed = Entry(paper.SMALLEST_ABOVE_TEACHER[task.dataset], PAPER)
    return (
        Entry(words.task(task)),
        Entry(words.recipe(recipe, with_labels=True)),
        Entry("pretrained" if pretrained else "random parameters"),
        Entry("not scored", MISSING) if teacher is None else words.entry(teacher),
        smallest,
        least,
        there,
        closest,
        printed,
    )
