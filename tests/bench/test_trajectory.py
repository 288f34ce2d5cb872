import math

import numpy as np
import pytest

from stepdistill_jax.bench.trajectory import Step, agreement, distances


def test_difference_is_relative_to_theirs():
    step = Step(3, ours={"loss": 2.5}, theirs={"loss": 2.0, "of theirs alone": 1.0})
    assert step.difference("loss") == 0.25


def test_distances_of_each_parameter_and_of_all():
    initial = {"a": np.array([[1.0, 2.0]]), "b": np.array([5.0])}
    theirs = {"a": np.array([[4.0, 6.0]]), "b": np.array([5.0])}
    ours = {"a": np.array([[4.0, 6.5]]), "b": np.array([5.0])}
    a, b, whole = distances(initial, ours, theirs)
    assert (a.name, b.name, whole.name) == ("a", "b", "all")
    assert a.relative == pytest.approx(0.5 / math.sqrt(52))
    assert a.of_update == pytest.approx(0.5 / 5)
    assert (a.largest, a.largest_update) == (0.5, 4.0)
    # Neither trained it.
    assert (b.relative, b.of_update, b.largest) == (0, 0, 0)
    assert whole.relative == pytest.approx(0.5 / math.sqrt(52 + 25))
    assert whole.of_update == pytest.approx(0.5 / 5)


def test_a_parameter_that_only_one_of_them_trained_is_infinitely_far():
    initial = {"a": np.array([1.0])}
    (a, _) = distances(initial, ours={"a": np.array([1.5])}, theirs=initial)
    assert a.relative == 0.5
    assert a.of_update == math.inf


def test_agreement_is_measured_in_standard_errors():
    # Deviations 1 and 2, of three values each.
    seen = agreement([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert (seen.ours, seen.theirs) == (2.0, 4.0)
    assert seen.ours_error == pytest.approx(1 / math.sqrt(3))
    assert seen.theirs_error == pytest.approx(2 / math.sqrt(3))
    # -1, -2, -3.
    assert (seen.paired, seen.paired_error) == (-2.0, pytest.approx(1 / math.sqrt(3)))
    # They differ by 2, and the error of the difference is sqrt(5 / 3).
    assert not seen.within
    assert agreement([1.0, 2.0, 3.0], [1.0, 3.0, 5.0]).within
