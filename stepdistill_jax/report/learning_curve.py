"""How many labels are enough: what the next annotations would bring and cost, from a pilot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from stepdistill_jax.report import plots, power_law, words
from stepdistill_jax.report.comparisons import Material
from stepdistill_jax.report.document import (
    MISSING,
    NUMBER,
    Block,
    Entry,
    Figure,
    Paragraph,
    Section,
    Table,
)
from stepdistill_jax.report.fractions import CurveSet, curve_sets, look, looks
from stepdistill_jax.report.power_law import Fit, Gain, Point
from stepdistill_jax.report.tables import Cell, Recipe, Setting
from stepdistill_jax.spec import RATIONALE_METHODS

# Annotations that a forecast is about.
STEP = 1000
_TITLE = "How many labels are enough"
_NO_PAIRS = "training pairs are not known"
# A gain that reads as 0.
_NOTHING = 0.5e-4


@dataclasses.dataclass(frozen=True)
class Prices:
    """What an annotation costs, in whatever money.

    Attributes:
        given: one for all; None = none was given.
        of_rows: data set -> of a row that its teacher was asked about, for curves that learn from
            the rationales: a row without one is a training pair all the same.
        of_labels: the same of a row that got a label, for curves that learn the teacher's labels.
    """

    given: float | None = None
    of_rows: Mapping[str, float] = dataclasses.field(default_factory=dict)
    of_labels: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, setting: Setting) -> float | None:
        """For the training data of a setting; None where it is not known."""
        recipe = setting.recipe
        if self.given is not None:
            return self.given
        if recipe.labels == "teacher":
            return self.of_labels.get(setting.task.dataset)
        if recipe.method in RATIONALE_METHODS:
            return self.of_rows.get(setting.task.dataset)
        return None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One method on one data set.

    Attributes:
        cells: one a fraction, ascending.
        fit: the curve, or what is missing to draw one.
        gain: of the next annotations; None where no forecast is made.
        price: of an annotation; None where it is not known.
    """

    cells: Sequence[Cell]
    fit: Fit | str
    gain: Gain | None
    price: float | None

    @property
    def setting(self) -> Setting:
        """That of the largest fraction."""
        return self.cells[-1].setting

    @property
    def name(self) -> str:
        """The setting and its method."""
        return f"{words.where(self.setting)}, {_method(self.setting.recipe)}"

    @property
    def cost(self) -> float | None:
        """Of the annotations that `gain` is about."""
        return None if self.gain is None or self.price is None else self.gain.more * self.price

    @property
    def is_flat(self) -> bool:
        """Whether the forecast's gain cannot be told from none."""
        return self.gain is not None and self.gain.low < _NOTHING


def forecasts(material: Material, prices: Prices) -> list[list[Forecast]]:
    """For each set of curves, those of methods that were run at several fractions."""
    found = []
    for curves in curve_sets(material.scores):
        several = [cells for cells in curves.cells.values() if len(cells) > 1]
        found.append([_forecast(cells, prices) for cells in several])
    return found


def _forecast(cells: Sequence[Cell], prices: Prices) -> Forecast:
    cells = sorted(cells, key=lambda cell: cell.setting.fraction)
    price = prices.of(cells[-1].setting)
    points: list[Point] = []
    for cell in cells:
        pairs = cell.cost("train_pairs")
        if not pairs:
            return Forecast(cells, _NO_PAIRS, None, price)
        results = [line.result for line in cell.lines]
        points += [Point(pairs, 1 - r.accuracy, r.stderr, r.n) for r in results]
    fit = power_law.fit(points)
    if isinstance(fit, str) or fit.poor:
        return Forecast(cells, fit, None, price)
    more = min(STEP, int((power_law.FARTHEST - 1) * fit.largest))
    return Forecast(cells, fit, fit.gain(more), price)


def section(material: Material, found: Sequence[Sequence[Forecast]]) -> Section:
    """A line for every curve, and a figure for every set of which one was fitted."""
    rows = tuple(_row(forecast) for group in found for forecast in group)
    if not rows:
        text = (
            f"Not run: a learning curve needs runs of one setting at {power_law.LEAST_SIZES} "
            "fractions of the data (FRACTION) or more."
        )
        return Section("learning-curve", _TITLE, (Paragraph(text),))
    header = (
        "setting", "method", "pilot, pairs", "error, percent, at n pairs", "next pairs", "gain",
        "95% interval", "cost", "reading",
    )  # fmt: skip
    blocks: list[Block] = [
        Paragraph(
            "What the next annotations would bring, from the fractions that were run. The error "
            "is fitted by a + b · (n / largest)^−c, by least squares weighted with the number of "
            "seeds. Gain: of the mean accuracy over seeds, in percentage points. Interval: all "
            "gains for which some such curve fits hardly worse than the best one (profile, with "
            "Student's t for the noise that was pooled over seeds). It takes for granted that the "
            "curve goes on as it began; on made-up pilots that do, it holds the truth in about 95% "
            "of cases or more."
        ),
        Paragraph(
            f"A forecast reaches to {power_law.FARTHEST:g} times the largest training set at "
            "most. None is made from fewer than three sizes, where the curve misses the points by "
            "more than seeds explain, or where some seeds learn the task and others do not. "
            "Through three sizes goes such a curve almost whatever they are, so that they cannot "
            "show whether it fits. An annotation is a training pair; its cost is in the money of "
            "the price, and where a teacher's labels are learnt, rows that got none are paid for "
            "too."
        ),
        Table("The next annotations", header, rows),
    ]
    styles = looks(material.scores)
    for curves, group in zip(curve_sets(material.scores), found, strict=True):
        if any(isinstance(forecast.fit, Fit) for forecast in group):
            blocks.append(_figure(curves, group, styles))
    return Section("learning-curve", _TITLE, tuple(blocks))


def lines(found: Sequence[Sequence[Forecast]]) -> tuple[str, ...]:
    """What to print: a line for every curve that was fitted, and one for those that were not."""
    every = [forecast for group in found for forecast in group]
    told = [f"{forecast.name}: {_told(forecast)}" for forecast in every if _is_fitted(forecast)]
    missing = [forecast for forecast in every if not _is_fitted(forecast)]
    if missing:
        reasons = dict.fromkeys(str(forecast.fit) for forecast in missing)
        told.append(
            f"{words.count(len(missing), 'learning curve')} not fitted: {'; '.join(reasons)}"
        )
    return tuple(told)


def _is_fitted(forecast: Forecast) -> bool:
    return isinstance(forecast.fit, Fit)


def _told(forecast: Forecast) -> str:
    gain, cost = forecast.gain, forecast.cost
    if gain is None:
        return f"no forecast, {_reading(forecast)}"
    price = "" if cost is None else f" for {words.significant(cost)}"
    return (
        f"the next {gain.more:,.0f} annotations{price} bring {words.points(gain.value)} points "
        f"(95% interval {_interval(gain)}); {_reading(forecast)}"
    )


def _method(recipe: Recipe) -> str:
    return words.recipe(dataclasses.replace(recipe, augment=""))


def _interval(gain: Gain) -> str:
    return f"{words.points(gain.low)} to {words.points(gain.high)}"


def _row(forecast: Forecast) -> tuple[Entry, ...]:
    setting, fit, gain = forecast.setting, forecast.fit, forecast.gain
    first = (Entry(words.where(setting)), Entry(_method(setting.recipe)))
    none = Entry("no forecast", MISSING)
    if isinstance(fit, str):
        fractions = [words.share(cell.setting.fraction) for cell in forecast.cells]
        pilot = Entry(", ".join(fractions))
        return (*first, pilot, Entry("no curve", MISSING), *[none] * 4, Entry(fit, MISSING))
    runs = words.count(sum(fit.seeds), "run")
    pilot = Entry(f"{fit.sizes[0]:,.0f} to {fit.largest:,.0f} ({len(fit.sizes)} sizes, {runs})")
    curve = Entry(
        f"{words.percent(fit.a, 1)} + {words.percent(fit.b, 1)} · (n / {fit.largest:,.0f})"
        f"^−{fit.c:.2f}",
        NUMBER,
    )
    reading = Entry(_reading(forecast))
    if gain is None:
        return (*first, pilot, curve, *[none] * 4, reading)
    cost = forecast.cost
    return (
        *first,
        pilot,
        curve,
        Entry(f"{gain.more:,.0f}", NUMBER),
        Entry(words.points(gain.value), NUMBER),
        Entry(_interval(gain), NUMBER),
        Entry("no price", MISSING) if cost is None else Entry(words.significant(cost), NUMBER),
        reading,
    )


def _reading(forecast: Forecast) -> str:
    fit, gain = forecast.fit, forecast.gain
    if isinstance(fit, str):
        return fit
    if gain is None:
        return fit.poor
    parts = ["flat: no gain to be told from 0" if forecast.is_flat else "still learning"]
    if gain.more < STEP:
        parts.append(f"{STEP:,} more would be beyond {power_law.FARTHEST:g} times the data")
    if not fit.degrees:
        parts.append("one seed each: noise taken from the test examples")
    return "; ".join(parts)


def _figure(
    curves: CurveSet, group: Sequence[Forecast], styles: dict[tuple[str, str, str], int]
) -> Figure:
    observed: list[plots.Curve] = []
    fitted: list[plots.Curve] = []
    bands: list[plots.Band] = []
    ticks: dict[float, str] = {}
    table: list[tuple[Entry, ...]] = []
    told = []
    for forecast in group:
        fit, gain = forecast.fit, forecast.gain
        if isinstance(fit, str):
            continue
        recipe = forecast.setting.recipe
        name, style = _method(recipe), styles[look(recipe)]
        ticks |= {size: f"{size:,.0f}" for size in fit.sizes}
        observed.append(plots.Curve(name, _observed(forecast, fit), style, joined=False))
        end = fit.largest + (gain.more if gain else 0.0)
        along = np.geomspace(fit.sizes[0], end, 40)
        fitted.append(
            plots.Curve(
                "", [(n, 100 * (1 - fit.error(n)), None) for n in along], style, True, False
            )
        )
        table += _numbers(forecast, fit)
        if gain:
            bands.append(plots.Band(_fan(fit, gain), style))
            told.append(f"{name}, the next {gain.more:,.0f} pairs: {_interval(gain)}.")
    picture = plots.panel(
        [*fitted, *observed], {}, "training pairs", "accuracy, percent", ticks, bands
    )
    alt = plots.in_words(observed, {}, lambda size: f"{size:,.0f}")
    return Figure(
        curves.file("pairs"),
        f"{curves.title}: fitted curves, and the forecast's 95% interval",
        f"Accuracy in percent against training pairs. {' '.join([alt, *told])}",
        picture.svg,
        picture.png,
        Table(
            f"Points and curves: {curves.title}",
            ("method", "pairs", "accuracy", "of the curve"),
            tuple(table),
        ),
    )


def _observed(forecast: Forecast, fit: Fit) -> list[tuple[float, float, float | None]]:
    """Every size's mean in percent, with the standard error over its seeds."""
    errors: dict[float, float | None] = {}
    for cell in forecast.cells:
        errors[cell.cost("train_pairs") or 0.0] = cell.error
    points = []
    for size, error in zip(fit.sizes, fit.errors, strict=True):
        spread = errors[size]
        points.append((size, 100 * (1 - error), None if spread is None else 100 * spread))
    return points


def _fan(fit: Fit, gain: Gain) -> list[tuple[float, float, float]]:
    """The interval from the largest size on, about the curve's own value there."""
    start = 1 - fit.error(fit.largest)
    points = [(fit.largest, 100 * start, 100 * start)]
    for more in np.linspace(0, gain.more, 6)[1:]:
        ahead = gain if more == gain.more else fit.gain(float(more))
        points.append(
            (fit.largest + float(more), 100 * (start + ahead.low), 100 * (start + ahead.high))
        )
    return points


def _numbers(forecast: Forecast, fit: Fit) -> list[tuple[Entry, ...]]:
    name = Entry(_method(forecast.setting.recipe))
    return [
        (
            name,
            Entry(f"{size:,.0f}", NUMBER),
            Entry(words.percent(1 - error), NUMBER),
            Entry(words.percent(1 - fit.error(size)), NUMBER),
        )
        for size, error in zip(fit.sizes, fit.errors, strict=True)
    ]
