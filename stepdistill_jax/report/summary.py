"""The paper's question in one table: which method, with how many labels, against which teacher."""

from __future__ import annotations

from collections.abc import Sequence

from stepdistill_jax.report import formats
from stepdistill_jax.report.comparisons import ReportData
from stepdistill_jax.report.curves import CurveSet, curve_sets
from stepdistill_jax.report.document import Entry, Paragraph, Row, Section, Table, missing, number
from stepdistill_jax.report.fractions import is_above_trivial, needed_labels, trivial_accuracy
from stepdistill_jax.report.variants import Variant
from stepdistill_jax.spec import TEACHER

_METHOD = "step_by_step"


def summary(data: ReportData) -> Section:
    """Step-by-step against standard finetuning on all data, its control and trivial baseline."""
    rows = [_row(data, curves) for curves in curve_sets(data.scores, several=False)]
    if not rows:
        text = "No student has a step that was selected on validation."
        return Section("summary", "In short", [Paragraph(text)])
    text = (
        "Accuracy on all training data in percent: mean ± standard error over seeds (number of "
        "seeds). Difference: step-by-step minus standard, in percentage points. The trivial "
        "baseline almost ignores the input. Shuffled rationales are a control: each one comes from "
        "another example. Labels needed: the fraction of the labels at which step-by-step reaches "
        "the accuracy of standard on all labels. Other methods and all intervals follow below."
    )
    table = Table("Step-by-step against standard finetuning, all data", rows)
    return Section("summary", "In short", [Paragraph(text), table])


def _row(data: ReportData, curves: CurveSet) -> Row:
    variants = [variant for variants in curves.variants.values() for variant in variants]
    method = curves.on_all_data(_METHOD, TEACHER)
    difference, p = _difference(data, method)
    return {
        "data and model": formats.data_and_model(variants[0].key),
        "trivial baseline": number(
            trivial_accuracy(data, variants), formats.percent, "no predictions"
        ),
        "standard": formats.accuracy(curves.baseline),
        "step-by-step": formats.accuracy(method),
        "shuffled rationales": formats.accuracy(curves.on_all_data(_METHOD, "shuffled")),
        "difference": difference,
        "p after Holm": p,
        "labels needed": _labels(data, curves.baseline, curves.of(_METHOD, TEACHER)),
        "few-shot teacher": formats.accuracy(data.scores.teacher(curves.task.dataset)),
    }


def _difference(data: ReportData, variant: Variant | None) -> tuple[Entry, Entry]:
    for comparison in data.comparisons:
        if comparison.variant is variant:
            test = comparison.test
            return (
                number(test.difference if test else None, formats.points, comparison.remark),
                number(comparison.adjusted, formats.p_value, "not tested"),
            )
    return formats.NOT_RUN, formats.NOT_RUN


def _labels(data: ReportData, baseline: Variant | None, curve: Sequence[Variant]) -> Entry:
    if baseline is not None and is_above_trivial(data, baseline) is False:
        return missing("standard is at the trivial baseline")
    if len(curve) < 2:
        return missing("one fraction run" if curve else "not run")
    return needed_labels(data, baseline, curve)[0]
