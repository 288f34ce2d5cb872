"""Writes a report: python -m launch.report MODEL_DIRS... [--extraction=DIR]... [--out=report]

MODEL_DIRS are folders of runs, or folders that contain runs, such as SWEEP_DIR. Reads results.jsonl
and predictions.jsonl of each run, and writes index.html (a self-contained page), report.md,
results.csv and the figures as PNG and SVG. --extraction, an EXTRACT_DIR of launch.extract, adds a
section on the teacher's annotations (annotations.csv); MODEL_DIRS are then optional.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from absl import flags
from etils import epath

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import storage
from stepdistill_jax.report.report import describe, write_report
from stepdistill_jax.spec import InputError


def main(
    arguments: Arguments,
    out: str,
    extractions: Sequence[str] = (),
    annotation_cost: float | None = None,
) -> None:
    """Writes the report on runs and extractions to the folder `out`."""
    for setting in (*arguments.gin_files, *arguments.overrides):
        raise InputError(f"{setting}: a report has no settings. Remove --gin_file and --gin flags.")
    if not arguments.positional and not extractions:
        raise InputError(
            "no runs: python -m launch.report MODEL_DIRS... [--extraction=EXTRACT_DIR] "
            "[--out=report]. Name at least one folder."
        )
    if not out:
        raise InputError("--out: is empty. Name the report's folder, as in --out=report.")
    storage.check("--out", out, write=True)
    if "" in extractions:
        raise InputError("--extraction: is empty. Name the folder of an extraction (EXTRACT_DIR).")
    if annotation_cost is not None and not 0 <= annotation_cost < math.inf:
        raise InputError(
            f"--annotation_cost: got {annotation_cost}, expected a number of 0 or more. Give the "
            "price of one annotation."
        )
    folders = arguments.positional
    print(describe(write_report(folders, out, extractions, annotation_cost, _identity), out))


def _identity(folder: epath.Path) -> Mapping[str, str]:
    """The settings that decide a run's results; {} if its ``config.gin`` does not say."""
    # Imports JAX, which only results of earlier versions need.
    from stepdistill_jax.run import load

    try:
        return load.identity(load.read(folder))
    except InputError:
        return {}


if __name__ == "__main__":
    # Defined here: launch.convert has a flag of this name too, and tests import both.
    _OUT = flags.DEFINE_string("out", "report", "Folder of the report; created if needed.")
    _EXTRACTION = flags.DEFINE_multi_string(
        "extraction", [], "Folder of an extraction (EXTRACT_DIR); may be repeated."
    )
    _COST = flags.DEFINE_float(
        "annotation_cost",
        None,
        "Price of one annotation, for the learning curve; default: the price in the extraction.",
    )
    run_with_arguments(
        lambda arguments: main(arguments, _OUT.value, _EXTRACTION.value, _COST.value)
    )
