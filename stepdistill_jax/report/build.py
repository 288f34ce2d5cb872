"""A report from runs' folders to files."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Sequence

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.report import (
    accuracy,
    annotation,
    card,
    details,
    fractions,
    learning_curve,
    markdown,
    paper,
    sizes,
    summary,
    words,
)
from stepdistill_jax.report.comparisons import Material, compare
from stepdistill_jax.report.document import Report, Section
from stepdistill_jax.report.extractions import Extraction, read_extractions
from stepdistill_jax.report.learning_curve import Prices
from stepdistill_jax.report.predictions import Predictions
from stepdistill_jax.report.read import Runs, read_runs
from stepdistill_jax.report.tables import Scores, collect
from stepdistill_jax.run.results import RESULT_FIELDS

PAGE, MARKDOWN, CSV, FIGURES = "index.html", "report.md", "results.csv", "figures"
# Of extractions.
ANNOTATIONS_CSV = "annotations.csv"


@dataclasses.dataclass(frozen=True)
class Written:
    """What became of the runs.

    Attributes:
        files: written, relative to the report's folder.
        runs: that held results.
        without_number: names of runs that are in no table.
        told: what to print of extractions and learning curves, one a line.
    """

    files: tuple[str, ...]
    runs: int
    without_number: tuple[str, ...]
    told: tuple[str, ...] = ()


def write_report(
    folders: Sequence[epath.PathLike],
    out: epath.PathLike,
    extractions: Sequence[epath.PathLike] = (),
    annotation_cost: float | None = None,
) -> Written:
    """Writes the page, its Markdown, the results as CSV and the figures.

    The same results give the same bytes.

    Args:
        folders: see `read_runs`; may be empty where there are extractions.
        out: folder; is made if need be, files of an earlier report are replaced.
        extractions: folders of extractions (EXTRACT_DIR).
        annotation_cost: price of one annotation; None = what each extraction's rows cost.

    Raises:
        InputError: see `read_runs`, `collect`, `compare` and `read_extractions`.
    """
    files: dict[str, str | bytes] = {}
    found = read_extractions(extractions)
    told = annotation.lines(found)
    names: list[str] = []
    without_number: tuple[str, ...] = ()
    if folders or not found:
        runs = read_runs(folders)
        scores = collect(runs)
        predictions = Predictions()
        material = Material(scores, predictions, compare(scores, predictions))
        forecasts = learning_curve.forecasts(material, _prices(found, annotation_cost))
        report = build(material, forecasts, found)
        files[CSV] = results_csv(runs)
        names, without_number = runs.names, (*runs.empty, *scores.unselected)
        told += learning_curve.lines(forecasts)
    else:
        report = _without_runs(found)
    if found:
        files[ANNOTATIONS_CSV] = annotation.as_csv(found)
    files = {PAGE: card.render(report), MARKDOWN: markdown.render(report, FIGURES), **files}
    for figure in report.figures:
        files[f"{FIGURES}/{figure.name}.svg"] = figure.svg
        files[f"{FIGURES}/{figure.name}.png"] = figure.png
    for name, content in files.items():
        records.write_atomic(epath.Path(out) / name, content)
    return Written(tuple(files), len(names), without_number, told)


def build(
    material: Material,
    forecasts: Sequence[Sequence[learning_curve.Forecast]],
    extractions: Sequence[Extraction] = (),
) -> Report:
    """What the report says."""
    best = accuracy.best_on_test(material)
    sections = [
        summary.summary(material),
        accuracy.paper_tables(material),
        accuracy.methods(material),
        fractions.fraction_curves(material),
        fractions.labels_saved(material),
        learning_curve.section(material, forecasts),
        sizes.size_curves(material),
        sizes.beats_teacher(material),
        *([annotation.section(extractions)] if extractions else []),
        details.tests(material),
        details.costs(material),
        *([best] if best else []),
        details.runs(material),
        details.notes(),
    ]
    return _report(_lead(material.scores), sections)


def _without_runs(extractions: Sequence[Extraction]) -> Report:
    """What a report says of extractions alone."""
    models = dict.fromkeys(extraction.model for extraction in extractions)
    tasks = dict.fromkeys(words.dataset(extraction.dataset) for extraction in extractions)
    first = (
        f"{words.count(len(extractions), 'extraction')}, no runs. Data: {', '.join(tasks)}. "
        f"Teachers: {', '.join(models)}."
    )
    second = (
        "A teacher's rationales and labels, for a small student to learn from by the method of the "
        "paper below."
    )
    return _report((first, second), [annotation.section(extractions)])


def _report(lead: tuple[str, ...], sections: Sequence[Section]) -> Report:
    return Report(
        "Distilling step-by-step: report card",
        lead,
        (f"{paper.TITLE} (Hsieh et al., 2023)", paper.LINK),
        sections,
    )


def _prices(extractions: Sequence[Extraction], given: float | None) -> Prices:
    """Of several extractions of one data set the dearest counts."""
    rows: dict[str, float] = {}
    labels: dict[str, float] = {}
    for extraction in extractions:
        for found, price in ((rows, extraction.price), (labels, extraction.label_price)):
            if price is not None:
                found[extraction.dataset] = max(found.get(extraction.dataset, 0.0), price)
    return Prices(given, rows, labels)


def _lead(scores: Scores) -> tuple[str, ...]:
    cells = scores.students
    tasks = dict.fromkeys(words.task(setting.task) for setting in scores.cells)
    models = dict.fromkeys(cell.setting.student.model for cell in cells)
    counts = sorted({len(cell.lines) for cell in cells})
    if not counts:
        seeds = "no student was trained"
    elif counts[0] == counts[-1]:
        seeds = f"{words.seeds(counts[0])} each"
    else:
        seeds = f"{counts[0]} to {counts[-1]} seeds each"
    first = (
        f"{words.count(len(scores.runs.names), 'run')} in "
        f"{words.count(len(scores.cells), 'setting')}, {seeds}. "
        f"Data: {', '.join(tasks) or 'none'}. Models: {', '.join(models) or 'none'}."
    )
    second = (
        "A small student learns labels, and rationales where the method uses them, from a large "
        "teacher's outputs; the method is that of the paper below. Numbers are of steps selected "
        "on validation unless a table says otherwise."
    )
    return first, second


def results_csv(runs: Runs) -> str:
    """Every line of every run, with the run's name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *RESULT_FIELDS])
    for line in runs.lines:
        row = dataclasses.asdict(line.result)
        writer.writerow([line.run, *(row[name] for name in RESULT_FIELDS)])
    return text.getvalue()


def describe(written: Written, out: epath.PathLike) -> str:
    """One line a fact, for the one who asked for the report."""
    lines = [*written.told]
    lines.append(f"{os.fspath(out)}: {len(written.files)} files from {written.runs} runs")
    if written.without_number:
        lines.append(
            f"{len(written.without_number)} runs are in no table: "
            f"{', '.join(written.without_number)}"
        )
    return "\n".join([*lines, f"open {os.path.join(os.fspath(out), PAGE)}"])
