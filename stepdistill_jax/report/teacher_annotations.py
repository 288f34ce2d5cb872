"""The section on annotations: how good and how costly they are, and which examples to check."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepdistill_jax.report import formats
from stepdistill_jax.report.document import (
    Block,
    Entry,
    Excerpt,
    Paragraph,
    Row,
    Section,
    Table,
    missing,
    number,
)
from stepdistill_jax.report.extractions import (
    AnnotatedSplit,
    ExtractionSummary,
    PromptSummary,
    Suspect,
)
from stepdistill_jax.teacher.quality import PARSED, REPAIRED, Assessment, Rationales
from stepdistill_jax.text import csv_text

# Characters of a text that are shown.
SHOWN_CHARACTERS = 600
_NONE = missing("none")
_HASH_CHARACTERS = 8

_EXPLANATION = (
    "Yield: examples with a label and a rationale that can be used. Accuracy: the teacher's labels "
    "against gold, before any hint; an example without a label counts as wrong; ± is the binomial "
    "standard error. Tokens and cost include all paid requests, with hints and samples. Requests "
    "lost in flight count at their maximum cost, but not in the cost per example. Cost and speed "
    "per example are as if no answer had come from the cache. Speed counts only the time with "
    "requests in flight, without waits for rate limits or retries. Shares are in percent."
)
_RATIONALES_EXPLANATION = (
    "Rationales as they are kept. Words: median; 95th percentile; minimum to maximum. In the "
    "input: share of a rationale's content words that also occur in the input. Copied: longest run "
    "of words shared with the input, median; maximum. States its label, states gold: contains the "
    "label as whole words; equations are compared by value. Repeated: share of trigrams that "
    "occurred earlier in the same rationale. Like human ones: unigram F1 (as in ROUGE-1, without "
    "stemming) with the human explanation of the same example; then with that of another example, "
    "for comparison."
)

_Splits = Sequence[tuple[ExtractionSummary, str, AnnotatedSplit]]


def section(extractions: Sequence[ExtractionSummary]) -> Section:
    """Yield, accuracy, cost, outcomes, rationales and the examples to check."""
    title = "What the teacher wrote"
    splits = [(e, name, split) for e in extractions for name, split in e.splits.items()]
    if not splits:
        return Section("annotations", title, [Paragraph("No example is annotated yet.")])
    blocks: list[Block] = [
        Paragraph(_EXPLANATION),
        Table("Yield and accuracy", [_overview(*split) for split in splits]),
        Table("Cost", [*_costs(splits, extractions)]),
        *_table("Outcomes", _outcomes(splits)),
        Paragraph(_RATIONALES_EXPLANATION),
        *_table("Rationales", _rationales(splits)),
        *_table("Reasons to check an example; it may have several", _suspicions(splits)),
    ]
    for extraction, name, _ in splits:
        suspects = extraction.worst.get(name, ())
        if suspects:
            text = (
                f"Examples of {extraction.name}, {name}, to check first; worst_{name}.jsonl has "
                "more of them, with their full texts."
            )
            blocks += [Paragraph(text), *map(_excerpt, suspects)]
    return Section("annotations", title, blocks)


def _table(caption: str, rows: Iterator[Row]) -> list[Table]:
    return [Table(caption, table)] if (table := [*rows]) else []


def _overview(extraction: ExtractionSummary, name: str, split: AnnotatedSplit) -> Row:
    quality = split.quality
    accuracy = quality and quality.accuracy
    shown = missing("no gold labels")
    if accuracy:
        error = formats.percent(accuracy.stderr)
        shown = number(f"{formats.percent(accuracy.share)} ± {error}")
    return {
        "annotations": f"{extraction.name}, {name}",
        "data set": formats.dataset(extraction.dataset),
        "teacher": extraction.model,
        "prompt": _prompt(extraction.prompt),
        "examples": _count(split.rows),
        "answered": _count(split.answered),
        "yield": _NONE if quality is None else _part(quality.usable, quality.rows),
        "accuracy": shown,
        "accuracy if parsed": _share(accuracy.of_parsed if accuracy else None),
    }


def _costs(splits: _Splits, extractions: Sequence[ExtractionSummary]) -> Iterator[Row]:
    for extraction, name, split in splits:
        yield {
            "annotations": f"{extraction.name}, {name}",
            "requests": _count(split.requests),
            "from the cache": _count(split.cached),
            "tokens read": _count(split.prompt_tokens),
            "tokens written": _count(split.completion_tokens),
            "cost": number(split.cost, formats.significant, "no price"),
            "cost per example": number(split.price, formats.significant, "no price"),
            "examples per second": number(split.pace, formats.significant),
        }
    for extraction in extractions:
        lost = extraction.lost
        if lost.requests:
            yield {
                "annotations": f"{extraction.name}, lost in flight",
                "requests": _count(lost.requests),
                "from the cache": _NONE,
                "tokens read": _count(lost.prompt_tokens),
                "tokens written": _count(lost.completion_tokens),
                "cost": number(lost.cost, formats.significant, "no price"),
                "cost per example": _NONE,
                "examples per second": _NONE,
            }


def _outcomes(splits: _Splits) -> Iterator[Row]:
    for extraction, name, split in splits:
        for outcome, count, total in _outcomes_of(split.quality) if split.quality else ():
            yield {
                "annotations": f"{extraction.name}, {name}",
                "outcome": outcome,
                "examples": _count(count),
                "percent": _part(count, total),
            }


def _outcomes_of(quality: Assessment) -> Iterator[tuple[str, int, int]]:
    """(outcome, examples, of how many), those with a label first."""
    read = [name for name in (PARSED, REPAIRED) if name in quality.outcomes]
    for name in read:
        yield name, quality.outcomes[name], quality.rows
    for name, count in quality.outcomes.items():
        if name not in read:
            yield f"failed: {name}", count, quality.rows
    if quality.hints_asked:
        outcome = f"rationales with a hint kept, of {quality.hints_asked:,} requested"
        yield outcome, quality.hints_kept, quality.hints_asked
    if agreement := quality.agreement:
        outcome = (
            f"several samples: on average {formats.percent(agreement.mean, 1)}% of them have the "
            f"kept label; in {formats.percent(agreement.unanimous, 1)}% of these examples all do"
        )
        yield outcome, agreement.rows, quality.rows


def _rationales(splits: _Splits) -> Iterator[Row]:
    for extraction, name, split in splits:
        texts = split.quality and split.quality.rationales
        if texts:
            lengths = f"{texts.words_median:,}; {texts.words_95:,}; "
            yield {
                "annotations": f"{extraction.name}, {name}",
                "rationales": _count(texts.rows),
                "words": number(f"{lengths}{texts.words_least:,} to {texts.words_most:,}"),
                "in the input": _share(texts.input_overlap),
                "copied": number(f"{texts.copied_median:,}; {texts.copied_most:,}"),
                "states its label": _share(texts.states_label),
                "states gold": _share(texts.states_gold),
                "repeated": _share(texts.repetition),
                "same as another": _count(texts.identical),
                "like human ones": _likeness(texts),
            }


def _likeness(texts: Rationales) -> Entry:
    if texts.human is None:
        return missing("no human explanations")
    scores = (texts.human.f1, texts.human.f1_of_others)
    return number("; ".join(formats.percent(score) for score in scores if score is not None))


def _suspicions(splits: _Splits) -> Iterator[Row]:
    for extraction, name, split in splits:
        if split.quality is not None:
            for reason, count in split.quality.suspicions.items():
                yield {
                    "annotations": f"{extraction.name}, {name}",
                    "reason": reason,
                    "examples": _count(count),
                    "percent": _part(count, split.quality.rows),
                }


def _excerpt(suspect: Suspect) -> Excerpt:
    hint = ", given the gold label" if suspect.hinted else ""
    texts = [
        ("input", suspect.input),
        ("gold label", suspect.gold),
        ("its label, before the hint" if suspect.hinted else "its label", suspect.label),
        (f"rationale{hint}", suspect.rationale),
        (f"whole answer{hint}", suspect.raw),
    ]
    return Excerpt(
        _cut(f"{suspect.id}: {', '.join(suspect.reasons)}"),
        tuple((name, _cut(text)) for name, text in texts if text),
    )


def _cut(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}… ({len(text):,} characters)"


def _prompt(prompt: PromptSummary) -> str | Entry:
    parts = []
    if prompt.exemplars is not None:
        parts.append(formats.count(prompt.exemplars, "exemplar"))
    if prompt.tokens is not None:
        parts.append(f"{prompt.tokens:,} tokens")
    if prompt.hash:
        parts.append(prompt.hash[:_HASH_CHARACTERS])
    return ", ".join(parts) or missing("not known")


def _count(value: int | None) -> Entry:
    return number(value, formats.whole)


def _share(value: float | None) -> Entry:
    return number(value, formats.percent, "none")


def _part(count: int, total: int) -> Entry:
    return _share(count / total if total else None)


def lines(extractions: Sequence[ExtractionSummary]) -> tuple[str, ...]:
    """What to print: one line a split."""
    return tuple(
        f"{extraction.name}, {name}: {_line(split.quality)}"
        for extraction in extractions
        for name, split in extraction.splits.items()
        if split.quality is not None
    )


def _line(quality: Assessment) -> str:
    text = formats.count(quality.rows, "example")
    if quality.rows:
        text += f", yield {formats.percent(quality.usable / quality.rows, 1)}%"
    if quality.accuracy:
        text += f", accuracy {formats.percent(quality.accuracy.share, 1)}%"
    return text


def as_csv(extractions: Sequence[ExtractionSummary]) -> str:
    """Every number of every split: extraction, data set, model, split ("unit"), name, value."""
    rows: list[Sequence[object]] = [["extraction", "dataset", "model", "unit", "name", "value"]]
    for extraction in extractions:
        identity = (extraction.name, extraction.dataset, extraction.model)
        for name, split in extraction.splits.items():
            for key, value in _flat(dataclasses.asdict(split)):
                rows.append([*identity, name, key, value])
    return csv_text(rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value
