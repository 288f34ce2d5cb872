"""Trains one run and scores it: python -m launch.train --gin_file=demo.gin [--gin.NAME=value]

The same command continues a run that was stopped. METHOD "teacher" trains nothing and scores the
teacher's annotations. With --preflight the program only tests that the run can work: it tries
every part once, prints a table, and leaves the run's files unchanged.

Exit codes: 0 finished (with --preflight: all checks passed); 2 wrong input (with --preflight: a
check failed); 3 the loss became NaN or infinite; 69 a store or another process is unreachable; 75
stopped by SIGTERM or Ctrl-C, the state is saved. After 69 and 75, run the same command again to
continue.
"""

from __future__ import annotations

from absl import flags as absl_flags

from launch import flags
from stepdistill_jax.eval import teacher
from stepdistill_jax.eval.score import score_teacher
from stepdistill_jax.parallel import cluster
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.folder import claim, mark_finished, reach
from stepdistill_jax.spec import EXIT_NON_FINITE, EXIT_PREEMPTED, TEACHER
from stepdistill_jax.train import clock, preflight
from stepdistill_jax.train.build import train
from stepdistill_jax.train.loop import NonFiniteError

_PREFLIGHT = absl_flags.DEFINE_bool(
    "preflight", False, "Test every part of the run once, print a table, and stop."
)


def run(config: RunConfig) -> int:
    """Trains the run, or with --preflight tests it; returns the exit code."""
    if not _PREFLIGHT.value:
        return main(config)
    cluster.start()
    return preflight.run(config)


def main(config: RunConfig) -> int:
    """Trains and scores the run, and prints its results; returns the exit code."""
    timer = clock.Clock()
    # Only the train loop reads the preemption notice.
    cluster.start(preemptible=config.method != TEACHER)
    reach(config)
    if config.method == TEACHER:
        return _score_teacher(config)
    try:
        outcome, results = train(config, timer)
    except NonFiniteError as error:
        cluster.say(f"error: {error}", error=True)
        return EXIT_NON_FINITE
    for result in results:
        cluster.say(
            f"{result.split} accuracy {result.accuracy:.2%} (standard error {result.stderr:.2%}, "
            f"n {result.n}) with step {result.step}, the best on validation of {outcome.step} "
            f"steps; checkpoints, metrics and predictions are in {config.model_dir}"
        )
    cluster.say(clock.describe(config.model_dir))
    if not outcome.preempted:
        if config.note:
            cluster.say(config.note)
        return 0
    cluster.say(
        f"stopped: step {outcome.step} is saved in {config.model_dir}. Run the same command again "
        "to continue.",
        error=True,
    )
    return EXIT_PREEMPTED


def _score_teacher(config: RunConfig) -> int:
    claim(config)
    results = score_teacher(config)
    mark_finished(config, teacher.STEP, teacher.STEP, results)
    for result in results:
        cluster.say(
            f"{result.split} accuracy of the teacher {result.accuracy:.2%} (standard error "
            f"{result.stderr:.2%}, n {result.n}); predictions are in {config.model_dir}"
        )
    return 0


if __name__ == "__main__":
    flags.run(run)
