"""Runs a matrix of runs: python -m launch.sweep --gin_file=sweeps/demo.gin [--gin.NAME=value]

Prints the plan with an estimate of tokens, FLOPs and time, then trains one run after another, each
in a folder of its own in SWEEP_DIR. The same command again continues: runs that are done are left
alone, a half-trained one goes on, failed ones are tried again. On several machines that share
SWEEP_DIR and the gin files, worker 0 to N-1 of N each take their share ($SWEEP_WORKER and
$SWEEP_WORKERS where the flags are not given).

Exit codes: 0 all runs (of this worker) are done, 2 wrong input or runs that cannot be, 4 some runs
failed, 75 stopped by SIGTERM or Ctrl-C: the run in progress is saved, and the same command
continues.
"""

from __future__ import annotations

import pathlib

from absl import flags

from launch import workers
from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.spec import InputError
from stepdistill_jax.sweep import dealing, matrix, measure, runner, state, table

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and stop.")
_RETRY = flags.DEFINE_bool("retry", True, "Try runs again that failed when last run.")
_SKIP = flags.DEFINE_bool(
    "skip_impossible",
    False,
    "Leave out runs that cannot be (settings that contradict each other, data that is not there, a "
    "folder that holds another run) instead of refusing to start.",
)


def main(arguments: Arguments) -> int:
    """Plans, and unless it is a dry run, runs; returns the exit code."""
    if arguments.positional:
        raise InputError(f"{' '.join(arguments.positional)}: not a flag; see --help")
    planned = matrix.read(arguments.gin_files, arguments.overrides, arguments.search_paths)
    worker, count = workers.given("SWEEP")
    share = dealing.deal(planned.runs, worker, count)
    print(f"looking at the data of {len(share)} runs", flush=True)
    found = measure.survey([run.config for run in share])
    work = {run.name: w for run, w in zip(share, found.work, strict=True) if not isinstance(w, str)}
    refused = list(planned.impossible)
    for run, reason in zip(share, found.work, strict=True):
        if isinstance(reason, str):
            refused.append(matrix.Impossible(run.name, reason))
    for run in share:
        look = state.look(run)
        if look.state == state.State.CHANGED:
            work.pop(run.name, None)
            reason = f"its folder holds a run with {look.reason}; choose another SWEEP_DIR"
            refused.append(matrix.Impossible(run.name, reason))
    mine = [run for run in share if run.name in work]
    folder = pathlib.Path(planned.config.dir)
    sweep = runner.Sweep(folder, planned.runs, mine, work, found.product_rate, _RETRY.value)
    of = f"worker {worker} of {count}: {len(mine)} of " if count > 1 else ""
    again = f"; {planned.repeated} combinations repeat one of them" if planned.repeated else ""
    print(f"{of}{len(planned.runs)} runs in {folder}{again}")
    print(sweep.plan(len(refused)))
    if refused:
        print(f"{len(refused)} runs cannot be:\n{table.impossible(refused)}", flush=True)
    if refused and not _SKIP.value:
        raise InputError(
            f"{len(refused)} runs of the sweep cannot be, for the reasons above; change the sweep "
            "file, name them in SWEEP_EXCLUDE, or pass --skip_impossible"
        )
    return 0 if _DRY_RUN.value else sweep.run()


if __name__ == "__main__":
    run_with_arguments(main, help_text=matrix.help_text)
