"""What an extraction leaves beside its log: rationales, rows to look at, numbers of a unit."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepdistill_jax import records
from stepdistill_jax.data import inputs
from stepdistill_jax.records import Annotation
from stepdistill_jax.teacher import quality
from stepdistill_jax.teacher.budget import Prices, Tokens
from stepdistill_jax.teacher.requests import ANSWER, HINT
from stepdistill_jax.teacher.resume import Annotator, ExampleState, Paid, total
from stepdistill_jax.teacher.store import SUMMARY_FILE, Response
from stepdistill_jax.teacher.vote import Annotated


def write_unit(
    folder: pathlib.Path,
    unit: str,
    teaching: Annotator,
    rows: Sequence[ExampleState],
    paid: Sequence[Response],
) -> dict[str, Any]:
    """Writes ``rationales_<unit>.jsonl`` and ``worst_<unit>.jsonl``; returns the unit's numbers.

    Requests, tokens and cost are of `paid`, all lines on the unit for which something was sent:
    those of failures that were asked again, and of rows that are not asked about any more, too.
    `seconds` is the time in which at least one of them was in flight, waits between tries left out.
    """
    by_id = {row.example.id: row for row in rows}
    found = [annotated for row in rows if (annotated := teaching.annotated(row)) is not None]
    metric = teaching.metric
    hinted = {row.example.id for row in found if row.hinted}

    def raw(row_id: str) -> str | None:
        answer = by_id[row_id].answers.get((HINT if row_id in hinted else ANSWER, 0))
        return None if answer is None or answer.error else answer.text

    lines = write_rationales(folder, unit, found)
    suspects = quality.worst(found, metric, raw=raw)
    records.write_jsonl(folder / f"worst_{unit}.jsonl", suspects)
    answers = [answer for row in rows for answer in row.answers.values()]
    spent = total(answer.charged for answer in paid)
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


def read_units(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The units of the summary that an earlier call left; none where it cannot be read."""
    try:
        units = json.loads((folder / SUMMARY_FILE).read_bytes())["units"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return units if isinstance(units, dict) else {}


def _seconds(answers: Sequence[Response]) -> float | None:
    """Length of the union of the times in which the answers were awaited; None if not measured."""
    spans = sorted((answer.at - answer.seconds, answer.at) for answer in answers if answer.seconds)
    if not spans:
        return None
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return round(total, 3)


def totals(paid: Paid, prices: Prices) -> dict[str, dict[str, Any]]:
    """What was paid for over all units, and what of it was lost in flight or waits in batches."""
    answers = [answer for of_one in paid.answers.values() for answer in of_one]
    lost = total(sending.bound for sending in paid.lost)
    spent = total(answer.charged for answer in answers).plus(lost)
    waiting = total(sending.bound for sending in paid.waiting)
    return {
        "total": _sum(len(answers) + len(paid.lost), spent, prices),
        "lost": _sum(len(paid.lost), lost, prices),
        "waiting": _sum(len(paid.waiting), waiting, prices),
    }


def _sum(requests: int, tokens: Tokens, prices: Prices) -> dict[str, Any]:
    cost = prices.cost(tokens)
    return {
        "requests": requests,
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.written,
        "cost": None if cost is None else float(cost),
    }


def told(sums: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`totals` for a reader, below the table of the units."""
    lines = []
    for name, what in (
        ("lost", "requests lost in flight, counted at their bound"),
        ("waiting", "requests wait in batches and are not counted yet, at most"),
        ("total", "requests paid for in all"),
    ):
        found = sums[name]
        tokens = found["prompt_tokens"] + found["completion_tokens"]
        cost = "" if found["cost"] is None else f", cost {found['cost']:.4f}"
        if found["requests"]:
            lines.append(f"{found['requests']:,} {what}: {tokens:,} tokens{cost}")
    return [*lines, "rows/s: while requests were under way; waits between them are left out"]


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
