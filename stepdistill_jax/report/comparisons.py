"""Every method against standard finetuning on the same data and examples."""

from __future__ import annotations

import dataclasses

import numpy as np

from stepdistill_jax.report.predictions import Predictions
from stepdistill_jax.report.runs import Runs
from stepdistill_jax.report.statistics import PairedTest, holm, paired_test
from stepdistill_jax.report.trivial_baseline import TrivialBaseline
from stepdistill_jax.report.variants import Scores, Variant, collect


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method and its baseline.

    Attributes:
        variant: of the method.
        baseline: same task, student, labels and fraction; None if it was not run.
        test: None if nothing could be tested.
        seeds: number of seeds for which both have predictions.
        adjusted: p of the test after Holm's correction over the report.
        remark: why there is no test, or what it leaves out; "" = nothing is left out.
    """

    variant: Variant
    baseline: Variant | None
    test: PairedTest | None
    seeds: int
    adjusted: float | None
    remark: str


@dataclasses.dataclass(frozen=True)
class ReportData:
    """The data of all sections of a report."""

    scores: Scores
    predictions: Predictions
    comparisons: tuple[Comparison, ...]

    def trivial_baselines(self, variant: Variant) -> list[TrivialBaseline | None]:
        """That of each line's test set; None without predictions."""
        return [self.predictions.trivial_baseline(line) for line in variant.lines]


def analyze(runs: Runs) -> ReportData:
    """Groups results into variants and tests each against its baseline.

    Raises:
        InputError: see `collect`, or a line of predictions is damaged.
    """
    scores, predictions = collect(runs), Predictions()
    comparisons = [
        _compare(variant, scores.baseline(variant.key), predictions)
        for variant in scores.students
        if not variant.key.recipe.is_baseline
    ]
    adjusted = iter(holm([c.test.p for c in comparisons if c.test is not None]))
    corrected = (
        c if c.test is None else dataclasses.replace(c, adjusted=next(adjusted))
        for c in comparisons
    )
    return ReportData(scores, predictions, tuple(corrected))


def _compare(variant: Variant, baseline: Variant | None, predictions: Predictions) -> Comparison:
    if baseline is None:
        return Comparison(variant, None, None, 0, None, "baseline not run")
    shared = [seed for seed in variant.seeds if seed in baseline.seeds]
    if not shared:
        return Comparison(variant, baseline, None, 0, None, "no seed in common")
    examples, first, second = [], [], []
    remarks: dict[str, None] = {}
    for seed in shared:
        ours, theirs = (predictions.of(side.seeds[seed]) for side in (variant, baseline))
        if isinstance(ours, str) or isinstance(theirs, str):
            for side, scored in ((variant, ours), (baseline, theirs)):
                if isinstance(scored, str):
                    remarks[f"{side.seeds[seed].run}: {scored}"] = None
            continue
        # Only within one seed's data: elsewhere the same id may name another example.
        common, at, other = np.intersect1d(ours.examples, theirs.examples, return_indices=True)
        if not len(common):
            remarks[f"seed {seed[0]}: no example in common"] = None
            continue
        examples.append(common)
        first.append(ours.correct[at])
        second.append(theirs.correct[other])
    remark = "; ".join(remarks)
    if not examples:
        return Comparison(variant, baseline, None, 0, None, remark)
    test = paired_test(*(np.concatenate(part) for part in (examples, first, second)))
    return Comparison(variant, baseline, test, len(examples), None, remark)
