"""Makes a report card: python -m launch.report MODEL_DIRS... [--extraction=DIR]... [--out=report]

MODEL_DIRS are folders of runs, or folders that hold runs below them, as a sweep's. Reads each run's
results.jsonl and predictions.jsonl, and writes index.html (one page that needs nothing else),
report.md, results.csv and the figures as PNG and SVG. With --extraction, the EXTRACT_DIR of
launch.extract, it also says what the teacher wrote (annotations.csv); runs are then not needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from absl import flags

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import storage
from stepdistill_jax.report import build
from stepdistill_jax.spec import InputError


def main(
    arguments: Arguments,
    out: str,
    extractions: Sequence[str] = (),
    annotation_cost: float | None = None,
) -> None:
    """Writes the report of the runs and extractions that are named to the folder `out`."""
    given = [*arguments.gin_files, *arguments.overrides]
    if given:
        raise InputError(f"{given[0]}: a report reads results alone; leave out what is gin's")
    if not arguments.positional and not extractions:
        raise InputError(
            "no runs are named: python -m launch.report MODEL_DIRS... [--extraction=EXTRACT_DIR] "
            "[--out=report]"
        )
    storage.check("--out", out, write=True)
    if not out:
        raise InputError("--out is empty; name the report's folder, as in --out=report")
    if "" in extractions:
        raise InputError("--extraction is empty; name the folder of an extraction (EXTRACT_DIR)")
    if annotation_cost is not None and not 0 <= annotation_cost < math.inf:
        raise InputError(
            f"--annotation_cost is {annotation_cost}; expected the price of one annotation, 0 or "
            "more"
        )
    written = build.write_report(arguments.positional, out, extractions, annotation_cost)
    print(build.describe(written, out))


if __name__ == "__main__":
    # Not above, as launch.convert has a flag of this name too, and tests import both.
    _OUT = flags.DEFINE_string("out", "report", "Folder of the report; is made if need be.")
    _EXTRACTION = flags.DEFINE_multi_string(
        "extraction", [], "Folder of an extraction (EXTRACT_DIR); may be given several times."
    )
    _COST = flags.DEFINE_float(
        "annotation_cost",
        None,
        "Price of one annotation, for the learning curve; default: what the extraction's rows "
        "cost, if it knows.",
    )
    run_with_arguments(
        lambda arguments: main(arguments, _OUT.value, _EXTRACTION.value, _COST.value)
    )
