"""Accuracy against the data fraction (the paper's Figures 4 and 5), and the labels saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.stats

from stepdistill_jax.report import formats, paper, plots
from stepdistill_jax.report.accuracy import paper_entry
from stepdistill_jax.report.comparisons import ReportData
from stepdistill_jax.report.curves import (
    CurveSet,
    accuracy_point,
    curve_sets,
    file_name,
    style_key,
    styles,
)
from stepdistill_jax.report.document import (
    Entry,
    Figure,
    Paragraph,
    Row,
    Section,
    Table,
    missing,
    number,
)
from stepdistill_jax.report.statistics import crossing, crossing_interval
from stepdistill_jax.report.variants import PAPERS_RECIPE, Recipe, Variant


def fraction_curves(data: ReportData) -> Section:
    """A figure for each task, model and source of labels with several fractions."""
    title = "Accuracy against data"
    sets = curve_sets(data.scores)
    if not sets:
        text = "Not run: no data set was trained on at several fractions (FRACTION)."
        return Section("fractions", title, [Paragraph(text)])
    text = (
        "As the paper's Figures 4 (gold labels) and 5 (teacher labels). Points are means over "
        "seeds, bars one standard error; the horizontal axis is logarithmic."
    )
    style_of = styles(data.scores)
    figures = [_figure(data, curves, style_of) for curves in sets]
    return Section("fractions", title, [Paragraph(text)], figures)


def _figure(
    data: ReportData, curves: CurveSet, style_of: Mapping[tuple[str, str, str], int]
) -> Figure:
    lines = [
        plots.Curve(
            formats.method(recipe, with_added=False),
            [accuracy_point(variant.key.fraction, variant) for variant in variants],
            style_of[style_key(recipe)],
        )
        for recipe, variants in curves.variants.items()
    ]
    levels = {}
    if curves.baseline is not None:
        levels["standard, all data"] = 100 * curves.baseline.mean
    trivial = trivial_accuracy(data, [v for vs in curves.variants.values() for v in vs])
    if trivial is not None:
        levels["trivial baseline"] = 100 * trivial
    picture = plots.panel(
        lines,
        levels,
        "fraction of the training data",
        "accuracy, percent",
        {fraction: formats.fraction(fraction) for fraction in curves.fractions},
    )
    alt = plots.describe(lines, levels, formats.fraction)
    student = curves.student
    return Figure(
        file_name("fractions", curves.task, curves.labels, curves.augment,
                  student.model, student.initial),
        curves.title,
        f"Accuracy in percent against the fraction of the training data. {alt}",
        picture.svg,
        picture.png,
        _numbers(curves),
    )  # fmt: skip


def _numbers(curves: CurveSet) -> Table:
    pairs: dict[float, str] = {}
    for variant in (v for variants in curves.variants.values() for v in variants):
        count = variant.cost("train_pairs")
        if count is not None:
            pairs.setdefault(variant.key.fraction, f", {count:.0f} pairs")
    rows: list[Row] = []
    for recipe, variants in curves.variants.items():
        at = {variant.key.fraction: variant for variant in variants}
        accuracies = {
            f"{formats.fraction(f)}{pairs.get(f, '')}": formats.accuracy(at.get(f))
            for f in curves.fractions
        }
        rows.append({"method": formats.method(recipe), **accuracies})
    return Table(f"Numbers: {curves.title}", rows)


def trivial_accuracy(data: ReportData, variants: Iterable[Variant]) -> float | None:
    """Mean of the trivial baselines of the distinct test sets; None without predictions."""
    baselines = [b for v in variants for b in data.trivial_baselines(v) if b is not None]
    distinct = {id(baseline): baseline.accuracy for baseline in baselines}
    return float(np.mean([*distinct.values()])) if distinct else None


def labels_saved(data: ReportData) -> Section:
    """The fraction at which each method reaches standard finetuning on all data."""
    rows = [
        _saved(data, curves.baseline, recipe, variants)
        for curves in curve_sets(data.scores)
        for recipe, variants in curves.variants.items()
        if not recipe.is_baseline and len(variants) > 1
    ]
    title = "Labels saved"
    if not rows:
        text = (
            "Not run: this needs standard finetuning on all data and another method at several "
            "fractions of the same data."
        )
        return Section("labels-saved", title, [Paragraph(text)])
    text = (
        "Labels needed: the fraction of the labels at which a method's mean accuracy first reaches "
        "that of standard finetuning on all labels, interpolated linearly between fractions. “At "
        "most” means that the smallest fraction that was run was enough. The 95% interval comes "
        "from resampling seeds; with few seeds it is rough. There is no claim if standard "
        "finetuning on all data does not exceed the trivial baseline by more than two standard "
        "errors (the larger of the errors over seeds and over examples): then there is nothing to "
        "save."
    )
    table = Table("Labels needed to reach standard finetuning on all data", rows)
    return Section("labels-saved", title, [Paragraph(text), table])


def _saved(
    data: ReportData, baseline: Variant | None, recipe: Recipe, variants: Sequence[Variant]
) -> Row:
    trivial = None if baseline is None else trivial_accuracy(data, [baseline])
    needed, interval = needed_labels(data, baseline, variants)
    key = variants[0].key
    printed = paper.LABELS_NEEDED if recipe == PAPERS_RECIPE else {}
    return {
        "data and model": formats.data_and_model(key),
        "method": formats.method(recipe, with_added=False),
        "standard, all data": formats.accuracy(baseline),
        "trivial baseline": number(trivial, formats.percent, "no predictions"),
        "labels needed": needed,
        "95% interval": interval,
        "paper, T5-Base": paper_entry(printed, key.task.dataset),
    }


def needed_labels(
    data: ReportData, baseline: Variant | None, variants: Sequence[Variant]
) -> tuple[Entry, Entry]:
    """The fraction of the labels at which a method reaches its baseline, and the interval.

    Args:
        baseline: standard finetuning on all data; None if it was not run.
        variants: of the method, one a fraction.
    """
    no_claim = missing("no claim")
    if baseline is None:
        return missing("standard on all data not run"), no_claim
    above = is_above_trivial(data, baseline)
    if above is None:
        return missing("no predictions: trivial baseline unknown"), no_claim
    if not above:
        return missing("standard is at the trivial baseline"), no_claim
    point = crossing({v.key.fraction: v.mean for v in variants}, baseline.mean)
    needed = number(point, formats.crossing)
    if point.fraction is None:
        needed = missing(needed.text)
    curve = {v.key.fraction: _accuracies(v) for v in variants}
    ends = crossing_interval(curve, _accuracies(baseline))
    if ends is None:
        return needed, missing("one seed: no interval")
    seeds = min(len(baseline.seeds), *(len(v.seeds) for v in variants))
    low, high = map(formats.crossing, ends)
    interval = low if low == high else f"{low} to {high}"
    return needed, number(f"{interval} ({formats.count(seeds, 'seed')})")


def _accuracies(variant: Variant) -> dict[tuple[int, int], float]:
    return {seed: line.result.accuracy for seed, line in variant.seeds.items()}


def is_above_trivial(data: ReportData, variant: Variant) -> bool | None:
    """Whether the mean exceeds the trivial baseline by more than two standard errors.

    The larger of two errors counts: over seeds, and over the examples of one run. Seeds that
    happen to agree still share one test set.

    Returns:
        None if a run has no predictions, so that its trivial baseline is unknown.
    """
    trivial = [b.accuracy for b in data.trivial_baselines(variant) if b is not None]
    if len(trivial) < len(variant.lines):
        return None
    results = [line.result for line in variant.lines]
    excess = [result.accuracy - low for result, low in zip(results, trivial, strict=True)]
    errors = [float(np.mean([result.stderr for result in results]))]
    if len(excess) > 1:
        errors.append(float(scipy.stats.sem(excess)))
    return float(np.mean(excess)) > 2 * max(errors)
