import itertools
import math

import numpy as np
import pytest

from stepdistill_jax.report import statistics
from stepdistill_jax.report.statistics import Crossing


def test_mean_and_standard_error_by_hand():
    # Mean 3, squared deviations 4 + 1 + 9 = 14, variance 7, over 3 seeds: sqrt(7 / 3).
    mean, error = statistics.mean_error([1.0, 2.0, 6.0])
    assert mean == 3
    assert error == pytest.approx(math.sqrt(7 / 3))
    assert statistics.mean_error([0.5]) == (0.5, None)


def enumerated(differences):
    """p of the mean difference by all sign flips."""
    seen = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in flips]
    return np.mean([abs(value) >= seen - 1e-12 for value in sums])


@pytest.mark.parametrize(
    "differences",
    [
        (0.5, 1.0, -0.5, 1.0, 0.5, 0.5, 1.0),
        (1.0, -1.0, 0.5, 0.0, 0.0),
        (1 / 3, 2 / 3, 2 / 3, 1.0, -1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 1.0),
    ],
)
def test_sign_flips_of_few_examples_are_exact(differences):
    assert statistics.sign_flip(np.array(differences)) == pytest.approx(enumerated(differences))


def test_equal_methods_have_p_1():
    assert statistics.sign_flip(np.zeros(50)) == 1


def test_one_run_each_takes_mcnemar():
    # 9 examples that the first alone gets, 2 that the second alone gets, 30 both, 4 neither:
    # p = 2 * P(X <= 2), X binomial of 11 fair draws, = 2 * (1 + 11 + 55) / 2048.
    first = np.array([1] * 9 + [0] * 2 + [1] * 30 + [0] * 4, bool)
    second = np.array([0] * 9 + [1] * 2 + [1] * 30 + [0] * 4, bool)
    test = statistics.paired_test(np.arange(45), first, second)
    assert test.name == statistics.MCNEMAR_TEST
    assert test.p == pytest.approx(134 / 2048)
    assert test.difference == pytest.approx(7 / 45)
    assert test.low < 7 / 45 < test.high
    assert test.examples == 45


def test_seeds_of_one_example_are_averaged_before_the_test():
    # Two seeds of four examples; differences of means 1, 0.5, 0, -0.5.
    examples = np.array([3, 5, 7, 9, 3, 5, 7, 9])
    first = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
    second = np.array([0, 1, 0, 1, 0, 0, 1, 0], bool)
    test = statistics.paired_test(examples, first, second)
    assert test.name == statistics.PERMUTATION_TEST
    assert test.examples == 4
    assert test.difference == pytest.approx(0.25)
    assert test.p == pytest.approx(enumerated((1, 0.5, -0.5)))


def test_interval_of_a_difference_covers_what_theory_says():
    # 600 differences of standard deviation s: mean +- 1.96 s / sqrt(600).
    rng = np.random.default_rng(3)
    first, second = rng.random(600) < 0.6, rng.random(600) < 0.5
    test = statistics.paired_test(np.arange(600), first, second)
    half = 1.96 * (first.astype(float) - second).std() / math.sqrt(600)
    assert test.low == pytest.approx(test.difference - half, abs=0.006)
    assert test.high == pytest.approx(test.difference + half, abs=0.006)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03 times 3, 2, 1, never descending: 0.03, 0.04, 0.04.
    assert statistics.holm([0.02, 0.03, 0.01]) == pytest.approx([0.04, 0.04, 0.03])
    assert statistics.holm([]) == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.5, Crossing(0.375)),
        (0.6, Crossing(0.5)),
        (0.65, Crossing(0.75)),
        (0.7, Crossing(1.0)),
        (0.3, Crossing(0.25, at_most=True)),
        (0.8, Crossing(None)),
    ],
)
def test_crossing_between_the_fractions_that_were_run(target, expected):
    found = statistics.crossing({1.0: 0.7, 0.25: 0.4, 0.5: 0.6}, target)
    assert found.at_most == expected.at_most
    assert found.fraction == (expected.fraction and pytest.approx(expected.fraction))


def test_the_first_crossing_counts_where_a_curve_falls_again():
    curve = {0.25: 0.4, 0.5: 0.8, 0.75: 0.5, 1.0: 0.9}
    assert statistics.crossing(curve, 0.6).fraction == pytest.approx(0.375)


def test_interval_of_a_crossing_lies_between_the_seeds_own():
    low, high = {0: 0.25, 1: 0.2, 2: 0.0}, {0: 1.0, 1: 0.85, 2: 0.75}
    ends = statistics.crossing_interval({0.25: low, 1.0: high}, {0: 0.5, 1: 0.5, 2: 0.5})
    own = [
        statistics.crossing({0.25: low[seed], 1.0: high[seed]}, 0.5).fraction for seed in range(3)
    ]
    assert min(own) - 1e-9 <= ends[0].fraction < ends[1].fraction <= max(own) + 1e-9


def test_interval_that_reaches_beyond_the_data_says_so():
    curve = {0.5: {0: 0.4, 1: 0.1}, 1.0: {0: 0.9, 1: 0.2}}
    low, high = statistics.crossing_interval(curve, {0: 0.5, 1: 0.5})
    assert low.fraction is not None
    assert high == Crossing(None)


def test_one_seed_has_no_interval():
    assert statistics.crossing_interval({0.5: {0: 0.4}, 1.0: {0: 0.6}}, {0: 0.5}) is None
