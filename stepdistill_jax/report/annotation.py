"""What teachers made of the rows that they were asked about, and the rows to look at."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepdistill_jax.report import words
from stepdistill_jax.report.document import (
    MISSING,
    NUMBER,
    Block,
    Entry,
    Excerpt,
    Paragraph,
    Section,
    Table,
)
from stepdistill_jax.report.extractions import Extraction, Suspect, Unit
from stepdistill_jax.teacher.quality import PARSED, REPAIRED, Assessment, Human

# Characters of a text that are shown.
LONGEST = 600
_NONE = Entry("none", MISSING)
_HASH = 8


def section(extractions: Sequence[Extraction]) -> Section:
    """Yield, accuracy, cost, outcomes and statistics of every extraction, and its worst rows."""
    found = [(e, name, unit) for e in extractions for name, unit in e.units.items()]
    blocks: list[Block] = [
        Paragraph(
            "Yield: rows with a label and a rationale that can be used. Accuracy: of the teacher's "
            "labels against gold, a row without a label counting as wrong, before any hint; ± is "
            "the binomial standard error. Tokens and cost are of all paid requests, hints and "
            "samples included; those lost in flight count at their bound, not in the cost a row. "
            "Cost and speed of rows are as if none had come from the cache; rows a second are over "
            "the time in which requests were in flight, waits for the pace and between tries left "
            "out. Shares are in percent."
        ),
        _overview(found),
        _costs(found, extractions),
        _outcomes(found),
        Paragraph(
            "Rationales as they are kept. Words: median; 95% have no more; least to most. In the "
            "input: share of a rationale's content words that the input has too. Copied: longest "
            "run of words that both share, median; most. States its label, states gold: as whole "
            "words, equations by value. Repeated: share of trigrams that occurred before in the "
            "same rationale. Like people's: unigram F1 (ROUGE-1's, without stemming) with the "
            "human explanation of the same row; with that of another row, as a level for what such "
            "texts share anyway."
        ),
        _rationales(found),
        _suspicions(found),
    ]
    for extraction, name, _ in found:
        suspects = extraction.worst.get(name, ())
        if suspects:
            blocks.append(
                Paragraph(
                    f"Rows of {extraction.name}, {name}, to look at first; worst_{name}.jsonl "
                    "has more of them, and their texts in full."
                )
            )
            blocks += [_excerpt(suspect) for suspect in suspects]
    if not found:
        blocks = [Paragraph("Nothing has been answered yet.")]
    return Section("annotations", "What the teacher wrote", tuple(blocks))


_Found = Sequence[tuple[Extraction, str, Unit]]


def _overview(found: _Found) -> Table:
    header = (
        "rows of", "data set", "model", "prompt", "rows", "answered", "yield", "accuracy",
        "of parsed",
    )  # fmt: skip
    rows = []
    for extraction, name, unit in found:
        quality = unit.quality
        accuracy = quality and quality.accuracy
        shown = Entry("no gold labels", MISSING)
        if accuracy:
            error = words.percent(accuracy.stderr)
            shown = Entry(f"{words.percent(accuracy.share)} ± {error}", NUMBER)
        rows.append(
            (
                _rows_of(extraction, name),
                Entry(words.dataset(extraction.dataset)),
                Entry(extraction.model),
                _prompt(extraction),
                _count(unit.rows),
                _count(unit.answered),
                _NONE if quality is None else _part(quality.usable, quality.rows),
                shown,
                _share(accuracy.of_parsed if accuracy else None),
            )
        )
    return Table("What was asked, and what came back", header, tuple(rows))


def _costs(found: _Found, extractions: Sequence[Extraction]) -> Table:
    header = (
        "rows of", "requests", "from the cache", "tokens read", "tokens written", "cost",
        "cost a row", "rows a second",
    )  # fmt: skip
    rows = []
    for extraction, name, unit in found:
        rows.append(
            (
                _rows_of(extraction, name),
                _count(unit.requests),
                _count(unit.cached),
                _count(unit.prompt_tokens),
                _count(unit.completion_tokens),
                _money(unit.cost),
                _money(unit.price),
                words.NOT_KNOWN
                if unit.pace is None
                else Entry(words.significant(unit.pace), NUMBER),
            )
        )
    for extraction in extractions:
        lost = extraction.lost
        if lost.requests:
            rows.append(
                (
                    _rows_of(extraction, "lost in flight"),
                    _count(lost.requests),
                    _NONE,
                    _count(lost.prompt_tokens),
                    _count(lost.completion_tokens),
                    _money(lost.cost),
                    _NONE,
                    _NONE,
                )
            )
    return Table("What it took", header, tuple(rows))


def _rows_of(extraction: Extraction, unit: str) -> Entry:
    return Entry(f"{extraction.name}, {unit}")


def _outcomes(found: _Found) -> Table:
    rows = tuple(
        (_rows_of(extraction, name), Entry(outcome), _count(count), _part(count, total))
        for extraction, name, unit in found
        if unit.quality is not None
        for outcome, count, total in _came(unit.quality)
    )
    return Table("What came of the rows", ("rows of", "outcome", "rows", "percent"), rows)


def _came(quality: Assessment) -> Iterator[tuple[str, int, int]]:
    """(outcome, rows, of so many), those with a label first."""
    read = [name for name in (PARSED, REPAIRED) if name in quality.outcomes]
    for name in read:
        yield name, quality.outcomes[name], quality.rows
    for name, count in quality.outcomes.items():
        if name not in read:
            yield f"failed: {name}", count, quality.rows
    if quality.hints_asked:
        told = f"hints kept, of {quality.hints_asked:,} asked"
        yield told, quality.hints_kept, quality.hints_asked
    if agreement := quality.agreement:
        told = (
            f"several samples: {words.percent(agreement.mean, 1)}% of a row's say the kept label; "
            f"in {words.percent(agreement.unanimous, 1)}% of these rows all do"
        )
        yield told, agreement.rows, quality.rows


def _rationales(found: _Found) -> Table:
    header = (
        "rows of", "rationales", "words", "in the input", "copied", "states its label",
        "states gold", "repeated", "same as another", "like people's",
    )  # fmt: skip
    rows = []
    for extraction, name, unit in found:
        first = _rows_of(extraction, name)
        texts = unit.quality and unit.quality.rationales
        if not texts:
            rows.append((first, *[_NONE] * (len(header) - 1)))
            continue
        human = texts.human
        rows.append(
            (
                first,
                _count(texts.rows),
                Entry(
                    f"{texts.words_median:,}; {texts.words_95:,}; {texts.words_least:,} to "
                    f"{texts.words_most:,}",
                    NUMBER,
                ),
                _share(texts.input_overlap),
                Entry(f"{texts.copied_median:,}; {texts.copied_most:,}", NUMBER),
                _share(texts.states_label),
                _share(texts.states_gold),
                _share(texts.repetition),
                _count(texts.identical),
                Entry("no explanations", MISSING)
                if human is None
                else Entry(_likeness(human), NUMBER),
            )
        )
    return Table("What the rationales are like", header, tuple(rows))


def _likeness(human: Human) -> str:
    same = words.percent(human.f1)
    return same if human.f1_of_others is None else f"{same}; {words.percent(human.f1_of_others)}"


def _suspicions(found: _Found) -> Table:
    rows = tuple(
        (
            _rows_of(extraction, name),
            Entry(reason),
            _count(count),
            _part(count, unit.quality.rows),
        )
        for extraction, name, unit in found
        if unit.quality is not None
        for reason, count in unit.quality.suspicions.items()
    )
    header = ("rows of", "reason", "rows", "percent")
    return Table("Why rows are worth a look; a row may have several reasons", header, rows)


def _excerpt(suspect: Suspect) -> Excerpt:
    told = ", with the gold label given" if suspect.hinted else ""
    texts = [
        ("input", suspect.input),
        ("gold label", suspect.gold),
        ("its label, before the hint" if suspect.hinted else "its label", suspect.label),
        (f"rationale{told}", suspect.rationale),
        (f"whole answer{told}", suspect.raw),
    ]
    return Excerpt(
        _cut(f"{suspect.id}: {', '.join(suspect.reasons)}"),
        tuple((name, _cut(text)) for name, text in texts if text),
    )


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({len(text):,} characters)"


def _prompt(extraction: Extraction) -> Entry:
    prompt = extraction.prompt
    parts = []
    if prompt.exemplars is not None:
        parts.append(words.count(prompt.exemplars, "exemplar"))
    if prompt.tokens is not None:
        parts.append(f"{prompt.tokens:,} tokens")
    if prompt.hash:
        parts.append(prompt.hash[:_HASH])
    return Entry(", ".join(parts)) if parts else words.NOT_KNOWN


def _count(value: int | None) -> Entry:
    return words.NOT_KNOWN if value is None else Entry(f"{value:,}", NUMBER)


def _share(value: float | None) -> Entry:
    return _NONE if value is None else Entry(words.percent(value), NUMBER)


def _part(count: int, total: int) -> Entry:
    return _share(count / total if total else None)


def _money(value: float | None) -> Entry:
    if value is None:
        return Entry("no price", MISSING)
    return Entry(words.significant(value), NUMBER)


def lines(extractions: Sequence[Extraction]) -> tuple[str, ...]:
    """What to print: a line for every unit."""
    return tuple(
        f"{extraction.name}, {name}: {_told(unit.quality)}"
        for extraction in extractions
        for name, unit in extraction.units.items()
        if unit.quality is not None
    )


def _told(quality: Assessment) -> str:
    text = words.count(quality.rows, "row")
    if quality.rows:
        text += f", yield {words.percent(quality.usable / quality.rows, 1)}%"
    if quality.accuracy:
        text += f", accuracy {words.percent(quality.accuracy.share, 1)}%"
    return text


def as_csv(extractions: Sequence[Extraction]) -> str:
    """Every number of every unit, one a line: extraction, data set, model, unit, name, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["extraction", "dataset", "model", "unit", "name", "value"])
    for extraction in extractions:
        for name, unit in extraction.units.items():
            for key, value in _flat(dataclasses.asdict(unit)):
                writer.writerow(
                    [extraction.name, extraction.dataset, extraction.model, name, key, value]
                )
    return text.getvalue()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value
