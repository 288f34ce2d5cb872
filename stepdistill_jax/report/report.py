"""Reads runs and extractions, and writes their report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.report import (
    accuracy,
    appendix,
    formats,
    fractions,
    html_page,
    learning_curve,
    markdown,
    paper,
    settings_tried,
    sizes,
    summary,
    teacher_annotations,
)
from stepdistill_jax.report.comparisons import ReportData, analyze
from stepdistill_jax.report.document import Report, Section
from stepdistill_jax.report.extractions import ExtractionSummary, read_extractions
from stepdistill_jax.report.learning_curve import AnnotationPrices, Forecast
from stepdistill_jax.report.runs import Runs, read_runs
from stepdistill_jax.report.variants import Scores
from stepdistill_jax.run.results import RESULT_FIELDS
from stepdistill_jax.text import csv_text

PAGE, MARKDOWN, CSV, FIGURES = "index.html", "report.md", "results.csv", "figures"
# Numbers of extractions.
ANNOTATIONS_CSV = "annotations.csv"


@dataclasses.dataclass(frozen=True)
class Written:
    """The report that was written.

    Attributes:
        files: relative to the report's folder.
        runs: number of runs with results.
        without_number: names of runs that are in no table.
        lines: what to print about extractions and learning curves.
    """

    files: tuple[str, ...]
    runs: int
    without_number: tuple[str, ...]
    lines: tuple[str, ...] = ()


def write_report(
    folders: Sequence[epath.PathLike],
    out: epath.PathLike,
    extractions: Sequence[epath.PathLike] = (),
    annotation_cost: float | None = None,
    identity: Callable[[epath.Path], Mapping[str, str]] = lambda folder: {},
) -> Written:
    """Writes the page, its Markdown, the results as CSV and the figures.

    The same results give the same bytes.

    Args:
        folders: of runs, see `read_runs`; may be empty if there are extractions.
        out: folder, created if needed; files of an earlier report are replaced.
        extractions: folders of extractions (EXTRACT_DIR).
        annotation_cost: price of one annotation; None = the price in each extraction.
        identity: see `read_runs`.

    Raises:
        InputError: see `read_runs`, `analyze` and `read_extractions`.
    """
    files: dict[str, str | bytes] = {}
    summaries = read_extractions(extractions)
    lines = teacher_annotations.lines(summaries)
    names: list[str] = []
    without_number: tuple[str, ...] = ()
    if folders or not summaries:
        runs = read_runs(folders, identity)
        data = analyze(runs)
        prices = _prices(summaries, annotation_cost)
        forecasts = learning_curve.forecasts(data, prices)
        report = _report(_lead(data.scores), _sections(data, forecasts, summaries))
        files[CSV] = _results_csv(runs)
        names, without_number = runs.names, (*runs.empty, *data.scores.unselected)
        lines += learning_curve.lines(forecasts)
    else:
        report = _report(_lead_without_runs(summaries), [teacher_annotations.section(summaries)])
    if summaries:
        files[ANNOTATIONS_CSV] = teacher_annotations.as_csv(summaries)
    files = {PAGE: html_page.render(report), MARKDOWN: markdown.render(report, FIGURES), **files}
    for figure in (figure for section in report.sections for figure in section.figures):
        files[f"{FIGURES}/{figure.name}.svg"] = figure.svg
        files[f"{FIGURES}/{figure.name}.png"] = figure.png
    for name, content in files.items():
        records.write_atomic(epath.Path(out) / name, content)
    return Written(tuple(files), len(names), without_number, lines)


def _sections(
    data: ReportData,
    forecasts: Sequence[Sequence[Forecast]],
    extractions: Sequence[ExtractionSummary],
) -> list[Section]:
    best = accuracy.best_on_test(data)
    return [
        summary.summary(data),
        accuracy.paper_tables(data),
        accuracy.methods(data),
        fractions.fraction_curves(data),
        fractions.labels_saved(data),
        learning_curve.section(data, forecasts),
        sizes.size_curves(data),
        sizes.beats_teacher(data),
        *([teacher_annotations.section(extractions)] if extractions else []),
        *([settings_tried.section(data)] if data.scores.tried else []),
        appendix.tests(data),
        appendix.costs(data),
        *([best] if best else []),
        appendix.runs(data),
        appendix.notes(),
    ]


def _report(lead: Sequence[str], sections: Sequence[Section]) -> Report:
    link = (f"{paper.TITLE} (Hsieh et al., 2023)", paper.LINK)
    return Report("Distilling step-by-step: report card", lead, link, sections)


def _prices(extractions: Sequence[ExtractionSummary], one_price: float | None) -> AnnotationPrices:
    """The highest price counts if several extractions have the same data set."""
    examples: dict[str, float] = {}
    labels: dict[str, float] = {}
    for extraction in extractions:
        for prices, price in ((examples, extraction.price), (labels, extraction.label_price)):
            if price is not None:
                prices[extraction.dataset] = max(prices.get(extraction.dataset, 0.0), price)
    return AnnotationPrices(one_price, examples, labels)


def _lead(scores: Scores) -> tuple[str, str]:
    students = scores.students
    tasks = dict.fromkeys(formats.task(key.task) for key in scores.variants)
    models = dict.fromkeys(variant.key.student.model for variant in students)
    counts = sorted({len(variant.lines) for variant in students})
    if not counts:
        seeds = "no student was trained"
    elif counts[0] == counts[-1]:
        seeds = f"{formats.count(counts[0], 'seed')} each"
    else:
        seeds = f"{counts[0]} to {counts[-1]} seeds each"
    return (
        f"{formats.count(len(scores.runs.names), 'run')} of "
        f"{formats.count(len(scores.variants), 'variant')}, {seeds}. "
        f"Data: {', '.join(tasks) or 'none'}. Models: {', '.join(models) or 'none'}.",
        "A small student learns labels, and with some methods rationales, from the outputs of a "
        "large teacher; the paper below describes the method. Accuracies are those of the step "
        "selected on validation unless a table says otherwise.",
    )


def _lead_without_runs(extractions: Sequence[ExtractionSummary]) -> tuple[str, str]:
    models = dict.fromkeys(extraction.model for extraction in extractions)
    tasks = dict.fromkeys(formats.dataset(extraction.dataset) for extraction in extractions)
    return (
        f"{formats.count(len(extractions), 'extraction')}, no runs. Data: {', '.join(tasks)}. "
        f"Teachers: {', '.join(models)}.",
        "A teacher's rationales and labels, from which a small student can learn; the paper below "
        "describes the method.",
    )


def _results_csv(runs: Runs) -> str:
    """Every result of every run, with the run's name."""
    rows: list[list[object]] = [["run", *RESULT_FIELDS]]
    for line in runs.lines:
        row = dataclasses.asdict(line.result)
        row["settings"] = " ".join(f"{name}={text}" for name, text in row["settings"].items())
        rows.append([line.run, *(row[name] for name in RESULT_FIELDS)])
    return csv_text(rows)


def describe(written: Written, out: epath.PathLike) -> str:
    """What to print about a report, one fact a line."""
    lines = [*written.lines]
    runs = formats.count(written.runs, "run")
    lines.append(f"{os.fspath(out)}: {len(written.files)} files from {runs}")
    if written.without_number:
        names = ", ".join(written.without_number)
        lines.append(f"in no table: {formats.count(len(written.without_number), 'run')}: {names}")
    return "\n".join([*lines, f"open {os.path.join(os.fspath(out), PAGE)}"])
