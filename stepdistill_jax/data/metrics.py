"""How a prediction is scored against the gold label: numpy and plain Python only."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.spec import InputError

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_CURRENCY = re.compile(r"[$€£¥₹]\s*(?=[\d.])|(?<=\d)\s*[$€£¥₹](?!\s*[\w.])")
# Not a remainder, as in 5 % 3.
_PER_CENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%(?=\s*(?:[-+*/)]|$))")


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of correct predictions.

    Attributes:
        n: predictions scored.
        accuracy: in [0, 1].
        stderr: binomial standard error ``sqrt(p (1 - p) / n)`` over the examples, not over seeds.
    """

    n: int
    accuracy: float
    stderr: float


def exact(prediction: str, gold: str) -> bool:
    """Equal texts apart from surrounding white space, as the paper's code compares labels."""
    return prediction.strip() == gold.strip()


def equation(prediction: str, gold: str) -> bool:
    """Equal values of two equations, as exact fractions; a prediction without a value is wrong.

    Raises:
        InputError: the gold label has no value.
    """
    target = _gold_value(gold)
    try:
        return _value(prediction) == target
    except EquationError:
        return False


def check_gold(metric: str, gold: str) -> None:
    """Checks that predictions can be compared with a gold label.

    Raises:
        InputError: METRIC is equation, and it has no value.
    """
    if metric == "equation":
        _gold_value(gold)


def _gold_value(gold: str) -> Fraction:
    try:
        return _value(gold)
    except EquationError as error:
        raise InputError(
            f"gold label {gold!r:.80}: not an arithmetic expression ({error.reason}). Fix the "
            "data, or set METRIC='exact'."
        ) from error


def _value(text: str) -> Fraction:
    """As `equation.evaluate`, after thousands separators, currency and per cent: 4,724 $5 50%."""
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return evaluate(_PER_CENT.sub(r"(\1/100)", _CURRENCY.sub("", text)))


METRICS: dict[str, Callable[[str, str], bool]] = {"exact": exact, "equation": equation}


def correct(metric: str, prediction: str, gold: str) -> bool:
    """Whether `prediction` counts as right under `metric`, a key of `METRICS`."""
    return METRICS[metric](prediction, gold)


def accuracy(metric: str, predictions: Sequence[str], golds: Sequence[str]) -> Accuracy:
    """The share of `predictions` that are correct, with its standard error.

    Raises:
        InputError: nothing to score.
        ValueError: the two differ in length.
    """
    if not golds:
        raise InputError("The split has no examples to score. Supply some, or change EVAL_SPLITS.")
    pairs = zip(predictions, golds, strict=True)
    right = np.array([correct(metric, prediction, gold) for prediction, gold in pairs])
    share = float(right.mean())
    return Accuracy(len(golds), share, float(np.sqrt(share * (1 - share) / len(golds))))
