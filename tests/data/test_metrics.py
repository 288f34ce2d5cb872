"""Scoring: what counts as right, and what is an error of the user's data."""

import dataclasses
import subprocess
import sys

import pytest

from stepdistill_jax.data.metrics import METRICS, accuracy, correct
from stepdistill_jax.data.sources import ColumnConfig
from stepdistill_jax.spec import InputError


def test_exact_ignores_surrounding_space_only():
    assert correct("exact", " neutral\n", "neutral")
    assert not correct("exact", "Neutral", "neutral")
    assert not correct("exact", "neutral.", "neutral")


def test_equation_compares_values_exactly():
    assert correct("equation", "(84 / 2)", "( 84.0 / 2.0 )")
    assert correct("equation", "42", "( 84.0 / 2.0 )")
    assert correct("equation", "( 1 / 3 ) * 3", "1")
    assert not correct("equation", "( 2 / 84 )", "( 84.0 / 2.0 )")


@pytest.mark.parametrize("prediction", ["", "some - 551", "9**9**9", "(" * 10_000, "1 / 0"])
def test_a_prediction_without_a_value_is_wrong(prediction):
    assert not correct("equation", prediction, "( 84.0 / 2.0 )")


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("4724", "4,724", True),
        ("$4,724.00", "4724", True),
        ("12 €", "12", True),
        ("50%", "0.5", True),
        ("30 * 50%", "15", True),
        ("1,234,567 - 1", "1234566", True),
        # 50 and 50% are not the same; 12,34 has no certain reading; 5 % 3 may be a remainder.
        ("50", "50%", False),
        ("12,34", "1234", False),
        ("1,2345", "12345", False),
        ("5 % 3", "2", False),
        ("5 $ 3", "53", False),
    ],
)
def test_separators_currency_and_per_cent_are_read_where_they_are_certain(prediction, gold, right):
    assert correct("equation", prediction, gold) is right


def test_a_gold_label_without_a_value_is_an_input_error():
    with pytest.raises(InputError, match=r"'x \+ 1': not an arithmetic expression \(name"):
        correct("equation", "1", "x + 1")


def test_accuracy_and_its_standard_error():
    result = accuracy("exact", ["a", "b", "c", "d"], ["a", "b", "c", "x"])
    assert (result.n, result.accuracy) == (4, 0.75)
    assert result.stderr == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert accuracy("exact", ["a"], ["a"]).stderr == 0


def test_nothing_to_score_and_unequal_lengths_are_errors():
    with pytest.raises(InputError, match="no examples to score"):
        accuracy("exact", [], [])
    with pytest.raises(ValueError, match="is longer than"):
        accuracy("exact", ["a"], ["a", "b"])


def test_every_choice_of_metric_is_a_function():
    (metric,) = (f for f in dataclasses.fields(ColumnConfig) if f.name == "metric")
    assert list(metric.metadata["choices"]) == list(METRICS)


def test_needs_no_jax():
    code = "import sys; sys.modules['jax'] = None; import stepdistill_jax.data.metrics"
    subprocess.run([sys.executable, "-c", code], check=True)
