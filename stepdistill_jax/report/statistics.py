"""Means over seeds, paired tests over examples, and where a curve reaches a value.

scipy and statsmodels do the work, with a fixed generator: equal input gives equal numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

_Seed = TypeVar("_Seed", bound=Hashable)

PERMUTATIONS = 9999
RESAMPLES = 1999
LEVEL = 0.95
# Resamples in memory at once: 16 MB with the largest test set.
_BATCH = 200

PERMUTATION_TEST = "sign-flip permutation"
MCNEMAR_TEST = "exact McNemar"


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error; a single value has no error (None)."""
    error = float(scipy.stats.sem(values)) if len(values) > 1 else None
    return float(np.mean(values)), error


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Two methods on the same examples.

    Attributes:
        difference: correctness of the first minus that of the second, mean over examples.
        low, high: its bootstrap interval at `LEVEL`.
        p: two-sided, for the hypothesis that these trained models are equally often right.
        examples: number of examples that both scored.
        name: of the test.
    """

    difference: float
    low: float
    high: float
    p: float
    examples: int
    name: str


def paired_test(examples: np.ndarray, first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Tests whether two methods are equally often right.

    Exact McNemar if every example was scored by one pair of runs; else the sign-flip permutation
    test of the examples' differences, each a mean over the seeds that scored it.

    Args:
        examples: int [m], m at least 1: number of the example of each (example, seed).
        first: bool [m], correctness of the first method.
        second: bool [m], correctness of the second method's run with the same seed.
    """
    _, inverse, counts = np.unique(examples, return_inverse=True, return_counts=True)
    differences = np.bincount(inverse, first.astype(float) - second.astype(float)) / counts
    if counts.max() == 1:
        table = np.histogram2d(first, second, bins=2, range=[[0, 1], [0, 1]])[0]
        name, p = MCNEMAR_TEST, float(mcnemar(table, exact=True).pvalue)
    else:
        name, p = PERMUTATION_TEST, sign_flip(differences)
    low, high = _interval(differences)
    return PairedTest(float(differences.mean()), low, high, p, len(differences), name)


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p for a mean difference of 0; exact if few examples differ."""
    # The sign of a difference of 0 does not matter.
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    test = scipy.stats.permutation_test(
        (differences,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=_BATCH,
        rng=np.random.default_rng(0),
    )
    return min(1.0, float(test.pvalue))


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval of the mean; an example keeps the predictions of both methods."""
    if len(differences) < 2:
        return float(differences[0]), float(differences[0])
    interval = scipy.stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values after Holm's correction."""
    if not p_values:
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where a curve over data fractions first reaches a value.

    Attributes:
        fraction: in (0, 1]; None if the curve does not reach the value.
        at_most: the smallest fraction already reaches it, so less data may be enough.
    """

    fraction: float | None
    at_most: bool = False


def crossing(curve: Mapping[float, float], target: float) -> Crossing:
    """The first fraction at which the linearly interpolated curve reaches `target`.

    Example: {0.25: 0.4, 0.5: 0.6, 1.0: 0.7} reaches 0.5 at 0.375 and 0.3 at (at most) 0.25; it
    does not reach 0.8.

    Args:
        curve: fraction -> accuracy, at least one.
    """
    fractions = sorted(curve)
    if curve[fractions[0]] >= target:
        return Crossing(fractions[0], at_most=True)
    for before, after in itertools.pairwise(fractions):
        low, high = curve[before], curve[after]
        if high >= target:
            return Crossing(before + (after - before) * (target - low) / (high - low))
    return Crossing(None)


def crossing_interval(
    curve: Mapping[float, Mapping[_Seed, float]], baseline: Mapping[_Seed, float]
) -> tuple[Crossing, Crossing] | None:
    """Bootstrap interval of the crossing at `LEVEL`, from resampling seeds.

    If all fractions and the baseline have the same seeds, seeds are drawn jointly.

    Args:
        curve: fraction -> seed -> accuracy.
        baseline: seed -> accuracy, whose mean is the target.

    Returns:
        The ends of the interval; None if a fraction or the baseline has only one seed.
    """
    fractions = sorted(curve)
    groups = [baseline, *(curve[fraction] for fraction in fractions)]
    if min(map(len, groups)) < 2:
        return None
    same = len({frozenset(group) for group in groups}) == 1
    order = sorted(baseline, key=repr)
    data = [[group[s] for s in order] if same else [*group.values()] for group in groups]
    # Quantiles need a number: anything beyond 1 means not reached.
    beyond = 2.0

    def statistic(target: np.ndarray, *points: np.ndarray) -> float:
        means = {f: float(np.mean(p)) for f, p in zip(fractions, points, strict=True)}
        return crossing(means, float(np.mean(target))).fraction or beyond

    interval = scipy.stats.bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        vectorized=False,
        paired=same,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = (_as_crossing(float(end), fractions[0]) for end in (interval.low, interval.high))
    return low, high


def _as_crossing(fraction: float, smallest: float) -> Crossing:
    return Crossing(None) if fraction > 1 else Crossing(fraction, fraction <= smallest)
