"""Statistics of repeated and paired timings, as plain numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Window:
    """One timed stretch of work.

    Attributes:
        seconds: how long it took by the clock.
        amounts: what was done in it, by name: pairs, tokens, seconds of waiting, ...
    """

    seconds: float
    amounts: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"a window of {self.seconds} seconds measures nothing")

    def rate(self, name: str) -> float:
        """Amount a second."""
        return self.amounts[name] / self.seconds


@dataclasses.dataclass(frozen=True)
class Spread:
    """What repeated measurements say together.

    Attributes:
        median: of `values`.
        iqr: their interquartile range, the quartiles interpolated linearly; 0 for a single value.
        values: in the order in which they were taken.
    """

    median: float
    iqr: float
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of a benchmark.

    Attributes:
        name: what was measured.
        unit: of the spread.
        spread: None where this machine cannot tell.
        remark: what a reader must know beside the number.
    """

    name: str
    unit: str
    spread: Spread | None
    remark: str = ""


def spread(values: Sequence[float]) -> Spread:
    """Median and interquartile range.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"no statistics of {values!r}: expected finite numbers")
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75))
    return Spread(float(median), float(third - first), tuple(map(float, values)))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the quotients of paired measurements, turn by turn.

    What slows the machine down for a while touches both sides of a turn and so not its quotient.

    Raises:
        ValueError: unequal numbers of measurements, or a quotient that is not finite.
    """
    return spread([n / d for n, d in zip(numerators, denominators, strict=True)])


def take_turns(
    contestants: Mapping[str, Callable[[], Window]], turns: int
) -> dict[str, list[Window]]:
    """Lets each contestant run once a turn; every other turn goes backwards.

    So none is always the one that runs after the other, on caches that the other left.
    """
    taken: dict[str, list[Window]] = {name: [] for name in contestants}
    for turn in range(turns):
        names = list(contestants)
        for name in names if turn % 2 == 0 else reversed(names):
            taken[name].append(contestants[name]())
    return taken
