"""Self-consistency (Wang et al. 2023, arXiv 2203.11171): one annotation from several samples.

The method keeps the label with the most votes. We also keep a rationale: of the samples with that
label, the one that shares the most words with the others (a medoid).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.data.metrics import correct
from stepdistill_jax.records import Annotation, Example, ParseFailure
from stepdistill_jax.spec import InputError

Outcome = Annotation | ParseFailure


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One example with its annotation, after voting and hints.

    Attributes:
        outcome: the annotation, or why there is none.
        samples: responses without a hint, failures included.
        agreeing: of those, the ones with the kept label.
        hinted: the rationale was written with the gold label given.
        unhinted: the outcome before the hint; equal to `outcome` without one.
    """

    example: Example
    outcome: Annotation | ParseFailure
    samples: int
    agreeing: int
    hinted: bool
    unhinted: Annotation | ParseFailure


def annotate(
    example: Example,
    samples: Sequence[Outcome],
    hint: Outcome | None,
    metric: str,
) -> Annotated:
    """The annotation of one example.

    Args:
        samples: parsed responses, at least one, in the order of their numbers.
        hint: the parsed response with the gold label given; used only where it arrives at that
            label, and with the gold label as the data writes it.
    """
    outcome, agreeing = vote(samples, metric)
    kept = outcome
    hinted = hint is not None and is_right(example, hint, metric) and bool(hint.rationale.strip())
    if hinted:
        assert hint is not None
        assert example.label is not None
        kept = Annotation(example.id, hint.rationale, example.label)
    return Annotated(example, kept, len(samples), agreeing, hinted, outcome)


def is_right(example: Example, outcome: Outcome, metric: str) -> bool:
    """Whether an outcome has the gold label; never where there is none."""
    if example.label is None or not isinstance(outcome, Annotation):
        return False
    try:
        return correct(metric, outcome.label, example.label)
    except InputError as error:
        raise InputError(f"{example.where}: {error}") from error


def vote(samples: Sequence[Outcome], metric: str) -> tuple[Outcome, int]:
    """The chosen sample, and the number of samples with its label.

    Ties go to the first label, and among rationales to the first. Where no sample has a label, the
    first failure is chosen, and the number is 0.

    Args:
        samples: at least one, in the order of their numbers.
        metric: with ``equation`` labels of equal value agree: (3 + 4) and 7.
    """
    same = _VALUE_OF[metric]
    groups: dict[object, list[Annotation]] = {}
    for sample in samples:
        if isinstance(sample, Annotation):
            groups.setdefault(same(sample.label), []).append(sample)
    if not groups:
        return samples[0], 0
    # max returns the first of equals, and groups are in the order of their first samples.
    agreeing = max(groups.values(), key=len)
    return agreeing[_medoid([sample.rationale for sample in agreeing])], len(agreeing)


def _value(label: str) -> object:
    try:
        return evaluate(label)
    except EquationError:
        return label.strip()


_VALUE_OF: dict[str, Callable[[str], object]] = {"exact": str.strip, "equation": _value}


def _medoid(texts: Sequence[str]) -> int:
    """Index of the text whose words overlap most with the others' (mean Jaccard index)."""
    words = [frozenset(re.findall(r"\w+", text.casefold())) for text in texts]

    def similarity(place: int) -> float:
        shares = (_jaccard(words[place], other) for i, other in enumerate(words) if i != place)
        # Rounded, so that equal sums in another order stay equal.
        return round(sum(shares), 12)

    return max(range(len(texts)), key=similarity)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0
