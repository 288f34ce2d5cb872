"""How good a teacher's answers are, in numbers, and which rows somebody should look at.

Everything is a pure function of the rows.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stepdistill_jax.data import audit, metrics
from stepdistill_jax.records import Annotation, ParseFailure
from stepdistill_jax.teacher.text_measures import (
    input_overlap,
    longest_copy,
    repetition,
    unigram_f1,
    words,
)
from stepdistill_jax.teacher.vote import Annotated

# Outcomes of a row beside the parser's own reasons.
PARSED, REPAIRED = "parsed", "parsed after repair"

# Why a row is worth a look, and how much each reason counts.
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

# From this share of repeated trigrams on, a rationale repeats itself.
_REPEATED = 0.3
# A run of so many words that is at least half of the rationale is copied.
_COPIED_WORDS = 10
_FEW_WORDS = 3
# Longer than so many medians, and than so many words.
_MEDIANS, _MANY_WORDS = 4, 60


@dataclasses.dataclass(frozen=True)
class LabelAccuracy:
    """Labels against gold, of the answers without a hint.

    Attributes:
        rows: with a gold label.
        share: in [0, 1], of them right; a failure counts as wrong.
        stderr: binomial, of `share`.
        of_parsed: share that is right of those with a label; None where none has one.
    """

    rows: int
    share: float
    stderr: float
    of_parsed: float | None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Self-consistency of several samples.

    Attributes:
        rows: with several samples and a label that they voted for.
        mean: share of a row's samples that say the kept label, mean over rows.
        unanimous: share of rows where all do.
    """

    rows: int
    mean: float
    unanimous: float


@dataclasses.dataclass(frozen=True)
class Human:
    """Rationales beside people's explanations of the same rows.

    Attributes:
        rows: with both.
        f1: unigram F1 (that of ROUGE-1, without stemming), mean over rows.
        f1_of_others: the same with the explanation of another row in its place, as a level for
            what two texts of this kind share anyway; None of a single row.
    """

    rows: int
    f1: float
    f1_of_others: float | None


@dataclasses.dataclass(frozen=True)
class Rationales:
    """What the kept rationales are like; shares are in [0, 1].

    Attributes:
        rows: with a rationale of at least a word, those of failures included.
        words_least, words_median, words_95, words_most: its length, nearest rank.
        input_overlap: share of a rationale's content words that the input has too, mean over rows.
        copied_median, copied_most: words of the longest run that input and rationale share.
        states_label: share of rows with a label whose rationale states it (`audit.states`); None
            where no row has one.
        states_gold: the same of the gold label.
        repetition: share of trigrams that occurred before in the same rationale, mean over rows.
        identical: rows whose rationale another row has too, white space and case aside.
        human: None where no row has a human explanation.
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
    """One unit's rows.

    Attributes:
        rows: assessed.
        usable: of those, with a label and a rationale that are kept.
        outcomes: `PARSED`, `REPAIRED` or the parser's reason -> rows, before any hint.
        accuracy: None where no row has a gold label.
        hints_asked, hints_kept: rows asked again with the gold label given, and those whose
            rationale of then is kept.
        agreement: None where no row has several samples.
        rationales: None where there are none.
        suspicions: of `WEIGHTS` -> rows.
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
        """Plain data for JSON: the fields."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Texts:
    """What is measured of one kept rationale."""

    words: int
    overlap: float
    copied: int
    repeated: float
    states_label: bool | None
    states_gold: bool | None
    names_other: bool


def assess(rows: Sequence[Annotated], metric: str, *, hints_asked: int = 0) -> Assessment:
    """All numbers of one unit.

    Args:
        rows: with what was made of them.
        metric: the data set's, a key of `metrics.METRICS`.
        hints_asked: rows that were asked again with the gold label given.

    Raises:
        InputError: a gold label has no value under `metric`.
    """
    texts = [_measure(row, metric) for row in rows]
    found = collections.Counter(
        reason for reasons in _suspicions(rows, texts, metric) for reason in reasons
    )
    outcomes = collections.Counter(_outcome(row.unhinted) for row in rows)
    return Assessment(
        rows=len(rows),
        usable=sum(_is_usable(row) for row in rows),
        outcomes=dict(sorted(outcomes.items(), key=lambda item: (-item[1], item[0]))),
        accuracy=_accuracy(rows, metric),
        hints_asked=hints_asked,
        hints_kept=sum(row.hinted for row in rows),
        agreement=_agreement(rows),
        rationales=_rationales(rows, texts),
        suspicions={reason: found[reason] for reason in WEIGHTS if found[reason]},
    )


def worst(
    rows: Sequence[Annotated],
    metric: str,
    most: int = 50,
    *,
    raw: Callable[[str], str | None] | None = None,
) -> list[dict[str, Any]]:
    """Rows to look at, the most suspicious first, for ``worst_<unit>.jsonl``.

    A row's score is the sum of the `WEIGHTS` of its reasons. Where there are more rows than
    `most`, each main reason gives its worst ones in turn, lest the commonest hide all others.

    Args:
        rows: as for `assess`.
        metric: as for `assess`.
        most: lines at most.
        raw: `Example.id` -> what the teacher wrote; without it only failures have their text.

    Returns:
        Lines ``{"id", "reasons", "score", "input", "gold", "label", "rationale", "raw",
        "hinted"?}``; gold, label and raw may be None. Of a hinted row, rationale and raw are what
        was written with the gold label given, and label is the teacher's own, of before that.
    """
    texts = [_measure(row, metric) for row in rows]
    queues: dict[str, list[tuple[float, int]]] = collections.defaultdict(list)
    suspicions = [*_suspicions(rows, texts, metric)]
    for place, reasons in enumerate(suspicions):
        if reasons:
            score = sum(WEIGHTS[reason] for reason in reasons)
            queues[max(reasons, key=WEIGHTS.__getitem__)].append((-score, place))
    in_turn = itertools.zip_longest(*(sorted(queues[name]) for name in WEIGHTS if name in queues))
    chosen = [item for turn in in_turn for item in turn if item is not None][:most]
    lines = []
    for score, place in sorted(chosen):
        row = rows[place]
        lines.append(
            {
                "id": row.example.id,
                "reasons": [_told(reason, row) for reason in suspicions[place]],
                "score": -score,
                "input": row.example.input,
                "gold": row.example.label,
                "label": _label(row.unhinted) or None,
                "rationale": row.outcome.rationale,
                "raw": _raw(row, raw),
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


def _is_usable(row: Annotated) -> bool:
    return bool(_label(row.outcome) and words(row.outcome.rationale))


def _is_right(row: Annotated, metric: str) -> bool:
    label, gold = _label(row.unhinted), row.example.label
    return bool(label) and gold is not None and metrics.correct(metric, label, gold)


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
    # Of a hinted row the kept label is not the one that was voted for.
    voted = [row for row in rows if row.samples > 1 and not row.hinted and _label(row.outcome)]
    if not voted:
        return None
    shares = [row.agreeing / row.samples for row in voted]
    return Agreement(len(voted), float(np.mean(shares)), float(np.mean([s == 1 for s in shares])))


def _measure(row: Annotated, metric: str) -> _Texts:
    example, rationale, label = row.example, row.outcome.rationale, _label(row.outcome)
    own = audit.states(rationale, label, metric) if label else None
    others = (choice for choice in example.choices if choice.strip() != label.strip())
    return _Texts(
        words=len(words(rationale)),
        overlap=input_overlap(rationale, example.input),
        copied=longest_copy(rationale, example.input),
        repeated=repetition(rationale),
        states_label=own,
        states_gold=None
        if example.label is None
        else audit.states(rationale, example.label, metric),
        names_other=own is False and any(audit.states(rationale, c, metric) for c in others),
    )


def _suspicions(
    rows: Sequence[Annotated], texts: Sequence[_Texts], metric: str
) -> Iterator[tuple[str, ...]]:
    """For each row the reasons why it is worth a look, in the order of `WEIGHTS`."""
    copies = collections.Counter(audit.normalise(row.outcome.rationale) for row in rows)
    lengths = [text.words for text in texts if text.words]
    long = max(_MANY_WORDS, _MEDIANS * float(np.median(lengths)) if lengths else 0.0)
    for row, text in zip(rows, texts, strict=True):
        label = _label(row.outcome)
        found = {
            NOT_READ: not label,
            EMPTY: bool(label) and not text.words,
            REPEATS: text.repeated >= _REPEATED,
            COPIED: text.copied >= max(_COPIED_WORDS, text.words / 2),
            UNRELATED: text.words >= _FEW_WORDS and not text.overlap,
            OTHER_CHOICE: text.names_other,
            WRONG: bool(label)
            and not row.hinted
            and row.example.label is not None
            and not _is_right(row, metric),
            IDENTICAL: bool(text.words) and copies[audit.normalise(row.outcome.rationale)] > 1,
            SHORT: 0 < text.words < _FEW_WORDS,
            LONG: text.words > long,
            DIVIDED: bool(label)
            and row.samples > 1
            and not row.hinted
            and 2 * row.agreeing <= row.samples,
            BENT: isinstance(row.outcome, Annotation) and row.outcome.repaired,
        }
        yield tuple(reason for reason in WEIGHTS if found[reason])


def _told(reason: str, row: Annotated) -> str:
    if reason == NOT_READ and isinstance(row.outcome, ParseFailure):
        return f"{NOT_READ}: {row.outcome.reason}"
    return reason


def _raw(row: Annotated, raw: Callable[[str], str | None] | None) -> str | None:
    if raw is not None:
        return raw(row.example.id)
    return row.outcome.raw if isinstance(row.outcome, ParseFailure) else None


def _rationales(rows: Sequence[Annotated], texts: Sequence[_Texts]) -> Rationales | None:
    pairs = [(row, text) for row, text in zip(rows, texts, strict=True) if text.words]
    if not pairs:
        return None
    measured = [text for _, text in pairs]
    copies = collections.Counter(audit.normalise(row.outcome.rationale) for row, _ in pairs)
    lengths = np.array([text.words for text in measured])
    median, high = np.quantile(lengths, (0.5, 0.95), method="inverted_cdf")
    copied = np.array([text.copied for text in measured])
    return Rationales(
        rows=len(pairs),
        words_least=int(lengths.min()),
        words_median=int(median),
        words_95=int(high),
        words_most=int(lengths.max()),
        input_overlap=float(np.mean([text.overlap for text in measured])),
        copied_median=int(np.quantile(copied, 0.5, method="inverted_cdf")),
        copied_most=int(copied.max()),
        states_label=_share([text.states_label for text in measured]),
        states_gold=_share([text.states_gold for text in measured]),
        repetition=float(np.mean([text.repeated for text in measured])),
        identical=sum(count for count in copies.values() if count > 1),
        human=_human([row for row, _ in pairs]),
    )


def _share(values: Sequence[bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _human(rows: Sequence[Annotated]) -> Human | None:
    texts = [
        (row.outcome.rationale, row.example.explanation)
        for row in rows
        if row.example.explanation and words(row.example.explanation)
    ]
    if not texts:
        return None
    ours = [ours for ours, _ in texts]
    theirs = [theirs for _, theirs in texts if theirs]
    shifted = theirs[1:] + theirs[:1]
    return Human(
        rows=len(texts),
        f1=float(np.mean([unigram_f1(*pair) for pair in zip(ours, theirs, strict=True)])),
        f1_of_others=float(np.mean([unigram_f1(*p) for p in zip(ours, shifted, strict=True)]))
        if len(texts) > 1
        else None,
    )
