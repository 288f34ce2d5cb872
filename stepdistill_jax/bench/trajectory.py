"""Two trainers' runs, step by step: how far apart they are, and what several seeds say together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of both trainers.

    Attributes:
        number: from 1.
        ours: metric -> value.
        theirs: the same metrics.
    """

    number: int
    ours: Mapping[str, float]
    theirs: Mapping[str, float]

    def difference(self, metric: str) -> float:
        """Relative to theirs."""
        return abs(self.ours[metric] - self.theirs[metric]) / abs(self.theirs[metric])


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far one parameter of ours is from theirs after the last step (2-norms).

    Attributes:
        name: of the parameter.
        relative: ``|ours - theirs| / |theirs|``.
        of_update: ``|ours - theirs| / |theirs - initial|``, the share of what training changed.
        largest: the largest difference of a single element, ``max |ours - theirs|``.
        largest_update: the largest change of a single element, ``max |theirs - initial|``.
    """

    name: str
    relative: float
    of_update: float
    largest: float
    largest_update: float


def distances(initial: Arrays, ours: Arrays, theirs: Arrays) -> list[Distance]:
    """A `Distance` for each parameter, and one named ``all`` of all together."""
    found = [_distance(name, initial[name], ours[name], theirs[name]) for name in theirs]

    def whole(parameters: Arrays) -> np.ndarray:
        return np.concatenate([parameters[name].ravel() for name in theirs])

    return [*found, _distance("all", whole(initial), whole(ours), whole(theirs))]


def _distance(name: str, initial: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> Distance:
    apart = (ours - theirs).astype(np.float64)
    update = (theirs - initial).astype(np.float64)
    norm = np.linalg.norm(apart)
    return Distance(
        name,
        relative=_over(norm, np.linalg.norm(theirs.astype(np.float64))),
        of_update=_over(norm, np.linalg.norm(update)),
        largest=float(np.abs(apart).max()),
        largest_update=float(np.abs(update).max()),
    )


def _over(numerator: Any, denominator: Any) -> float:
    """Their quotient; 0 / 0 = 0, as where nothing was trained and nothing differs."""
    return 0.0 if numerator == 0 else float(numerator / denominator) if denominator else math.inf


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Means of several seeds' values and whether they are one within their standard errors.

    Attributes:
        ours, theirs: means.
        ours_error, theirs_error: standard errors of the means (sample deviation / sqrt(n)).
        paired: mean of the differences seed by seed, ours - theirs.
        paired_error: its standard error.
    """

    ours: float
    ours_error: float
    theirs: float
    theirs_error: float
    paired: float
    paired_error: float

    @property
    def within(self) -> bool:
        """The means differ by no more than the standard error of their difference."""
        return abs(self.ours - self.theirs) <= math.hypot(self.ours_error, self.theirs_error)


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
    """Compares the values of the same seeds, in the same order; two at least."""
    return Agreement(*_mean(ours), *_mean(theirs), *_mean(np.subtract(ours, theirs)))


def _mean(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))
