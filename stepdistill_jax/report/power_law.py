"""A learning curve through a pilot's points, and how much more data would bring.

The curve is the inverse power law ``error(n) = a + b * n**-c`` that Figueroa et al. (2012,
"Predicting sample size required for classification performance") fit to small annotated sets,
with ``0 <= a <= 1``, ``b >= 0`` and `EXPONENTS`, by bounded least squares weighted with the seeds.

Its uncertainty is that of the gain itself, by its profile: all gains for which some curve fits so
well that the weighted squares exceed the best fit's by no more than the square of Student's t.
Bootstrapping two or three seeds gives intervals that are too narrow, and the covariance matrix
gives nonsense where a bound is reached or the points do not determine the exponent; the profile
knows both. The interval is of the mean over seeds, not of one more run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.stats

LEVEL = 0.95
# Distinct sizes that a curve of three parameters needs.
LEAST_SIZES = 3
# A forecast for more than so many times the largest size would be a guess.
FARTHEST = 4.0
EXPONENTS = (0.01, 10.0)
# Lack of fit at this level, and by this much accuracy somewhere, is a poor fit.
_POOR_P, _POOR_RESIDUAL = 0.01, 0.01
# A size whose seeds are this much of the curve's height apart, of a curve this high, jumps.
_JUMP, _JUMP_HEIGHT = 2 / 3, 0.2
_GRID = np.geomspace(*EXPONENTS, 160)
# Least gain that is looked for, and how finely.
_LEAST_GAIN, _GAINS = 1e-6, 120


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a pilot.

    Attributes:
        size: training pairs, at least 1.
        error: 1 - accuracy.
        stderr: binomial, over the test examples.
        examples: that it was scored on.
    """

    size: float
    error: float
    stderr: float
    examples: int


@dataclasses.dataclass(frozen=True)
class Gain:
    """What more data would bring, as a share of accuracy; `low` to `high` is at `LEVEL`."""

    more: float
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """A curve through a pilot.

    Attributes:
        sizes: distinct, ascending.
        errors: mean at each.
        seeds: runs at each.
        a, b, c: ``error(n) = a + b * (n / largest)**-c``: b is the error above a at the largest.
        noise: standard deviation of one run, lack of fit included.
        degrees: of freedom that the noise was estimated with; 0 = from the examples alone, as no
            size has several seeds.
        poor: why no forecast is to be made; "" = the curve fits.
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
        """Of the sizes."""
        return self.sizes[-1]

    def error(self, size: float) -> float:
        """Of the fitted curve."""
        return self.a + self.b * (size / self.largest) ** -self.c

    def gain(self, more: float) -> Gain:
        """What `more` pairs beyond the largest size would bring."""
        value = self.error(self.largest) - self.error(self.largest + more)
        drops = -np.expm1(-_GRID * np.log1p(more / self.largest))

        def excess(gain: float) -> float:
            """How much worse the best curve with this gain fits than is allowed."""
            return float(self._squares(np.array([gain]), drops)[0]) - limit

        gains = np.unique([0.0, value, *np.geomspace(_LEAST_GAIN, 1.0, _GAINS)])
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
        """Least weighted squares of a curve with each gain, over exponents and offsets.

        Args:
            gains: [g].
            drops: [c], share of b that the further data takes away, one an exponent of the grid.
        """
        powers = (np.array(self.sizes) / self.largest)[:, None] ** -_GRID
        errors = np.array(self.errors)[:, None, None]
        weights = np.array(self.seeds)[:, None, None] / self.noise**2
        rest = errors - powers[:, None, :] * (gains[:, None] / drops)
        offset = np.clip((weights * rest).sum(0) / weights.sum(0), 0.0, 1.0)
        return (weights * (rest - offset) ** 2).sum(0).min(-1)


def fit(points: Sequence[Point]) -> Fit | str:
    """The curve through a pilot's runs.

    The noise of a run is pooled over the sizes that have several seeds; without any it is what
    the number of test examples gives. Where the points lie farther off the curve than that, the
    noise is what they say.

    Returns:
        The curve, or what is missing to draw one.
    """
    by_size: dict[float, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.size):
        by_size.setdefault(point.size, []).append(point)
    if len(by_size) < LEAST_SIZES:
        have = "1 size" if len(by_size) == 1 else f"{len(by_size)} sizes"
        return f"{have} of training data; {LEAST_SIZES} are needed"
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
    """Of one run's error about its size's mean, and its degrees of freedom."""
    points = [point for group in by_size.values() for point in group]
    # Runs that agree to the example still differ by less than one.
    least = float(np.mean([1 / point.examples for point in points])) ** 2
    degrees = len(points) - len(by_size)
    if not degrees:
        return max(least, float(np.mean([point.stderr**2 for point in points]))), 0
    squares = sum(
        (point.error - np.mean([p.error for p in group])) ** 2
        for group in by_size.values()
        for point in group
    )
    return max(least, float(squares) / degrees), degrees


def _least_squares(
    ratios: np.ndarray, errors: np.ndarray, seeds: np.ndarray
) -> tuple[float, float, float]:
    """a, b and c of the best curve, from several starts."""

    def residuals(curve: np.ndarray) -> np.ndarray:
        a, b, c = curve
        return np.sqrt(seeds) * (errors - a - b * ratios**-c)

    # A curve that does not fall is its mean.
    mean = float(np.average(errors, weights=seeds))
    best, least = (mean, 0.0, 1.0), float((seeds * (errors - mean) ** 2).sum()) / 2
    for c in (0.1, 0.5, 2.0):
        start = (errors.min() / 2, max(errors[-1] - errors.min() / 2, 1e-3), c)
        bounds = ((0.0, 0.0, EXPONENTS[0]), (1.0, 1.0, EXPONENTS[1]))
        found = scipy.optimize.least_squares(residuals, start, bounds=bounds)
        if found.cost < least - 1e-15:
            a, b, c = map(float, found.x)
            best, least = (a, b, c), float(found.cost)
    return best


def _jump(by_size: Mapping[float, Sequence[Point]]) -> str:
    """Says where seeds differ as much as the whole curve: some learnt the task, others not."""
    means = [float(np.mean([p.error for p in group])) for group in by_size.values()]
    height = max(means) - min(means)
    for size, group in by_size.items():
        errors = [point.error for point in group]
        apart = max(errors) - min(errors)
        if height >= _JUMP_HEIGHT and apart >= _JUMP * height:
            return (
                f"all or nothing: at {size:,.0f} pairs seeds are {100 * apart:.0f} points apart, "
                f"of a curve {100 * height:.0f} points high"
            )
    return ""


def _lack_of_fit(
    ratio: float, left: int, degrees: int, residuals: np.ndarray, sizes: np.ndarray
) -> str:
    """Says where the curve misses the points by more than seeds explain."""
    worst = int(np.abs(residuals).argmax())
    if degrees:
        p = scipy.stats.f.sf(ratio, left, degrees)
    else:
        p = scipy.stats.chi2.sf(ratio * left, left)
    if p >= _POOR_P or abs(residuals[worst]) < _POOR_RESIDUAL:
        return ""
    return (
        f"poor fit: at {sizes[worst]:,.0f} pairs the curve is "
        f"{100 * abs(residuals[worst]):.1f} points off"
    )
