"""How many labels are enough: what the next annotations would gain and cost, from a pilot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from stepdistill_jax.report import formats, plots, power_law
from stepdistill_jax.report.comparisons import ReportData
from stepdistill_jax.report.curves import CurveSet, curve_sets, file_name, style_key, styles
from stepdistill_jax.report.document import (
    Block,
    Entry,
    Figure,
    Paragraph,
    Row,
    Section,
    Table,
    missing,
    number,
)
from stepdistill_jax.report.power_law import Fit, Gain, Point
from stepdistill_jax.report.variants import Variant, VariantKey
from stepdistill_jax.spec import RATIONALE_METHODS

# Annotations that a forecast covers.
STEP = 1000
_TITLE = "How many labels are enough"
_NO_PAIRS = "number of training pairs unknown"
# A gain below this is shown as 0.
_ZERO_GAIN = 0.5e-4

_CURVE_EXPLANATION = (
    "What the next annotations would gain, from the fractions that were run. The curve a + b · (n "
    "/ largest)^−c is fitted to the error by least squares, weighted with the number of seeds. "
    "Gain: of the mean accuracy over seeds, in percentage points. Interval: all gains for which "
    "some such curve fits almost as well as the best one (profile likelihood, with Student's t for "
    "the noise pooled over seeds). It assumes that the curve continues as it began; in simulated "
    "pilots for which this is true, the interval contains the true gain in at least about 95% of "
    "cases."
)
_FORECAST_EXPLANATION = (
    f"A forecast covers at most {power_law.FARTHEST:g} times the largest training set. There is no "
    "forecast from fewer than three sizes, if the curve misses the points by more than the spread "
    "over seeds explains, or if only some seeds learn the task. Almost any three points lie on "
    "such a curve, so three sizes cannot show whether it fits. An annotation is a training pair; "
    "its cost is in the currency of the price. With teacher labels, the cost includes examples "
    "that received no label."
)


@dataclasses.dataclass(frozen=True)
class AnnotationPrices:
    """The price of an annotation, in any currency.

    Attributes:
        one_price: for all data sets; None = use the other two.
        of_examples: data set -> price of an annotated example. It applies to curves that learn
            rationales: an example without a rationale still is a training pair.
        of_labels: data set -> price of an example that received a label. It applies to curves
            that learn the teacher's labels.
    """

    one_price: float | None = None
    of_examples: Mapping[str, float] = dataclasses.field(default_factory=dict)
    of_labels: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, key: VariantKey) -> float | None:
        """Price of an annotation for a variant; None if unknown."""
        if self.one_price is not None:
            return self.one_price
        if key.recipe.labels == "teacher":
            return self.of_labels.get(key.task.dataset)
        if key.recipe.method in RATIONALE_METHODS:
            return self.of_examples.get(key.task.dataset)
        return None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The learning curve of one method on one data set.

    Attributes:
        variants: one a fraction, ascending.
        fit: the curve, or why there is none.
        gain: of the next annotations; None without a forecast.
        price: of an annotation; None if unknown.
    """

    variants: Sequence[Variant]
    fit: Fit | str
    gain: Gain | None
    price: float | None

    @property
    def key(self) -> VariantKey:
        """That of the largest fraction."""
        return self.variants[-1].key

    @property
    def method(self) -> str:
        """The method's name."""
        return formats.method(self.key.recipe, with_added=False)

    @property
    def cost(self) -> float | None:
        """Of the annotations that `gain` covers."""
        return None if self.gain is None or self.price is None else self.gain.more * self.price

    @property
    def reading(self) -> str:
        """What the curve means, in words."""
        if isinstance(self.fit, str):
            return self.fit
        if self.gain is None:
            return self.fit.poor
        is_flat = self.gain.low < _ZERO_GAIN
        parts = ["flat: the gain may be 0" if is_flat else "still learning"]
        if self.gain.more < STEP:
            parts.append(f"{STEP:,} more would exceed {power_law.FARTHEST:g} times the data")
        if not self.fit.degrees:
            parts.append("one seed each: noise estimated from the test examples")
        return "; ".join(parts)


def forecasts(data: ReportData, prices: AnnotationPrices) -> list[list[Forecast]]:
    """For each curve set, the methods that were run at several fractions."""
    return [
        [_forecast(vs, prices) for vs in curves.variants.values() if len(vs) > 1]
        for curves in curve_sets(data.scores)
    ]


def _forecast(variants: Sequence[Variant], prices: AnnotationPrices) -> Forecast:
    variants = sorted(variants, key=lambda variant: variant.key.fraction)
    price = prices.of(variants[-1].key)
    points: list[Point] = []
    for variant in variants:
        pairs = variant.cost("train_pairs")
        if not pairs:
            return Forecast(variants, _NO_PAIRS, None, price)
        results = [line.result for line in variant.lines]
        points += [Point(pairs, 1 - r.accuracy, r.stderr, r.n) for r in results]
    fit = power_law.fit(points)
    if isinstance(fit, str) or fit.poor:
        return Forecast(variants, fit, None, price)
    more = min(STEP, int((power_law.FARTHEST - 1) * fit.largest))
    return Forecast(variants, fit, fit.gain(more), price)


def section(data: ReportData, groups: Sequence[Sequence[Forecast]]) -> Section:
    """A row for every curve, and a figure for every curve set with a fitted curve."""
    rows = [_row(forecast) for group in groups for forecast in group]
    if not rows:
        text = (
            f"Not run: a learning curve needs one method at {power_law.MINIMUM_SIZES} or more "
            "fractions of the same data (FRACTION)."
        )
        return Section("learning-curve", _TITLE, [Paragraph(text)])
    blocks: list[Block] = [
        Paragraph(_CURVE_EXPLANATION),
        Paragraph(_FORECAST_EXPLANATION),
        Table("The next annotations", rows),
    ]
    style_of = styles(data.scores)
    figures = [
        _figure(curves, fitted, style_of)
        for curves, group in zip(curve_sets(data.scores), groups, strict=True)
        if (fitted := [(f, f.fit) for f in group if isinstance(f.fit, Fit)])
    ]
    return Section("learning-curve", _TITLE, blocks, figures)


def lines(groups: Sequence[Sequence[Forecast]]) -> tuple[str, ...]:
    """What to print: one line for every fitted curve, and one for all others."""
    every = [forecast for group in groups for forecast in group]
    texts = [_line(forecast) for forecast in every if isinstance(forecast.fit, Fit)]
    reasons = [forecast.fit for forecast in every if isinstance(forecast.fit, str)]
    if reasons:
        curves = formats.count(len(reasons), "learning curve")
        texts.append(f"{curves} not fitted: {'; '.join(dict.fromkeys(reasons))}")
    return tuple(texts)


def _line(forecast: Forecast) -> str:
    name = f"{formats.data_and_model(forecast.key)}, {forecast.method}"
    gain, cost = forecast.gain, forecast.cost
    if gain is None:
        return f"{name}: no forecast, {forecast.reading}"
    price = "" if cost is None else f" for {formats.significant(cost)}"
    return (
        f"{name}: the next {gain.more:,.0f} annotations{price} bring {formats.points(gain.value)} "
        f"points (95% interval {_interval(gain)}); {forecast.reading}"
    )


def _interval(gain: Gain) -> str:
    return f"{formats.points(gain.low)} to {formats.points(gain.high)}"


def _row(forecast: Forecast) -> Row:
    fit, gain = forecast.fit, forecast.gain
    curve: Entry
    if isinstance(fit, str):
        pilot = ", ".join(formats.fraction(v.key.fraction) for v in forecast.variants)
        curve, reading = missing("no curve"), missing(fit)
    else:
        runs = formats.count(sum(fit.seeds), "run")
        pilot = f"{fit.sizes[0]:,.0f} to {fit.largest:,.0f} ({len(fit.sizes)} sizes, {runs})"
        a, b = formats.percent(fit.a, 1), formats.percent(fit.b, 1)
        curve = number(f"{a} + {b} · (n / {fit.largest:,.0f})^−{fit.c:.2f}")
        reading = Entry(forecast.reading)
    none = "no forecast"
    return {
        "data and model": formats.data_and_model(forecast.key),
        "method": forecast.method,
        "pilot, pairs": pilot,
        "error in percent at n pairs": curve,
        "next pairs": number(gain.more if gain else None, formats.whole, none),
        "gain": number(gain.value if gain else None, formats.points, none),
        "95% interval": number(gain, _interval, none),
        "cost": number(forecast.cost, formats.significant, "no price" if gain else none),
        "reading": reading,
    }


def _figure(
    curves: CurveSet,
    fitted: Sequence[tuple[Forecast, Fit]],
    style_of: Mapping[tuple[str, str, str], int],
) -> Figure:
    observed: list[plots.Curve] = []
    lines: list[plots.Curve] = []
    bands: list[plots.Band] = []
    ticks: dict[float, str] = {}
    table: list[Row] = []
    intervals = []
    for forecast, fit in fitted:
        gain, name = forecast.gain, forecast.method
        style = style_of[style_key(forecast.key.recipe)]
        ticks |= {size: formats.whole(size) for size in fit.sizes}
        observed.append(plots.Curve(name, _observed(forecast, fit), style, joined=False))
        end = fit.largest + (gain.more if gain else 0.0)
        along = np.geomspace(fit.sizes[0], end, 40)
        points: list[plots.Point] = [(n, 100 * (1 - fit.error(n)), None) for n in along]
        lines.append(plots.Curve("", points, style, marked=False))
        table += _numbers(name, fit)
        if gain:
            bands.append(plots.Band(_fan(fit, gain), style))
            intervals.append(f"{name}, the next {gain.more:,.0f} pairs: {_interval(gain)}.")
    picture = plots.panel(
        [*lines, *observed], {}, "training pairs", "accuracy, percent", ticks, bands
    )
    alt = " ".join([plots.describe(observed, {}, formats.whole), *intervals])
    student = curves.student
    return Figure(
        file_name("pairs", curves.task, curves.labels, curves.augment,
                  student.model, student.initial),
        f"{curves.title}: fitted curves, and the 95% interval of the forecast",
        f"Accuracy in percent against training pairs. {alt}",
        picture.svg,
        picture.png,
        Table(f"Points and curves: {curves.title}", table),
    )  # fmt: skip


def _observed(forecast: Forecast, fit: Fit) -> list[plots.Point]:
    """The mean of every size in percent, with the standard error over its seeds."""
    errors = {variant.cost("train_pairs"): variant.error for variant in forecast.variants}
    points: list[plots.Point] = []
    for size, error in zip(fit.sizes, fit.errors, strict=True):
        spread = errors[size]
        points.append((size, 100 * (1 - error), None if spread is None else 100 * spread))
    return points


def _fan(fit: Fit, gain: Gain) -> list[tuple[float, float, float]]:
    """The interval beyond the largest size, around the curve's value there."""
    start = 1 - fit.error(fit.largest)
    points = [(fit.largest, 100 * start, 100 * start)]
    for more in np.linspace(0, gain.more, 6)[1:]:
        ahead = gain if more == gain.more else fit.gain(float(more))
        points.append(
            (fit.largest + float(more), 100 * (start + ahead.low), 100 * (start + ahead.high))
        )
    return points


def _numbers(name: str, fit: Fit) -> list[Row]:
    return [
        {
            "method": name,
            "pairs": number(size, formats.whole),
            "accuracy": number(1 - error, formats.percent),
            "of the curve": number(1 - fit.error(size), formats.percent),
        }
        for size, error in zip(fit.sizes, fit.errors, strict=True)
    ]
