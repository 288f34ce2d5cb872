"""An `Evaluator` from a `RunConfig`, for the train and the eval binary alike."""

from __future__ import annotations

import math

import jax
from absl import logging
from jax.sharding import Mesh

from stepdistill_jax.checkpoint import restore
from stepdistill_jax.checkpoint.restore import sharded_params
from stepdistill_jax.data import triage
from stepdistill_jax.data.vocabulary import load_vocabulary, local_vocabulary
from stepdistill_jax.eval import teacher
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.parallel import processes
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.folder import mark_finished
from stepdistill_jax.run.load import model_name
from stepdistill_jax.run.results import Result, RunFacts
from stepdistill_jax.run.splits import open_split, tokens_before_label
from stepdistill_jax.spec import RATIONALE_METHODS

# The split that a step is chosen on.
SELECTED_ON = "validation"


def make_evaluator(config: RunConfig, mesh: Mesh) -> Evaluator:
    """The evaluator of a run, with the run's own data, vocabulary and metric.

    Raises:
        InputError: the vocabulary cannot be had, does not fit the model, or cannot write the
            ANSWER_MARKER.
    """
    vocabulary = load_vocabulary(config.tokens.vocabulary)
    config.check_vocabulary(vocabulary.size)
    return Evaluator(
        model_dir=config.model_dir,
        config=config.eval,
        model=config.model,
        mesh=mesh,
        vocabulary=vocabulary,
        caches=lambda split: open_split(config, split),
        metric=config.data.metric,
        facts=run_facts(config),
        marker=config.views.answer_marker if config.method == "single_task" else None,
        before_label=tokens_before_label(config),
    )


def run_facts(config: RunConfig) -> RunFacts:
    """What every result of a run says of it."""
    return RunFacts(
        dataset=config.data.name,
        method=config.method,
        labels=config.data.labels,
        rationales=config.data.rationales if config.method in RATIONALE_METHODS else "none",
        fraction=config.data.fraction,
        seed=config.seed,
        model=model_name(config.model),
        data_seed=config.data.data_seed,
        train_split=config.data.train_split,
        triage=triage.name(config.data.triage, config.data.triage_weight),
        augment=config.data.augment,
        initial=config.initial_checkpoint or "",
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config.model))),
    )


def score_best(config: RunConfig, evaluator: Evaluator, steps: int) -> list[Result]:
    """Scores EVAL_SPLITS with the best step on validation, once, and marks the run finished.

    Args:
        config: of a run whose last step was scored on validation.
        evaluator: of the same run.
        steps: optimizer steps done.
    """
    best = processes.from_lead(lambda: restore.best_step(config.model_dir))
    assert best is not None
    results = {split: evaluator.known(best, split, SELECTED_ON) for split in config.eval.splits}
    missing = [split for split, result in results.items() if result is None]
    if missing:
        abstract = sharded_params(config.model, evaluator.mesh)
        params = restore.restore_params(config.model_dir, best, abstract)
        for split in missing:
            results[split] = evaluator.evaluate(params, best, split, selected_on=SELECTED_ON)
    scored = [result for result in results.values() if result is not None]
    mark_finished(config, steps, best, scored)
    return scored


def score_teacher(config: RunConfig) -> list[Result]:
    """Scores the teacher's own answers on EVAL_SPLITS, once; the lead does, of several processes.

    Needs no device. The vocabulary, where it needs no network, only counts tokens.
    """
    return processes.from_lead(lambda: _score_teacher(config))


def _score_teacher(config: RunConfig) -> list[Result]:
    vocabulary = local_vocabulary(config.tokens.vocabulary)
    encode = None if vocabulary is None else vocabulary.encode
    if encode is None:
        logging.info("Tokens are not counted, so answers have no cost: VOCABULARY is not local.")
    return [
        teacher.score(config.model_dir, config.data, config.teacher, split, encode)
        for split in config.eval.splits
    ]
