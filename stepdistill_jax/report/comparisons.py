"""Every method against standard finetuning on the same data, on the same examples."""

from __future__ import annotations

import dataclasses

import numpy as np

from stepdistill_jax.report.predictions import Floor, Predictions
from stepdistill_jax.report.statistics import PairedTest, holm, paired_test
from stepdistill_jax.report.tables import Cell, Scores


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method and its baseline.

    Attributes:
        cell: of the method.
        baseline: of the same task, student, labels and fraction; None where it was not run.
        test: None where there is nothing to test.
        seeds: that both have, with predictions.
        adjusted: the test's p after Holm's correction over the report.
        remark: why there is no test, or what was left out of it; "" = all is in.
    """

    cell: Cell
    baseline: Cell | None
    test: PairedTest | None
    seeds: int
    adjusted: float | None
    remark: str


@dataclasses.dataclass(frozen=True)
class Material:
    """All that the sections of a report draw on."""

    scores: Scores
    predictions: Predictions
    comparisons: tuple[Comparison, ...]

    def floors(self, cell: Cell) -> list[Floor | None]:
        """The floor of each line's test set; None without predictions."""
        return [self.predictions.floor(line) for line in cell.lines]


def compare(scores: Scores, predictions: Predictions) -> tuple[Comparison, ...]:
    """Tests every setting but the baselines themselves.

    Raises:
        InputError: a line of predictions is damaged.
    """
    found = [
        _compare(cell, scores.baseline(cell.setting), predictions)
        for cell in scores.students
        if not cell.setting.recipe.is_baseline
    ]
    adjusted = iter(holm([c.test.p for c in found if c.test is not None]))
    return tuple(
        c if c.test is None else dataclasses.replace(c, adjusted=next(adjusted)) for c in found
    )


def _compare(cell: Cell, baseline: Cell | None, predictions: Predictions) -> Comparison:
    if baseline is None:
        return Comparison(cell, None, None, 0, None, "baseline not run")
    shared = [seed for seed in cell.seeds if seed in baseline.seeds]
    if not shared:
        return Comparison(cell, baseline, None, 0, None, "no seed in common")
    examples, first, second = [], [], []
    remarks: dict[str, None] = {}
    used = 0
    for seed in shared:
        ours, theirs = (predictions.of(side.seeds[seed]) for side in (cell, baseline))
        if isinstance(ours, str) or isinstance(theirs, str):
            for side, scored in ((cell, ours), (baseline, theirs)):
                if isinstance(scored, str):
                    remarks[f"{side.seeds[seed].run}: {scored}"] = None
            continue
        # Only the same example of the same seed's data: elsewhere an id may be another row's.
        common, at, other = np.intersect1d(ours.examples, theirs.examples, return_indices=True)
        if not len(common):
            remarks[f"seed {seed[0]}: no example in common"] = None
            continue
        used += 1
        examples.append(common)
        first.append(ours.correct[at])
        second.append(theirs.correct[other])
    remark = "; ".join(remarks)
    if not used:
        return Comparison(cell, baseline, None, 0, None, remark)
    test = paired_test(*(np.concatenate(part) for part in (examples, first, second)))
    return Comparison(cell, baseline, test, used, None, remark)
