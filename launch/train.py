"""Trains one run and scores it: python -m launch.train --gin_file=demo.gin [--gin.NAME=value]

METHOD "teacher" trains nothing and scores the teacher's own answers. With --preflight it trains
nothing either: it tries everything once, prints a table, and leaves the run alone.

The same command again continues a run that was stopped. Exit codes: 0 finished, 2 wrong input,
3 a loss that is not finite, 69 a store or another process of the run is out of reach: run the same
command again after a while, 75 preempted (SIGTERM) and saved: run it again. A preflight: 0 all is
well, 2 something failed.
"""

from __future__ import annotations

from absl import flags as absl_flags

from launch import flags
from stepdistill_jax.checkpoint import initial, manager, restore
from stepdistill_jax.eval import teacher
from stepdistill_jax.eval.build import make_evaluator, score_best, score_teacher
from stepdistill_jax.parallel import cluster, compilation, processes
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.folder import claim, mark_finished, reach
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.spec import EXIT_NON_FINITE, EXIT_PREEMPTED, TEACHER
from stepdistill_jax.train import clock, loop, preflight
from stepdistill_jax.train.build import make_trainer

_PREFLIGHT = absl_flags.DEFINE_bool("preflight", False, "Try everything once, and stop.")


def run(config: RunConfig) -> int:
    """What the command line asks for; returns the exit code."""
    if not _PREFLIGHT.value:
        return main(config)
    cluster.start()
    return preflight.run(config)


def main(config: RunConfig) -> int:
    """Trains, scores and says where everything lies; returns the exit code."""
    timer = clock.Clock()
    # The teacher's answers are scored by no loop that would ask for the notice.
    cluster.start(preemptible=config.method != TEACHER)
    reach(config)
    if config.method == TEACHER:
        claim(config)
        scored = score_teacher(config)
        mark_finished(config, teacher.STEP, teacher.STEP, scored)
        for result in scored:
            cluster.say(
                f"{result.split} accuracy of the teacher {result.accuracy:.2%} (standard error "
                f"{result.stderr:.2%}, n {result.n}); predictions are in {config.model_dir}"
            )
        return 0
    # The check may start devices, which all have to do: what each sees might differ.
    if not processes.from_lead(lambda: restore.available_steps(config.model_dir)):
        initial.check(config.initial_checkpoint, config.model, config.tokens.vocabulary)
    text = claim(config)
    compilation.enable_compilation_cache(config.tokens.root())
    mesh = make_mesh(config.mesh)
    processes.connect(mesh)
    evaluator = make_evaluator(config, mesh)
    # Splits are opened before hours are spent, not after; by all processes in one order.
    for split in sorted({"validation", *config.eval.splits}):
        open_split(config, split)
    with manager.manager(config.model_dir, keep=config.keep_checkpoints) as checkpoints:
        trainer, state, evals = make_trainer(config, mesh, evaluator, checkpoints, text, timer)
        try:
            outcome = trainer.run(state, evals)
        except loop.NonFiniteError as error:
            cluster.say(f"error: {error}", error=True)
            return EXIT_NON_FINITE
        except Exception as error:
            # Leaving the manager would wait for what the others save.
            cluster.end(error)
            raise
        finally:
            trainer.log.close()
    if outcome.preempted:
        cluster.say(clock.describe(config.model_dir))
        cluster.say(
            f"preempted: step {outcome.step} is saved in {config.model_dir}; run the same command "
            "again to continue",
            error=True,
        )
        return EXIT_PREEMPTED
    for result in score_best(config, evaluator, outcome.step):
        cluster.say(
            f"{result.split} accuracy {result.accuracy:.2%} (standard error {result.stderr:.2%}, "
            f"n {result.n}) with step {result.step}, the best on validation of {outcome.step} "
            f"steps; checkpoints, metrics and predictions are in {config.model_dir}"
        )
    timer.lap("evaluation")
    trainer.goodput.note(outcome.step, saved=True)
    cluster.say(clock.describe(config.model_dir))
    return 0


if __name__ == "__main__":
    flags.run(run)
