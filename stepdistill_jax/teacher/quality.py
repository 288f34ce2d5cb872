"""How good a teacher's annotations are, in numbers, and which examples a person should check.

Everything is a pure function of the annotated examples.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stepdistill_jax.data import audit
from stepdistill_jax.data.metrics import correct
from stepdistill_jax.data.subsets import content_key
from stepdistill_jax.records import Annotation, ParseFailure
from stepdistill_jax.teacher.text_measures import (
    input_overlap,
    longest_copy,
    repetition,
    unigram_f1,
    words,
)
from stepdistill_jax.teacher.vote import Annotated

# Outcomes beside the parser's reasons for a failure.
PARSED, REPAIRED = "parsed", "parsed after repair"
LABELLED = frozenset({PARSED, REPAIRED})

# Why an example is worth a check, and the weight of each reason.
NOT_READ = "not read"
EMPTY = "no rationale"
REPEATS = "repeats itself"
COPIED = "copies the input"
UNRELATED = "shares no word with the input"
OTHER_CHOICE = "names another choice and not its own label"
WRONG = "label is not the gold one"
IDENTICAL = "another row has the same rationale"
SHORT = "hardly a word"
LONG = "far longer than the others"
DIVIDED = "samples disagree"
BENT = "label repaired"
WEIGHTS: dict[str, float] = {
    NOT_READ: 3, EMPTY: 3, REPEATS: 3, COPIED: 2, UNRELATED: 2, OTHER_CHOICE: 2, WRONG: 2,
    IDENTICAL: 1.5, SHORT: 1.5, LONG: 1, DIVIDED: 1, BENT: 0.5,
}  # fmt: skip

# From this fraction of repeated trigrams on, a rationale repeats itself.
_REPEATED = 0.3
# A common run of this many words that is at least half of the rationale is a copy.
_COPIED_WORDS = 10
_FEW_WORDS = 3
# A long rationale has more than this many medians, and more than this many words.
_MEDIANS, _MANY_WORDS = 4, 60


@dataclasses.dataclass(frozen=True)
class LabelAccuracy:
    """Accuracy of the labels without hints.

    Attributes:
        rows: examples with a gold label.
        share: fraction of them that is right; a failure counts as wrong.
        stderr: binomial, of `share`.
        of_parsed: fraction that is right of those with a label; None without labels.
    """

    rows: int
    share: float
    stderr: float
    of_parsed: float | None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Self-consistency of several samples.

    Attributes:
        rows: examples with several samples and a label.
        mean: fraction of an example's samples with the kept label, mean over examples.
        unanimous: fraction of examples where all samples have it.
    """

    rows: int
    mean: float
    unanimous: float


@dataclasses.dataclass(frozen=True)
class Human:
    """Rationales compared with human explanations of the same examples.

    Attributes:
        rows: examples with both.
        f1: unigram F1, mean over examples.
        f1_of_others: the same with the explanation of another example, as a chance level; None of
            a single example.
    """

    rows: int
    f1: float
    f1_of_others: float | None


@dataclasses.dataclass(frozen=True)
class Rationales:
    """Statistics of the kept rationales; fractions are in [0, 1].

    Attributes:
        rows: rationales of at least one word, those of parse failures included.
        words_least, words_median, words_95, words_most: length quantiles, nearest rank.
        input_overlap: fraction of content words that the input has too, mean over rationales.
        copied_median, copied_most: words of the longest run that input and rationale share.
        states_label: fraction that states its label (`audit.states`); None without labels.
        states_gold: fraction that states the gold label; None without gold labels.
        repetition: fraction of repeated trigrams, mean over rationales.
        identical: rationales that occur more than once, white space and case aside.
        human: None where no example has a human explanation.
    """

    rows: int
    words_least: int
    words_median: int
    words_95: int
    words_most: int
    input_overlap: float
    copied_median: int
    copied_most: int
    states_label: float | None
    states_gold: float | None
    repetition: float
    identical: int
    human: Human | None


@dataclasses.dataclass(frozen=True)
class Assessment:
    """All numbers of one unit.

    Attributes:
        rows: examples.
        usable: examples with a label and a rationale.
        outcomes: `PARSED`, `REPAIRED` or the parser's reason -> examples, before any hint.
        accuracy: None without gold labels.
        hints_asked, hints_kept: examples asked again with the gold label given, and those whose
            new rationale is kept.
        agreement: None where no example has several samples.
        rationales: None without rationales.
        suspicions: key of `WEIGHTS` -> examples.
    """

    rows: int
    usable: int
    outcomes: Mapping[str, int]
    accuracy: LabelAccuracy | None
    hints_asked: int
    hints_kept: int
    agreement: Agreement | None
    rationales: Rationales | None
    suspicions: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Measures:
    """Of one rationale."""

    words: int
    overlap: float
    copied: int
    repeated: float
    states_label: bool | None
    states_gold: bool | None
    names_other: bool


def assess(rows: Sequence[Annotated], metric: str, *, hints_asked: int = 0) -> Assessment:
    """All numbers of one unit; `metric` is a key of `data.metrics.METRICS`.

    Raises:
        InputError: a gold label has no value under `metric`.
    """
    measures = [_measure(row, metric) for row in rows]
    suspicions = collections.Counter(
        itertools.chain.from_iterable(_suspicions(rows, measures, metric))
    )
    outcomes = collections.Counter(_outcome(row.unhinted) for row in rows)
    return Assessment(
        rows=len(rows),
        usable=sum(bool(_label(row.outcome) and words(row.outcome.rationale)) for row in rows),
        outcomes=dict(sorted(outcomes.items(), key=lambda item: (-item[1], item[0]))),
        accuracy=_accuracy(rows, metric),
        hints_asked=hints_asked,
        hints_kept=sum(row.hinted for row in rows),
        agreement=_agreement(rows),
        rationales=_rationales(rows, measures),
        suspicions={reason: suspicions[reason] for reason in WEIGHTS if suspicions[reason]},
    )


def worst(
    rows: Sequence[Annotated], metric: str, raw: Mapping[str, str | None], maximum: int = 50
) -> list[dict[str, Any]]:
    """Examples to check, the most suspicious first, for ``worst_<unit>.jsonl``.

    The score of an example is the sum of the `WEIGHTS` of its reasons. Where there are more than
    `maximum`, each main reason gives its worst ones in turn, so the most frequent hides no other.

    Args:
        raw: `Example.id` -> text of the response.

    Returns:
        Lines ``{"id", "reasons", "score", "input", "gold", "label", "rationale", "raw",
        "hinted"?}``; gold, label and raw may be None. For a hinted example, rationale and raw are
        the response with the gold label given, and label is the teacher's own.
    """
    measures = [_measure(row, metric) for row in rows]
    suspicions = [*_suspicions(rows, measures, metric)]
    queues: dict[str, list[tuple[float, int]]] = collections.defaultdict(list)
    for place, reasons in enumerate(suspicions):
        if reasons:
            score = sum(WEIGHTS[reason] for reason in reasons)
            queues[max(reasons, key=WEIGHTS.__getitem__)].append((-score, place))
    in_turn = itertools.zip_longest(*(sorted(queues[name]) for name in WEIGHTS if name in queues))
    chosen = [item for turn in in_turn for item in turn if item is not None][:maximum]
    lines = []
    for score, place in sorted(chosen):
        row = rows[place]
        failure = row.outcome.reason if isinstance(row.outcome, ParseFailure) else ""
        lines.append(
            {
                "id": row.example.id,
                "reasons": [
                    f"{reason}: {failure}" if reason == NOT_READ and failure else reason
                    for reason in suspicions[place]
                ],
                "score": -score,
                "input": row.example.input,
                "gold": row.example.label,
                "label": _label(row.unhinted) or None,
                "rationale": row.outcome.rationale,
                "raw": raw.get(row.example.id),
                **({"hinted": True} if row.hinted else {}),
            }
        )
    return lines


def _label(outcome: Annotation | ParseFailure) -> str:
    return outcome.label if isinstance(outcome, Annotation) else ""


def _outcome(outcome: Annotation | ParseFailure) -> str:
    if isinstance(outcome, ParseFailure):
        return outcome.reason
    return REPAIRED if outcome.repaired else PARSED


def _is_right(row: Annotated, metric: str) -> bool:
    label, gold = _label(row.unhinted), row.example.label
    return bool(label) and gold is not None and correct(metric, label, gold)


def _accuracy(rows: Sequence[Annotated], metric: str) -> LabelAccuracy | None:
    judged = [row for row in rows if row.example.label is not None]
    if not judged:
        return None
    right = sum(_is_right(row, metric) for row in judged)
    parsed = sum(bool(_label(row.unhinted)) for row in judged)
    share = right / len(judged)
    stderr = math.sqrt(share * (1 - share) / len(judged))
    return LabelAccuracy(len(judged), share, stderr, right / parsed if parsed else None)


def _agreement(rows: Sequence[Annotated]) -> Agreement | None:
    # The label of a hinted example was not voted for.
    voted = [row for row in rows if row.samples > 1 and not row.hinted and _label(row.outcome)]
    if not voted:
        return None
    shares = [row.agreeing / row.samples for row in voted]
    return Agreement(len(voted), float(np.mean(shares)), float(np.mean([s == 1 for s in shares])))


def _measure(row: Annotated, metric: str) -> _Measures:
    example, rationale, label = row.example, row.outcome.rationale, _label(row.outcome)
    states_label = audit.states(rationale, label, metric) if label else None
    states_gold = None
    if example.label is not None:
        states_gold = audit.states(rationale, example.label, metric)
    others = (choice for choice in example.choices if choice.strip() != label.strip())
    return _Measures(
        words=len(words(rationale)),
        overlap=input_overlap(rationale, example.input),
        copied=longest_copy(rationale, example.input),
        repeated=repetition(rationale),
        states_label=states_label,
        states_gold=states_gold,
        names_other=states_label is False
        and any(audit.states(rationale, choice, metric) for choice in others),
    )


def _suspicions(
    rows: Sequence[Annotated], measures: Sequence[_Measures], metric: str
) -> Iterator[list[str]]:
    """For each example the reasons why it is worth a check, in the order of `WEIGHTS`."""
    copies = collections.Counter(content_key(row.outcome.rationale) for row in rows)
    lengths = [each.words for each in measures if each.words]
    long = max(_MANY_WORDS, _MEDIANS * float(np.median(lengths)) if lengths else 0.0)
    for row, each in zip(rows, measures, strict=True):
        outcome = row.outcome
        has_own_label = bool(_label(outcome)) and not row.hinted
        holds = {
            NOT_READ: not _label(outcome),
            EMPTY: bool(_label(outcome)) and not each.words,
            REPEATS: each.repeated >= _REPEATED,
            COPIED: each.copied >= max(_COPIED_WORDS, each.words / 2),
            UNRELATED: each.words >= _FEW_WORDS and not each.overlap,
            OTHER_CHOICE: each.names_other,
            WRONG: has_own_label and row.example.label is not None and not _is_right(row, metric),
            IDENTICAL: bool(each.words) and copies[content_key(outcome.rationale)] > 1,
            SHORT: 0 < each.words < _FEW_WORDS,
            LONG: each.words > long,
            DIVIDED: has_own_label and row.samples > 1 and 2 * row.agreeing <= row.samples,
            BENT: isinstance(outcome, Annotation) and outcome.repaired,
        }
        yield [reason for reason in WEIGHTS if holds[reason]]


def _rationales(rows: Sequence[Annotated], measures: Sequence[_Measures]) -> Rationales | None:
    pairs = [(row, each) for row, each in zip(rows, measures, strict=True) if each.words]
    if not pairs:
        return None
    written = [each for _, each in pairs]
    copies = collections.Counter(content_key(row.outcome.rationale) for row, _ in pairs)
    lengths = [each.words for each in written]
    copied = [each.copied for each in written]
    return Rationales(
        rows=len(pairs),
        words_least=min(lengths),
        words_median=_quantile(lengths, 0.5),
        words_95=_quantile(lengths, 0.95),
        words_most=max(lengths),
        input_overlap=float(np.mean([each.overlap for each in written])),
        copied_median=_quantile(copied, 0.5),
        copied_most=max(copied),
        states_label=_share([each.states_label for each in written]),
        states_gold=_share([each.states_gold for each in written]),
        repetition=float(np.mean([each.repeated for each in written])),
        identical=sum(count for count in copies.values() if count > 1),
        human=_human([row for row, _ in pairs]),
    )


def _quantile(values: Sequence[int], q: float) -> int:
    return int(np.quantile(values, q, method="inverted_cdf"))


def _share(values: Sequence[bool | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _human(rows: Sequence[Annotated]) -> Human | None:
    texts = [
        (row.outcome.rationale, row.example.explanation)
        for row in rows
        if row.example.explanation and words(row.example.explanation)
    ]
    if not texts:
        return None
    f1 = [unigram_f1(rationale, explanation) for rationale, explanation in texts]
    others = zip(texts, texts[1:] + texts[:1], strict=True)
    chance = [unigram_f1(rationale, explanation) for (rationale, _), (_, explanation) in others]
    return Human(len(texts), float(np.mean(f1)), float(np.mean(chance)) if texts[1:] else None)
