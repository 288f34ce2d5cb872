"""An `Evaluator` from a `RunConfig`, for the train and the eval binary alike."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh
from stepdistill_jax.data.token_cache import open_or_build

from stepdistill_jax import config as configs
from stepdistill_jax.data.sources import SOURCES
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.eval.results import RunFacts
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.network import abstract_params, logical_axes
from stepdistill_jax.parallel.rules import param_shardings
from stepdistill_jax.run_config import RunConfig
from stepdistill_jax.spec import RATIONALE


def make_evaluator(config: RunConfig, mesh: Mesh) -> Evaluator:
    """The evaluator of a run, with the run's own data, vocabulary and metric.

    Raises:
        InputError: the vocabulary cannot be had or does not fit the model.
    """
    vocabulary = load_vocabulary(config.tokens.vocabulary)
    config.check_vocabulary(vocabulary.size)
    columns = config.data.columns
    facts = RunFacts(
        dataset=config.data.dataset,
        method=config.method,
        labels=config.data.labels,
        rationales=config.data.rationales if RATIONALE in config.streams else "none",
        fraction=config.data.fraction,
        seed=config.seed,
        model=configs.model_name(config.model),
    )
    return Evaluator(
        model_dir=config.model_dir,
        config=config.eval,
        model=config.model,
        mesh=mesh,
        vocabulary=vocabulary,
        caches=lambda split: open_or_build(config.data, config.tokens, split),
        metric=SOURCES[config.data.dataset].metric if columns is None else columns.metric,
        facts=facts,
    )


def abstract_sharded_params(config: RunConfig, mesh: Mesh) -> Any:
    """The model's parameters as shapes with shardings: what `restore_params` fills."""
    shapes = abstract_params(config.model)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        param_shardings(logical_axes(config.model), shapes, mesh),
    )
