"""Which parameters of a run are scored: its best step, the steps of EVAL_STEP, or the teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from absl import logging

from stepdistill_jax.checkpoint.restore import (
    available_steps,
    best_step,
    restore_params,
    sharded_params,
)
from stepdistill_jax.data.vocabulary import local_vocabulary
from stepdistill_jax.eval import teacher
from stepdistill_jax.eval.follow import steps_to_score
from stepdistill_jax.eval.runner import Evaluator, results_from_lead
from stepdistill_jax.parallel import processes
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.run import load
from stepdistill_jax.run.config import FREE_MACROS, RunConfig
from stepdistill_jax.run.folder import mark_finished, reach
from stepdistill_jax.run.results import SCORING_MACROS, VALIDATION, Result
from stepdistill_jax.spec import TEACHER, InputError


def refuse_other_run(config: RunConfig) -> None:
    """Checks that MODEL_DIR holds this run; only settings of the evaluation may differ.

    Raises:
        InputError: it holds a run of another configuration, or none.
    """
    # The weights that training started from are not read.
    reach(dataclasses.replace(config, initial_checkpoint=None))
    trained = dataclasses.replace(load.read(config.model_dir), eval=config.eval)
    different = load.difference(trained, config, FREE_MACROS | SCORING_MACROS)
    if different:
        changes = (f"{name} {old!r}, now {new!r}" for name, (old, new) in different.items())
        raise InputError(
            f"{config.model_dir} holds another run: {'; '.join(changes)}. Change only folders, "
            "the mesh, METRIC and the section Evaluation of --help."
        )


def score(config: RunConfig) -> Iterator[Result]:
    """Scores the steps of EVAL_STEP on EVAL_SPLITS, one result at a time."""
    if config.method == TEACHER:
        yield from score_teacher(config)
        return
    mesh = make_mesh(config.mesh)
    processes.connect(mesh)
    evaluator = Evaluator(config, mesh)
    abstract = sharded_params(config.model, mesh)
    for step, selected_on in steps_to_score(config.model_dir, config.eval):
        stored = evaluator.stored_results(step, selected_on)
        params = {}
        if not all(stored.values()):
            try:
                params = restore_params(config.model_dir, step, abstract)
            except InputError:
                deleted = config.eval.watch and step not in available_steps(config.model_dir)
                # Another process may have read it and be about to score it.
                if not deleted or processes.count() > 1:
                    raise
                logging.warning("Step %d was deleted by the run before it was read.", step)
                continue
        for split, result in stored.items():
            yield result or evaluator.evaluate(params, step, split, selected_on)


def score_best(config: RunConfig, evaluator: Evaluator, steps: int) -> list[Result]:
    """Scores the best step on validation on EVAL_SPLITS, and marks the run finished.

    Args:
        config: of a run whose last step was scored on validation.
        evaluator: of the same run.
        steps: optimizer steps done.
    """
    best = processes.from_lead(lambda: best_step(config.model_dir))
    assert best is not None
    stored = evaluator.stored_results(best, VALIDATION)
    params = {}
    if not all(stored.values()):
        abstract = sharded_params(config.model, evaluator.mesh)
        params = restore_params(config.model_dir, best, abstract)
    results = [
        result or evaluator.evaluate(params, best, split, VALIDATION)
        for split, result in stored.items()
    ]
    mark_finished(config, steps, best, results)
    return results


def score_teacher(config: RunConfig) -> list[Result]:
    """Scores the teacher's annotations of EVAL_SPLITS; of several processes, only the lead does.

    Needs no device. Without a local vocabulary the results lack the cost, which needs token counts.
    """
    return results_from_lead(lambda: _score_teacher(config))


def _score_teacher(config: RunConfig) -> list[Result]:
    vocabulary = local_vocabulary(config.tokens.vocabulary)
    if vocabulary is None:
        logging.info("VOCABULARY is not local: the results contain no cost in FLOPs.")
    encode = None if vocabulary is None else vocabulary.encode
    return [
        teacher.score(config.model_dir, config.data, config.teacher, split, encode)
        for split in config.eval.splits
    ]
