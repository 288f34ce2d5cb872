"""What an extraction leaves beside its log: rationales, rows to look at, numbers of a unit."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepdistill_jax import records
from stepdistill_jax.data import inputs
from stepdistill_jax.records import Annotation
from stepdistill_jax.teacher import quality
from stepdistill_jax.teacher.annotated import Annotated
from stepdistill_jax.teacher.budget import NOTHING, Prices
from stepdistill_jax.teacher.requests import ANSWER, HINT
from stepdistill_jax.teacher.rows import Row, Teaching
from stepdistill_jax.teacher.store import Answer


def write_unit(
    folder: pathlib.Path, unit: str, teaching: Teaching, rows: Sequence[Row]
) -> dict[str, Any]:
    """Writes ``rationales_<unit>.jsonl`` and ``worst_<unit>.jsonl``; returns the unit's numbers.

    Tokens and cost are those that count as paid for, and of requests that were answered; `seconds`
    is the time in which at least one request was in flight.
    """
    by_id = {row.example.id: row for row in rows}
    found = [annotated for row in rows if (annotated := teaching.annotated(row)) is not None]
    metric = teaching.metric

    def raw(row_id: str) -> str | None:
        answer = by_id[row_id].answers.get((ANSWER, 0))
        return None if answer is None or answer.error else answer.text

    lines = write_rationales(folder, unit, found)
    suspects = quality.worst(found, metric, raw=raw)
    records.write_jsonl(folder / f"worst_{unit}.jsonl", suspects)
    answers = [answer for row in rows for answer in row.answers.values()]
    paid = [answer for answer in answers if answer.send]
    spent = NOTHING
    for answer in paid:
        spent = spent.plus(answer.charged)
    cost = Prices.of(teaching.extract).cost(spent)
    hints = sum((HINT, 0) in row.answers for row in rows)
    return {
        "rows": len(rows),
        "answered": len(found),
        "rationales": lines,
        "requests": len(paid),
        "cached": sum(answer.cached for answer in answers),
        "errors": sum(bool(answer.error) for answer in answers),
        "prompt_tokens": spent.prompt,
        "completion_tokens": spent.written,
        "cost": None if cost is None else float(cost),
        "seconds": _seconds(paid),
        "quality": quality.assess(found, metric, hints_asked=hints).as_dict(),
    }


def _seconds(answers: Sequence[Answer]) -> float | None:
    """Length of the union of the times in which the answers were awaited; None if not measured."""
    spans = sorted((answer.at - answer.seconds, answer.at) for answer in answers if answer.seconds)
    if not spans:
        return None
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return round(total, 3)


def paid_rows(answered: int | None, requests: int | None, cached: int | None) -> float | None:
    """Rows that the paid requests would make, at as many a row as all answers have.

    None where there are no such requests, or it is not known.
    """
    if not requests or not answered:
        return None
    return answered * requests / (requests + (cached or 0))


def table(units: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers for a reader, a line a unit."""
    heads = ("unit", "rows", "answered", "yield", "accuracy", "requests", "cached", "tokens")
    lines: list[Sequence[str]] = [(*heads, "rows/s", "cost")]
    for name, unit in units.items():
        answered, judged = unit["answered"], unit["quality"]
        accuracy = judged["accuracy"]
        tokens = unit["prompt_tokens"] + unit["completion_tokens"]
        paid = paid_rows(answered, unit["requests"], unit["cached"])
        lines.append(
            (
                name,
                f"{unit['rows']:,}",
                f"{answered:,}",
                f"{judged['usable'] / answered:.1%}" if answered else "-",
                f"{accuracy['share']:.1%}" if accuracy else "-",
                f"{unit['requests']:,}",
                f"{unit['cached']:,}",
                f"{tokens:,}",
                f"{paid / unit['seconds']:.2f}" if unit["seconds"] and paid else "-",
                "-" if unit["cost"] is None else f"{unit['cost']:.4f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def rationales_path(folder: pathlib.Path, unit: str) -> pathlib.Path:
    """The file that RATIONALES, or AUGMENT for unit the added inputs, names."""
    return folder / f"rationales_{unit}.jsonl"


def write_rationales(folder: pathlib.Path, unit: str, rows: Iterable[Annotated]) -> int:
    """Writes what training reads; returns the number of lines.

    A line is ``{"id", "input", "choices"?, "rationale", "label"?, "hinted"?}``. A failure that has
    a rationale has a line without a label; a row without a rationale has none, unless it is one of
    the added inputs, which may have a label alone.
    """
    lines = []
    for row in rows:
        line: dict[str, Any] = {"id": row.example.id, "input": row.example.input}
        if row.example.choices:
            line["choices"] = list(row.example.choices)
        if row.outcome.rationale.strip():
            line["rationale"] = row.outcome.rationale.strip()
        if isinstance(row.outcome, Annotation) and row.outcome.label.strip():
            line["label"] = row.outcome.label.strip()
        if row.hinted:
            line["hinted"] = True
        if "rationale" in line or (unit == inputs.ADDED and "label" in line):
            lines.append(line)
    records.write_jsonl(rationales_path(folder, unit), lines)
    return len(lines)
