"""Trains a matrix of runs: python -m launch.sweep --gin_file=sweeps/demo.gin [--gin.NAME=value]

Prints the plan with the estimated tokens, FLOPs and time, then trains one run after another, each
in its own folder below SWEEP_DIR. Run the same command again to continue: it skips finished runs,
resumes interrupted ones and retries failed ones. To share a sweep among N machines that mount
SWEEP_DIR and the gin files, start worker 0 to N-1: --worker=0 --workers=N, or $SWEEP_WORKER and
$SWEEP_WORKERS.

Exit codes: 0 all runs of this worker are done; 2 wrong input or impossible runs; 4 some runs
failed; 75 stopped by SIGTERM or Ctrl-C: the current run is saved, and the same command continues.
"""

from __future__ import annotations

from absl import flags

from launch import workers
from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.spec import InputError
from stepdistill_jax.sweep import config, matrix, tables, train_runs
from stepdistill_jax.sweep.shares import share_of_runs

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and stop.")
_RETRY = flags.DEFINE_bool("retry", True, "Train runs again that failed before.")
_SKIP = flags.DEFINE_bool(
    "skip_impossible",
    False,
    "Skip impossible runs instead of stopping: contradictory settings, missing data, or a folder "
    "that holds another run.",
)


def main(arguments: Arguments) -> int:
    """Prints the plan and, without --dry_run, trains the runs; returns the exit code."""
    arguments.refuse_positional()
    planned = matrix.read(arguments.gin_files, arguments.overrides, arguments.search_paths)
    worker, count = workers.read("SWEEP")
    share = share_of_runs(planned.runs, worker, count)
    print(f"reading the data of {len(share)} runs", flush=True)
    sweep, impossible = train_runs.prepare(planned, share, retry=_RETRY.value)
    of = f"worker {worker} of {count}: {len(sweep.mine)} of " if count > 1 else ""
    repeated = f"; {planned.repeated} duplicate combinations left out" if planned.repeated else ""
    print(f"{of}{len(planned.runs)} runs in {sweep.folder}{repeated}")
    print(sweep.plan(len(impossible)))
    if impossible:
        print(f"{len(impossible)} impossible runs:\n{tables.impossible(impossible)}", flush=True)
    if impossible and not _SKIP.value:
        raise InputError(
            f"{len(impossible)} runs of the sweep are impossible, for the reasons above. Change "
            "the sweep file, name them in SWEEP_EXCLUDE, or pass --skip_impossible."
        )
    return 0 if _DRY_RUN.value else sweep.run()


if __name__ == "__main__":
    run_with_arguments(main, help_text=config.help_text)
