"""Scores many runs: python -m launch.batch_eval MODEL_DIR... [--gin.EVAL_SPLITS='("test",)'] ...

Each MODEL_DIR is a folder, local or on gs://, or a pattern ('runs/*/seed_?'; matching folders
without a run are ignored). --from_file=FILE names more, one a line. launch.eval scores each folder
in its own process with these --gin.NAME=value; existing scores are kept. If a folder fails, the
others are still scored; failures are listed at the end.

Worker 0 to N-1 of N (--worker and --workers, else $EVAL_WORKER and $EVAL_WORKERS) scores its share.

Exit codes: 0 all folders of this worker are scored; 2 wrong input; 4 some folders failed; 69 some
failed because a store was unavailable: run the same command again later; 75 stopped by SIGTERM or
Ctrl-C: the same command continues.
"""

from __future__ import annotations

from absl import flags

from launch import workers
from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.spec import EXIT_INCOMPLETE, EXIT_PREEMPTED, EXIT_UNAVAILABLE, InputError
from stepdistill_jax.sweep import score_runs
from stepdistill_jax.sweep.shares import share

_FROM_FILE = flags.DEFINE_multi_string(
    "from_file", [], "File of folders or patterns, one a line; may be repeated."
)


def main(arguments: Arguments) -> int:
    """Scores this worker's share of the folders; returns the exit code."""
    if arguments.gin_files:
        raise InputError(
            f"--gin_file={arguments.gin_files[0]}: each folder has its own config.gin. Remove the "
            "flag; change settings with --gin.NAME=value."
        )
    names = [*arguments.positional, *score_runs.read_lists(_FROM_FILE.value)]
    folders = score_runs.expand(names)
    runs = [score_runs.read_run(folder, arguments.overrides) for folder in folders]
    score_runs.refuse_hopeless(runs)
    worker, count = workers.read("EVAL")
    # Sizes would differ between workers that can read different folders.
    indices = share([0.0] * len(runs), worker, count)
    of = f"worker {worker} of {count}: {len(indices)} of " if count > 1 else ""
    print(f"{of}{len(runs)} folders", flush=True)
    mine = [run for index, run in enumerate(runs) if index in indices]
    done, stopped = score_runs.score_each(mine, arguments.overrides)
    print(score_runs.report(done))
    if stopped:
        print(f"stopped after {len(done)} of {len(mine)}: run the same command again to continue")
        return EXIT_PREEMPTED
    if any(run.code == EXIT_UNAVAILABLE for run in done):
        return EXIT_UNAVAILABLE
    return EXIT_INCOMPLETE if any(run.failed for run in done) else 0


if __name__ == "__main__":
    run_with_arguments(main)
