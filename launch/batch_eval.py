"""Scores many runs: python -m launch.batch_eval MODEL_DIR... [--gin.EVAL_SPLITS='("test",)'] ...

Each MODEL_DIR is a folder, here or at gs://, or a pattern of folders ('runs/*/seed_?'; those that
hold no run are left out); --from_file=FILE names more, one a line. Each folder is scored by
launch.eval in a process of its own, with the --gin.NAME=value that are given here; what is scored
already is not done again. One that fails is told at the end and does not end the others.

Worker 0 to N-1 of N (--worker and --workers, else $EVAL_WORKER and $EVAL_WORKERS) scores its share.

Exit codes: 0 all folders (of this worker) are scored, 2 wrong input, 4 some folders failed, 69 some
for want of a store: the same command after a while tries them again, 75 stopped by SIGTERM or
Ctrl-C: the same command continues.
"""

from __future__ import annotations

from absl import flags

from launch import workers
from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.spec import EXIT_INCOMPLETE, EXIT_PREEMPTED, EXIT_UNAVAILABLE, InputError
from stepdistill_jax.sweep import batch_eval, dealing

_FROM_FILE = flags.DEFINE_multi_string(
    "from_file", [], "A file of folders or patterns, one a line; may be given several times."
)


def main(arguments: Arguments) -> int:
    """Scores this worker's share of the folders; returns the exit code."""
    if arguments.gin_files:
        raise InputError(
            f"--gin_file={arguments.gin_files[0]}: a folder brings its own config.gin; take it out"
        )
    named = [*arguments.positional, *batch_eval.read_lists(_FROM_FILE.value)]
    folders = batch_eval.expand(named)
    runs = [batch_eval.look(folder, arguments.overrides) for folder in folders]
    batch_eval.refuse_hopeless(runs)
    worker, count = workers.given("EVAL")
    # By their number alone: what one worker cannot read of a folder, another may.
    mine = dealing.share([0.0] * len(runs), worker, count, "EVAL")
    of = f"worker {worker} of {count}: {len(mine)} of " if count > 1 else ""
    print(f"{of}{len(runs)} folders", flush=True)
    share = [run for index, run in enumerate(runs) if index in mine]
    done, stopped = batch_eval.score_each(share, arguments.overrides)
    print(batch_eval.report(done))
    if stopped:
        print(f"stopped after {len(done)} of {len(share)}: the same command again continues")
        return EXIT_PREEMPTED
    if any(run.code == EXIT_UNAVAILABLE for run in done):
        return EXIT_UNAVAILABLE
    return EXIT_INCOMPLETE if any(run.failed for run in done) else 0


if __name__ == "__main__":
    run_with_arguments(main)
