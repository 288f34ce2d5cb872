"""Makes a report card: python -m launch.report MODEL_DIRS... [--out=report]

MODEL_DIRS are folders of runs, or folders that hold runs below them, as a sweep's. Reads each run's
results.jsonl and predictions.jsonl, and writes index.html (one page that needs nothing else),
report.md, results.csv and the figures as PNG and SVG.
"""

from __future__ import annotations

from absl import flags

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.report import build
from stepdistill_jax.spec import InputError


def main(arguments: Arguments, out: str) -> None:
    """Writes the report of the runs that are named to the folder `out`."""
    given = [*arguments.gin_files, *arguments.overrides]
    if given:
        raise InputError(f"{given[0]}: a report reads results alone; leave out what is gin's")
    if not arguments.positional:
        raise InputError("no runs are named: python -m launch.report MODEL_DIRS... [--out=report]")
    if not out:
        raise InputError("--out is empty; name the report's folder, as in --out=report")
    print(build.describe(build.write_report(arguments.positional, out), out))


if __name__ == "__main__":
    # Not above, as launch.convert has a flag of this name too, and tests import both.
    _OUT = flags.DEFINE_string("out", "report", "Folder of the report; is made if need be.")
    run_with_arguments(lambda arguments: main(arguments, _OUT.value))
