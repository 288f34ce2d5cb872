"""Fits a learning curve to a pilot, and forecasts the gain of more data.

The curve is the inverse power law ``error(n) = a + b * n**-c`` that Figueroa et al. (2012,
"Predicting sample size required for classification performance") fit to small annotated sets,
with ``0 <= a <= 1``, ``b >= 0`` and `EXPONENTS`, by bounded least squares weighted with the seeds.

The interval of the gain comes from its profile: it contains all gains for which some curve's
weighted squares exceed the best fit's by at most the square of Student's t. Bootstrapping two or
three seeds gives intervals that are too narrow; the covariance matrix is invalid at a bound or if
the points do not determine the exponent. The profile handles both. The interval is of the mean
over seeds, not of one more run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.stats

LEVEL = 0.95
# Distinct sizes that a curve with three parameters needs.
MINIMUM_SIZES = 3
# A forecast beyond this multiple of the largest size would be a guess.
FARTHEST = 4.0
EXPONENTS = (0.01, 10.0)
# A fit is poor if its lack of fit is significant at this level and a residual is this large.
_POOR_P, _POOR_RESIDUAL = 0.01, 0.01
# A pilot jumps if the seeds of a size differ by this share of the curve's height, and the curve
# is at least this high.
_JUMP, _JUMP_HEIGHT = 2 / 3, 0.2
_GRID = np.geomspace(*EXPONENTS, 160)
# Smallest gain of the grid, and its number of gains.
_SMALLEST_GAIN, _GAINS = 1e-6, 120


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a pilot.

    Attributes:
        size: training pairs, at least 1.
        error: 1 - accuracy.
        stderr: binomial, over the test examples.
        examples: number of test examples.
    """

    size: float
    error: float
    stderr: float
    examples: int


@dataclasses.dataclass(frozen=True)
class Gain:
    """Gain in accuracy from `more` pairs; the interval from `low` to `high` is at `LEVEL`."""

    more: float
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """A curve through a pilot.

    Attributes:
        sizes: distinct, ascending.
        errors: mean of each size.
        seeds: number of runs of each size.
        a, b, c: ``error(n) = a + b * (n / largest)**-c``; b is the error above a at the largest.
        noise: standard deviation of one run, including lack of fit.
        degrees: degrees of freedom of the noise; 0 = no size has several seeds, so the noise comes
            from the test examples.
        poor: why there is no forecast; "" = the curve fits.
    """

    sizes: tuple[float, ...]
    errors: tuple[float, ...]
    seeds: tuple[int, ...]
    a: float
    b: float
    c: float
    noise: float
    degrees: int
    poor: str

    @property
    def largest(self) -> float:
        """The largest size."""
        return self.sizes[-1]

    def error(self, size: float) -> float:
        """Of the fitted curve."""
        return self.a + self.b * (size / self.largest) ** -self.c

    def gain(self, more: float) -> Gain:
        """The gain of `more` pairs beyond the largest size."""
        value = self.error(self.largest) - self.error(self.largest + more)
        drops = -np.expm1(-_GRID * np.log1p(more / self.largest))

        def excess(gain: float) -> float:
            """By how much the squares of the best curve with this gain exceed the limit."""
            return float(self._squares(np.array([gain]), drops)[0]) - limit

        gains = np.unique([0.0, value, *np.geomspace(_SMALLEST_GAIN, 1.0, _GAINS)])
        squares = self._squares(gains, drops)
        limit = float(squares.min()) + _quantile(self.degrees) ** 2
        inside = np.flatnonzero(squares <= limit)
        low, high = float(gains[inside[0]]), float(gains[inside[-1]])
        if inside[0] > 0:
            low = scipy.optimize.brentq(excess, gains[inside[0] - 1], low)
        if inside[-1] + 1 < len(gains):
            high = scipy.optimize.brentq(excess, high, gains[inside[-1] + 1])
        return Gain(more, value, min(low, value), max(high, value))

    def _squares(self, gains: np.ndarray, drops: np.ndarray) -> np.ndarray:
        """Smallest weighted squares of a curve with each gain, over exponents and offsets.

        Args:
            gains: [g].
            drops: [c], share of b that the further data removes, for each exponent of the grid.
        """
        powers = (np.array(self.sizes) / self.largest)[:, None] ** -_GRID
        errors = np.array(self.errors)[:, None, None]
        weights = np.array(self.seeds)[:, None, None] / self.noise**2
        rest = errors - powers[:, None, :] * (gains[:, None] / drops)
        offset = np.clip((weights * rest).sum(0) / weights.sum(0), 0.0, 1.0)
        return (weights * (rest - offset) ** 2).sum(0).min(-1)


def fit(points: Sequence[Point]) -> Fit | str:
    """The curve through a pilot's runs.

    The noise of a run is pooled over the sizes with several seeds; without any, it is the
    binomial error of the test examples. If the points lie farther from the curve than that, the
    noise is their distance.

    Returns:
        The curve, or why there is none.
    """
    by_size: dict[float, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.size):
        by_size.setdefault(point.size, []).append(point)
    if len(by_size) < MINIMUM_SIZES:
        sizes_run = "1 size" if len(by_size) == 1 else f"{len(by_size)} sizes"
        return f"{sizes_run} of training data; {MINIMUM_SIZES} are needed"
    sizes = np.array([*by_size])
    errors = np.array([np.mean([p.error for p in group]) for group in by_size.values()])
    seeds = np.array([len(group) for group in by_size.values()])
    variance, degrees = _run_variance(by_size)
    a, b, c = _least_squares(sizes / sizes[-1], errors, seeds)
    residuals = errors - a - b * (sizes / sizes[-1]) ** -c
    left = max(1, len(sizes) - 3)
    lack = float((seeds * residuals**2).sum()) / left
    poor = _jump(by_size) or _lack_of_fit(lack / variance, left, degrees, residuals, sizes)
    return Fit(
        sizes=tuple(map(float, sizes)),
        errors=tuple(map(float, errors)),
        seeds=tuple(map(int, seeds)),
        a=a,
        b=b,
        c=c,
        noise=math.sqrt(max(variance, lack)),
        degrees=degrees,
        poor=poor,
    )


def _quantile(degrees: int) -> float:
    tail = 1 - (1 - LEVEL) / 2
    return float(scipy.stats.t.ppf(tail, degrees) if degrees else scipy.stats.norm.ppf(tail))


def _run_variance(by_size: Mapping[float, Sequence[Point]]) -> tuple[float, int]:
    """Variance of one run's error around the mean of its size, and its degrees of freedom."""
    points = [point for group in by_size.values() for point in group]
    # Runs with equal accuracy may still differ by less than one example.
    minimum = float(np.mean([1 / point.examples for point in points])) ** 2
    degrees = len(points) - len(by_size)
    if not degrees:
        return max(minimum, float(np.mean([point.stderr**2 for point in points]))), 0
    squares = sum(
        (point.error - np.mean([p.error for p in group])) ** 2
        for group in by_size.values()
        for point in group
    )
    return max(minimum, float(squares) / degrees), degrees


def _least_squares(
    ratios: np.ndarray, errors: np.ndarray, seeds: np.ndarray
) -> tuple[float, float, float]:
    """a, b and c of the best curve over several initial values."""

    def residuals(curve: np.ndarray) -> np.ndarray:
        a, b, c = curve
        return np.sqrt(seeds) * (errors - a - b * ratios**-c)

    # A curve that does not fall is its mean.
    mean = float(np.average(errors, weights=seeds))
    best, lowest = (mean, 0.0, 1.0), float((seeds * (errors - mean) ** 2).sum()) / 2
    for c in (0.1, 0.5, 2.0):
        start = (errors.min() / 2, max(errors[-1] - errors.min() / 2, 1e-3), c)
        bounds = ((0.0, 0.0, EXPONENTS[0]), (1.0, 1.0, EXPONENTS[1]))
        solution = scipy.optimize.least_squares(residuals, start, bounds=bounds)
        if solution.cost < lowest - 1e-15:
            a, b, c = map(float, solution.x)
            best, lowest = (a, b, c), float(solution.cost)
    return best


def _jump(by_size: Mapping[float, Sequence[Point]]) -> str:
    """Where seeds differ as much as the whole curve, because only some learned the task; or ""."""
    means = [float(np.mean([p.error for p in group])) for group in by_size.values()]
    height = max(means) - min(means)
    for size, group in by_size.items():
        errors = [point.error for point in group]
        apart = max(errors) - min(errors)
        if height >= _JUMP_HEIGHT and apart >= _JUMP * height:
            return (
                f"all or nothing: at {size:,.0f} pairs, seeds differ by {100 * apart:.0f} points "
                f"of the curve's {100 * height:.0f}"
            )
    return ""


def _lack_of_fit(
    ratio: float, left: int, degrees: int, residuals: np.ndarray, sizes: np.ndarray
) -> str:
    """Where the curve misses a point by more than the spread over seeds explains; or ""."""
    worst = int(np.abs(residuals).argmax())
    if degrees:
        p = scipy.stats.f.sf(ratio, left, degrees)
    else:
        p = scipy.stats.chi2.sf(ratio * left, left)
    if p >= _POOR_P or abs(residuals[worst]) < _POOR_RESIDUAL:
        return ""
    return (
        f"poor fit: at {sizes[worst]:,.0f} pairs, the curve is off by "
        f"{100 * abs(residuals[worst]):.1f} points"
    )
