"""The paper's question in one table: which method, with how many labels, against which teacher."""

from __future__ import annotations

from collections.abc import Sequence

from stepdistill_jax.report import words
from stepdistill_jax.report.comparisons import Material
from stepdistill_jax.report.document import (
    MISSING,
    NUMBER,
    Block,
    Entry,
    Paragraph,
    Section,
    Table,
)
from stepdistill_jax.report.fractions import above_floor, floor_of, needed_labels
from stepdistill_jax.report.tables import BASELINE, TEACHER, Cell, Recipe, Setting, group

METHOD, CONTROL = "step_by_step", "shuffled"


def summary(material: Material) -> Section:
    """Step-by-step against standard finetuning on all data, beside its control and the floor."""
    scores = material.scores
    groups = group(
        scores.students,
        lambda c: (
            c.setting.task, c.setting.student, c.setting.recipe.labels, c.setting.recipe.augment,
        ),
    )  # fmt: skip
    header = (
        "setting", "floor", "standard", "step-by-step",
        "rationales shuffled", "difference", "p after Holm",
        "labels needed", "few-shot teacher",
    )  # fmt: skip
    rows = tuple(_row(material, cells) for cells in groups.values())
    blocks: list[Block] = [
        Paragraph(
            "Accuracy on all training data in percent, mean ± standard error over seeds (number of "
            "seeds). Difference: step-by-step less standard, in percentage points. The floor reads "
            "next to nothing of the input; shuffled rationales are the control for what rationales "
            "say. Labels needed: the share of them with which step-by-step reaches standard's "
            "accuracy on all. Other methods and all intervals follow below."
        ),
        Table("Step-by-step against standard finetuning, all data", header, rows),
    ]
    if not rows:
        blocks = [Paragraph("No student was trained: the teacher alone was scored.")]
    return Section("summary", "In short", tuple(blocks))


def _row(material: Material, cells: Sequence[Cell]) -> tuple[Entry, ...]:
    scores, setting = material.scores, cells[0].setting
    labels, augment = setting.recipe.labels, setting.recipe.augment

    def full(method: str, rationales: str) -> Cell | None:
        recipe = Recipe(method, labels, rationales, "", augment)
        return scores.cells.get(Setting(setting.task, setting.student, recipe, 1.0))

    base, ours = full(BASELINE, "none"), full(METHOD, TEACHER)
    curve = [c for c in cells if c.setting.recipe == Recipe(METHOD, labels, TEACHER, "", augment)]
    floor = floor_of(material, cells)
    teacher = scores.teacher(setting.task.dataset)
    return (
        Entry(words.where(setting)),
        Entry("no predictions", MISSING) if floor is None else Entry(words.percent(floor), NUMBER),
        words.entry(base),
        words.entry(ours),
        words.entry(full(METHOD, CONTROL)),
        *_difference(material, ours),
        _labels(material, base, curve),
        words.NOT_RUN if teacher is None else words.entry(teacher),
    )


def _difference(material: Material, cell: Cell | None) -> tuple[Entry, Entry]:
    for comparison in material.comparisons:
        if comparison.cell is not cell:
            continue
        test = comparison.test
        if test is None or comparison.adjusted is None:
            return Entry(comparison.remark, MISSING), Entry("not tested", MISSING)
        return (
            Entry(words.points(test.difference), NUMBER),
            Entry(words.p_value(comparison.adjusted), NUMBER),
        )
    return words.NOT_RUN, words.NOT_RUN


def _labels(material: Material, base: Cell | None, curve: Sequence[Cell]) -> Entry:
    if base is not None and above_floor(material, base) is False:
        return Entry("standard is on its floor", MISSING)
    if len(curve) < 2:
        return Entry("one fraction run" if curve else "not run", MISSING)
    return needed_labels(material, base, curve)[0]
