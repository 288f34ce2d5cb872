"""A benchmark's results, for readers and for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from stepdistill_jax.bench.measure import Measurement

NOT_REPORTED = "not reported by this device"
_HEADINGS = ("measured", "median", "spread (IQR)", "windows", "unit", "remark")
_NUMBERS = frozenset({1, 2, 3})


def text(
    about: Mapping[str, Mapping[str, Any]],
    measurements: Sequence[Measurement],
    left_out: Sequence[str],
) -> str:
    """A line for each of `about`, the table, and a line for each thing left out."""
    facts = [
        f"{title}: " + ", ".join(f"{name} {value}" for name, value in values.items())
        for title, values in about.items()
    ]
    return "\n".join([*facts, "", table(measurements), *(f"left out: {w}" for w in left_out)])


def as_json(
    about: Mapping[str, Mapping[str, Any]],
    measurements: Sequence[Measurement],
    left_out: Sequence[str],
) -> str:
    """The same with every window's value; ``spread`` is null where the device tells nothing."""
    measured = [dataclasses.asdict(measurement) for measurement in measurements]
    document = {**about, "measurements": measured, "left_out": list(left_out)}
    return json.dumps(document, indent=1) + "\n"


def table(measurements: Sequence[Measurement]) -> str:
    """One line a measurement, in columns; no spread where there is one window alone."""
    rows = [_HEADINGS, *map(_row, measurements)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(measured: Measurement) -> tuple[str, ...]:
    spread = measured.spread
    if spread is None:
        return measured.name, "-", "", "", measured.unit, measured.remark or NOT_REPORTED
    iqr = _number(spread.iqr) if len(spread.values) > 1 else ""
    count = str(len(spread.values))
    return measured.name, _number(spread.median), iqr, count, measured.unit, measured.remark


def _number(value: float) -> str:
    """Four significant digits without an exponent, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.4f}"
