"""Measurements: statistics of timed windows, printed one by one and then as a table or JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stepdistill_jax.parallel import cluster
from stepdistill_jax.text import columns

NOT_REPORTED = "not reported by this device"
_HEADINGS = ("measured", "median", "spread (IQR)", "windows", "unit", "remark")
_NUMBERS = _HEADINGS[1:4]

# What was measured (machine, run, batches) -> property -> value.
About = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Window:
    """One timed stretch of work.

    Attributes:
        seconds: wall-clock time.
        amounts: work done in it by name: pairs, tokens, seconds of waiting, ...
    """

    seconds: float
    amounts: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"duration of a window: got {self.seconds} s, expected more than 0")

    def rate(self, name: str) -> float:
        """Amount per second."""
        return self.amounts[name] / self.seconds


@dataclasses.dataclass(frozen=True)
class Spread:
    """Statistics of repeated measurements.

    Attributes:
        median: of `values`.
        iqr: interquartile range, with quartiles interpolated linearly; 0 for a single value.
        values: in the order of measurement.
    """

    median: float
    iqr: float
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One row of a benchmark's table.

    Attributes:
        name: of the measured quantity.
        unit: of the values.
        spread: None = the device does not report it.
        remark: conditions of the measurement.
    """

    name: str
    unit: str
    spread: Spread | None
    remark: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row under `_HEADINGS`; a single window has no spread."""
        spread = self.spread
        if spread is None:
            return self.name, "-", "", "", self.unit, self.remark or NOT_REPORTED
        iqr = _number(spread.iqr) if len(spread.values) > 1 else ""
        count = str(len(spread.values))
        return self.name, _number(spread.median), iqr, count, self.unit, self.remark

    def line(self) -> str:
        """The row as one line of text."""
        name, median, iqr, count, unit, remark = self.cells()
        details = [f"IQR {iqr}, {count} windows" if iqr else "", remark]
        return f"{name}: {median} {unit}" + "".join(f"; {detail}" for detail in details if detail)


class Results:
    """The measurements of a benchmark; the lead process prints each when it is added."""

    def __init__(self) -> None:
        self.measurements: list[Measurement] = []
        self.left_out: list[str] = []

    def add(
        self, name: str, unit: str, values: Spread | Sequence[float] | None, remark: str = ""
    ) -> None:
        """Adds a measurement; `values` are repeated ones, None = not reported by the device."""
        statistics = values if isinstance(values, Spread) or values is None else spread(values)
        measurement = Measurement(name, unit, statistics, remark)
        self.measurements.append(measurement)
        cluster.say(measurement.line())

    def text(self, about: About) -> str:
        """A line for each part of `about`, the table, and a line for each part left out."""
        facts = [
            f"{title}: " + ", ".join(f"{name} {value}" for name, value in values.items())
            for title, values in about.items()
        ]
        rows = [_HEADINGS, *(measurement.cells() for measurement in self.measurements)]
        left_out = [f"left out: {part}" for part in self.left_out]
        return "\n".join([*facts, "", columns(rows, _NUMBERS), *left_out])

    def as_json(self, about: About) -> str:
        """The same with the value of every window; ``spread`` is null if not reported."""
        measurements = [dataclasses.asdict(measurement) for measurement in self.measurements]
        document = {**about, "measurements": measurements, "left_out": self.left_out}
        return json.dumps(document, indent=1) + "\n"


def announce(part: str) -> None:
    """Prints the part that is measured next to stderr."""
    cluster.say(f"measuring: {part}", error=True)


def spread(values: Sequence[float]) -> Spread:
    """Median and interquartile range.

    Raises:
        ValueError: no values, or a value is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"statistics: got {values!r}, expected finite numbers")
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75))
    return Spread(float(median), float(third - first), tuple(map(float, values)))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the ratios of paired measurements.

    A slowdown of the machine affects both measurements of a pair and cancels in their ratio.

    Raises:
        ValueError: the numbers of measurements differ, or a ratio is not finite.
    """
    return spread([n / d for n, d in zip(numerators, denominators, strict=True)])


def take_turns(
    contestants: Mapping[str, Callable[[], Window]], turns: int
) -> dict[str, list[Window]]:
    """Runs every contestant once a turn; every other turn in reverse order.

    So no contestant always runs on the caches that the same other one left.
    """
    windows: dict[str, list[Window]] = {name: [] for name in contestants}
    for turn in range(turns):
        names = list(contestants)
        for name in names if turn % 2 == 0 else reversed(names):
            windows[name].append(contestants[name]())
    return windows


def _number(value: float) -> str:
    """Four significant digits without an exponent, with thousands separators."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.4f}"
