"""An `Evaluator` from a `RunConfig`."""

from __future__ import annotations

import math

import jax
from jax.sharding import Mesh

from stepdistill_jax.data import triage
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.load import model_name
from stepdistill_jax.run.results import RunFacts
from stepdistill_jax.run.splits import open_split, tokens_before_label
from stepdistill_jax.spec import RATIONALE_METHODS


def make_evaluator(config: RunConfig, mesh: Mesh) -> Evaluator:
    """The evaluator of a run, with the run's own data, vocabulary and metric.

    Raises:
        InputError: the vocabulary is unavailable, does not fit the model, or cannot write the
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
    """What every result of a run states about the run."""
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
