"""The paired tests, what runs cost, every run, and how the numbers were made."""

from __future__ import annotations

import dataclasses

from stepdistill_jax.report import paper, words
from stepdistill_jax.report.comparisons import Comparison, Material
from stepdistill_jax.report.document import (
    MISSING,
    NUMBER,
    TEXT,
    Block,
    Bullets,
    Entry,
    Paragraph,
    Section,
    Table,
)
from stepdistill_jax.report.statistics import PERMUTATIONS, RESAMPLES
from stepdistill_jax.report.tables import Cell, Scores


def tests(material: Material) -> Section:
    """Every comparison, those that could not be made too."""
    title = "Tests against standard finetuning"
    if not material.comparisons:
        text = "Nothing to compare: no method beside standard finetuning was run."
        return Section("tests", title, (Paragraph(text),))
    text = (
        "Each method against standard finetuning with the same data, labels, fraction and model. "
        "Paired: over the examples that both scored with the same SEED and DATA_SEED, an example "
        "being the same where id, input and target are; an example's correctness is averaged over "
        "seeds. Difference in percentage points, with a 95% bootstrap interval over examples. p is "
        "two-sided, from exact McNemar where every example was scored by one pair of runs, else "
        "from the sign-flip permutation test; “after Holm” is corrected for all tests of this "
        "report. It says whether these trained models differ on such examples; how training varies "
        "is what the standard error over seeds says."
    )
    header = (
        "setting", "data", "method", "accuracy", "standard", "difference",
        "95% interval", "p", "after Holm", "examples", "seeds", "test",
    )  # fmt: skip
    table = Table("Every comparison", header, tuple(map(_test_row, material.comparisons)))
    return Section("tests", title, (Paragraph(text), table))


def _test_row(comparison: Comparison) -> tuple[Entry, ...]:
    setting, test = comparison.cell.setting, comparison.test
    row = [
        Entry(words.where(setting)),
        Entry(words.share(setting.fraction), NUMBER),
        Entry(words.recipe(dataclasses.replace(setting.recipe, augment=""))),
        words.entry(comparison.cell),
        words.entry(comparison.baseline),
    ]
    if test is None:
        none = Entry("none", MISSING)
        return (*row, *[none] * 6, Entry(comparison.remark, MISSING))
    assert comparison.adjusted is not None
    name = f"{test.name}; without {comparison.remark}" if comparison.remark else test.name
    return (
        *row,
        Entry(words.points(test.difference), NUMBER),
        Entry(f"{words.points(test.low)} to {words.points(test.high)}", NUMBER),
        Entry(words.p_value(test.p), NUMBER),
        Entry(words.p_value(comparison.adjusted), NUMBER),
        Entry(str(test.examples), NUMBER),
        Entry(str(comparison.seeds), NUMBER),
        Entry(name, TEXT),
    )


def costs(material: Material) -> Section:
    """What training took and what an answer takes, beside the teacher."""
    text = (
        "Means over seeds. Train FLOPs: model FLOPs of the steps up to the one that was selected, "
        "forward and backward. Device seconds: devices times seconds of the same steps, first "
        "compilation included. Serving FLOPs: of one answer, mean over the split; the teacher's "
        "without its few-shot prompt, which was never released, so that it takes more than shown. "
        "Rationale as input and PINTO need the teacher's rationale for every answer, which their "
        "serving FLOPs leave out."
    )
    header = (
        "data set", "method", "model", "data", "pairs", "train FLOPs", "device seconds",
        "serving FLOPs per answer", "of the teacher's",
    )  # fmt: skip
    rows = tuple(_cost_row(material.scores, cell) for cell in material.scores.cells.values())
    return Section(
        "costs", "Cost", (Paragraph(text), Table("What each setting takes", header, rows))
    )


def _cost_row(scores: Scores, cell: Cell) -> tuple[Entry, ...]:
    setting = cell.setting
    teacher = scores.teacher(setting.task.dataset)
    theirs = teacher and teacher.cost("serving_flops")
    ours = cell.cost("serving_flops")
    ratio = words.NOT_KNOWN
    if teacher is cell:
        ratio = Entry("is the teacher", MISSING)
    elif ours and theirs:
        ratio = Entry(f"1/{words.significant(theirs / ours)}", NUMBER)
    pairs, seconds = cell.cost("train_pairs"), cell.cost("device_seconds")
    return (
        Entry(words.task(setting.task)),
        Entry(words.recipe(setting.recipe, with_labels=True)),
        Entry(words.student(setting.student)),
        Entry(words.share(setting.fraction), NUMBER),
        words.NOT_KNOWN if pairs is None else Entry(f"{pairs:.0f}", NUMBER),
        _flops(cell.cost("train_flops")),
        words.NOT_KNOWN if seconds is None else Entry(words.significant(seconds), NUMBER),
        _flops(ours),
        ratio,
    )


def _flops(value: float | None) -> Entry:
    return words.NOT_KNOWN if value is None else Entry(words.large(value), NUMBER)


def runs(material: Material) -> Section:
    """Each run's own number, and runs without one."""
    rows = []
    for cell in material.scores.cells.values():
        setting = cell.setting
        for line in cell.lines:
            result = line.result
            scored = material.predictions.of(line)
            rows.append(
                (
                    Entry(line.run),
                    Entry(words.task(setting.task)),
                    Entry(words.recipe(setting.recipe, with_labels=True)),
                    Entry(setting.student.model),
                    Entry(words.share(setting.fraction), NUMBER),
                    Entry(f"{result.seed} / {result.data_seed}", NUMBER),
                    Entry(result.split),
                    Entry(str(result.step), NUMBER),
                    Entry(words.percent(result.accuracy), NUMBER),
                    Entry(str(result.n), NUMBER),
                    Entry(scored, MISSING) if isinstance(scored, str) else Entry("read"),
                )
            )
    header = (
        "run", "data set", "method", "model", "data", "seed / data seed", "split", "step",
        "accuracy", "examples", "predictions",
    )  # fmt: skip
    blocks: list[Block] = [Table("Every number that this report is made of", header, tuple(rows))]
    without = [
        *(f"{name}: no result yet" for name in material.scores.runs.empty),
        *(
            f"{name}: scored, but no step of it was selected on validation and scored on the split "
            "that its data set is reported on"
            for name in material.scores.unselected
        ),
    ]
    if without:
        blocks += [Paragraph("Runs that are in no table above:"), Bullets(tuple(without))]
    return Section("runs", "Every run", tuple(blocks))


def notes() -> Section:
    """How the numbers were made."""
    items = (
        "Numbers come from each run's results.jsonl; tests and floors from its predictions.jsonl.",
        "A cell gathers runs that share data set, split trained on, model, start, method, labels, "
        "rationales, triage, added inputs and fraction, and differ in SEED or DATA_SEED alone. "
        "Other settings, as the learning rate, are not in results.jsonl.",
        "“Not run” means that no such run was given to this report.",
        f"Statistics: scipy ({PERMUTATIONS} permutations, {RESAMPLES} resamples, fixed generator) "
        f"and statsmodels (exact McNemar, Holm). A permutation p is never below "
        f"{2 / (PERMUTATIONS + 1):.4f}, which Holm's correction multiplies by up to the number of "
        "tests. The same results give the same report, to the byte.",
        f"The paper's numbers: Tables 1 and 2; labels needed: {paper.LABELS_NEEDED_SOURCE}; "
        f"smallest student: {paper.SMALLEST_SOURCE}; teacher: {paper.TEACHER_SOURCE}.",
    )
    return Section("notes", "How these numbers were made", (Bullets(items),))
