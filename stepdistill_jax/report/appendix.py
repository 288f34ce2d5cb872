"""The paired tests, the costs, every run, and how the numbers were made."""

from __future__ import annotations

from stepdistill_jax.report import formats, paper
from stepdistill_jax.report.comparisons import Comparison, ReportData
from stepdistill_jax.report.document import (
    Block,
    Bullets,
    Paragraph,
    Row,
    Section,
    Table,
    missing,
    number,
)
from stepdistill_jax.report.statistics import PERMUTATIONS, RESAMPLES
from stepdistill_jax.report.variants import Scores, Variant


def tests(data: ReportData) -> Section:
    """Every comparison with standard finetuning, and those that were impossible."""
    title = "Tests against standard finetuning"
    if not data.comparisons:
        text = "Not run: this needs a method besides standard finetuning."
        return Section("tests", title, [Paragraph(text)])
    text = (
        "Each method against standard finetuning with the same data, labels, fraction and model. "
        "Tests are paired over the examples that both scored with the same SEED and DATA_SEED; "
        "examples are equal if id, input and target are. The correctness of an example is averaged "
        "over seeds. Differences are in percentage points, with a 95% bootstrap interval over "
        "examples. p is two-sided: from exact McNemar if every example was scored by one pair of "
        "runs, else from the sign-flip permutation test. “After Holm” corrects for all tests of "
        "this report. The tests compare these trained models on such examples; the standard error "
        "over seeds shows how training varies."
    )
    table = Table("Every comparison", [*map(_test_row, data.comparisons)])
    return Section("tests", title, [Paragraph(text), table])


def _test_row(comparison: Comparison) -> Row:
    key, test = comparison.variant.key, comparison.test
    none = missing("none")
    row: Row = {
        "data and model": formats.data_and_model(key),
        "data": number(key.fraction, formats.fraction),
        "method": formats.method(key.recipe, with_added=False),
        "accuracy": formats.accuracy(comparison.variant),
        "standard": formats.accuracy(comparison.baseline),
    }
    if test is None:
        names = ("difference", "95% interval", "p", "after Holm", "examples", "seeds")
        return {**row, **dict.fromkeys(names, none), "test": missing(comparison.remark)}
    without = f"; without {comparison.remark}" if comparison.remark else ""
    return {
        **row,
        "difference": number(test.difference, formats.points),
        "95% interval": number(f"{formats.points(test.low)} to {formats.points(test.high)}"),
        "p": number(test.p, formats.p_value),
        "after Holm": number(comparison.adjusted, formats.p_value),
        "examples": number(test.examples),
        "seeds": number(comparison.seeds),
        "test": f"{test.name}{without}",
    }


def costs(data: ReportData) -> Section:
    """The cost of training and of one answer, beside the teacher's."""
    text = (
        "Means over seeds. Train FLOPs: model FLOPs, forward and backward, of the steps up to the "
        "selected one. Device seconds: number of devices times seconds of the same steps, "
        "including the first compilation. Serving FLOPs: of one answer, mean over the split. For "
        "the teacher they exclude its few-shot prompt, which was never released, so the true cost "
        "is higher. Rationale as input and PINTO need the teacher's rationale for every answer; "
        "their serving FLOPs exclude it."
    )
    rows = [_cost_row(data.scores, variant) for variant in data.scores.variants.values()]
    if not rows:
        return Section("costs", "Cost", [Paragraph("Not run: no run has a selected step.")])
    return Section("costs", "Cost", [Paragraph(text), Table("Cost of each variant", rows)])


def _cost_row(scores: Scores, variant: Variant) -> Row:
    key = variant.key
    teacher = scores.teacher(key.task.dataset)
    theirs = teacher and teacher.cost("serving_flops")
    ours = variant.cost("serving_flops")
    ratio = number(theirs / ours if ours and theirs else None, _one_over)
    return {
        "data set": formats.task(key.task),
        "method": formats.method(key.recipe, with_labels=True),
        "model": formats.student(key.student),
        "data": number(key.fraction, formats.fraction),
        "pairs": number(variant.cost("train_pairs"), "{:.0f}".format),
        "train FLOPs": number(variant.cost("train_flops"), formats.large),
        "device seconds": number(variant.cost("device_seconds"), formats.significant),
        "serving FLOPs per answer": number(ours, formats.large),
        "of the teacher's": missing("is the teacher") if teacher is variant else ratio,
    }


def _one_over(ratio: float) -> str:
    return f"1/{formats.significant(ratio)}"


def runs(data: ReportData) -> Section:
    """The accuracy of each run, and runs without one."""
    rows: list[Row] = []
    for key, variant in data.scores.variants.items():
        for line in variant.lines:
            result = line.result
            scored = data.predictions.of(line)
            rows.append(
                {
                    "run": line.run,
                    "data set": formats.task(key.task),
                    "method": formats.method(key.recipe, with_labels=True),
                    "model": key.student.model,
                    "data": number(key.fraction, formats.fraction),
                    "seed / data seed": number(f"{result.seed} / {result.data_seed}"),
                    "split": result.split,
                    "step": number(result.step),
                    "accuracy": number(result.accuracy, formats.percent),
                    "examples": number(result.n),
                    "predictions": missing(scored) if isinstance(scored, str) else "read",
                }
            )
    blocks: list[Block] = [Table("The accuracies behind all tables", rows)] if rows else []
    without = [
        *(f"{name}: no result yet" for name in data.scores.runs.empty),
        *(
            f"{name}: no step is both selected on validation and scored on the split that the "
            "tables show for its data set"
            for name in data.scores.unselected
        ),
    ]
    if without:
        blocks += [Paragraph("Runs that are in no table above:"), Bullets(without)]
    return Section("runs", "Every run", blocks)


def notes() -> Section:
    """How the numbers were made."""
    items = [
        "Accuracies come from each run's results.jsonl; tests and trivial baselines from its "
        "predictions.jsonl.",
        "A variant is the runs with the same data set, training split, model, start, method, "
        "labels, rationales, triage, added inputs, fraction and all other settings that can change "
        "a result; they differ only in SEED or DATA_SEED.",
        "“Not run” means that this report read no such run.",
        f"Statistics: scipy ({PERMUTATIONS} permutations, {RESAMPLES} resamples, fixed generator) "
        "and statsmodels (exact McNemar, Holm). A permutation p is never below "
        f"{2 / (PERMUTATIONS + 1):.4f}, which Holm's correction multiplies by up to the number of "
        "tests. The same results give the same report, byte for byte.",
        f"The paper's numbers: Tables 1 and 2; labels needed: {paper.LABELS_NEEDED_SOURCE}; "
        f"smallest student: {paper.SMALLEST_SOURCE}; teacher: {paper.TEACHER_SOURCE}.",
    ]
    return Section("notes", "How these numbers were made", [Bullets(items)])
