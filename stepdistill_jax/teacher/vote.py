"""Self-consistency (Wang et al. 2023, arXiv 2203.11171): one answer out of several samples.

The label with most votes is kept, and of the samples that agree on it the rationale that shares
most words with the others' (a medoid), where the method itself keeps labels alone.
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
    """One row with its teacher's answer, after voting and hints.

    Attributes:
        example: the row.
        outcome: the rationale and label that are kept, or why there are none.
        samples: answers that were read, those that failed included; hints not.
        agreeing: of those, the ones whose label is the kept one.
        hinted: the rationale was written with the gold label given.
        unhinted: what was made of the row before the hint; the same as `outcome` without one.
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
    """What is kept of one row.

    Args:
        example: the row.
        samples: its answers as parsed, at least one, in the order of their numbers.
        hint: the answer that was written with the gold label given; kept only where it comes to
            that label, and with that label.
        metric: what makes two labels the same.
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
    """Whether an answer comes to the gold label; never where there is none."""
    if example.label is None or not isinstance(outcome, Annotation):
        return False
    try:
        return correct(metric, outcome.label, example.label)
    except InputError as error:
        raise InputError(f"{example.where}: {error}") from error


def vote(samples: Sequence[Outcome], metric: str) -> tuple[Outcome, int]:
    """The sample that is kept, and how many agree with it on the label.

    Ties go to the label that was met first, and among rationales to the first. Where no sample has
    a label, the first failure is kept, and none agree.

    Args:
        samples: at least one, in the order of their numbers.
        metric: ``equation`` lets labels of equal value agree, (3 + 4) with 7.
    """
    same = _VALUE_OF[metric]
    groups: dict[object, list[Annotation]] = {}
    for sample in samples:
        if isinstance(sample, Annotation):
            groups.setdefault(same(sample.label), []).append(sample)
    if not groups:
        return samples[0], 0
    # max keeps the first of equals, and groups are in the order of meeting.
    agreeing = max(groups.values(), key=len)
    return agreeing[_medoid([sample.rationale for sample in agreeing])], len(agreeing)


def _value(label: str) -> object:
    try:
        return evaluate(label)
    except EquationError:
        return label.strip()


_VALUE_OF: dict[str, Callable[[str], object]] = {"exact": str.strip, "equation": _value}


def _medoid(texts: Sequence[str]) -> int:
    """The text whose words overlap most with those of the others (mean Jaccard index)."""
    words = [frozenset(re.findall(r"\w+", text.casefold())) for text in texts]

    def likeness(place: int) -> float:
        shares = (_jaccard(words[place], other) for i, other in enumerate(words) if i != place)
        # Rounded: of two equal sums in another order neither is larger.
        return round(sum(shares), 12)

    return max(range(len(texts)), key=likeness)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0
