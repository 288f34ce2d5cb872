"""An `Evaluator` from a `RunConfig`, for the train and the eval binary alike."""

from __future__ import annotations

import json
import math
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh

from stepdistill_jax import config as configs
from stepdistill_jax import records
from stepdistill_jax.checkpoint import restore
from stepdistill_jax.data import triage
from stepdistill_jax.data.pipeline import SplitCache
from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.data.views import marker_ids, token_view
from stepdistill_jax.data.vocabulary import load_vocabulary, vocabulary_at_hand
from stepdistill_jax.eval import teacher
from stepdistill_jax.eval.results import Result, RunFacts
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params, logical_axes
from stepdistill_jax.parallel import processes
from stepdistill_jax.parallel.rules import param_shardings
from stepdistill_jax.run_config import RunConfig
from stepdistill_jax.spec import FINISHED_FILE, RATIONALE_METHODS

# The split that a step is chosen on.
SELECTED_ON = "validation"


def open_split(config: RunConfig, split: str) -> SplitCache:
    """A split's token cache, built first where there is none, as METHOD reads it.

    Of several processes the lead builds, and the others find its cache where they share CACHE_DIR,
    else build their own.

    Raises:
        InputError: see `token_cache.open_or_build` and `views.token_view`; or the processes have
            different data.
    """
    vocabulary = load_vocabulary(config.tokens.vocabulary)
    cache = processes.lead_first(lambda: open_or_build(config.data, config.tokens, split))
    processes.refuse_difference(
        f"{split} data and vocabulary",
        cache.manifest.fingerprint,
        "give all hosts the same files (DATA_DIR, VOCABULARY and their environment variables)",
    )
    return token_view(cache, config.method, config.views, vocabulary, config.seed)


def tokens_before_label(config: RunConfig) -> int:
    """Tokens that a student of METHOD may write before the label: a rationale and the marker."""
    if config.method != "single_task":
        return 0
    marker = marker_ids(config.views.answer_marker, load_vocabulary(config.tokens.vocabulary))
    return config.tokens.max_rationale_length - 1 + len(marker)


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
        model=configs.model_name(config.model),
        data_seed=config.data.data_seed,
        train_split=config.data.train_split,
        triage=triage.name(config.data.triage, config.data.triage_weight),
        augment=config.data.augment,
        initial=config.initial_checkpoint or "",
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config.model))),
    )


def abstract_sharded_params(config: RunConfig, mesh: Mesh) -> Any:
    """The model's parameters as shapes with shardings: what `restore_params` fills."""
    return sharded_shapes(config.model, mesh)


def sharded_shapes(model: T5Config, mesh: Mesh) -> Any:
    """As `abstract_sharded_params`, of a model that no run has."""
    shapes = abstract_params(model)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        param_shardings(logical_axes(model), shapes, mesh),
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
        abstract = abstract_sharded_params(config, evaluator.mesh)
        params = restore.restore_params(config.model_dir, best, abstract)
        for split in missing:
            results[split] = evaluator.evaluate(params, best, split, selected_on=SELECTED_ON)
    scored = [result for result in results.values() if result is not None]
    mark_finished(config, steps, best, scored)
    return scored


def score_teacher(config: RunConfig) -> list[Result]:
    """Scores the teacher's own answers on EVAL_SPLITS, once; the lead does, of several processes.

    Needs no device. The vocabulary, where it is at hand, only counts tokens.
    """
    return processes.from_lead(lambda: _score_teacher(config))


def _score_teacher(config: RunConfig) -> list[Result]:
    vocabulary = vocabulary_at_hand(config.tokens.vocabulary)
    encode = None if vocabulary is None else vocabulary.encode
    if encode is None:
        logging.info("Tokens are not counted, so answers have no cost: VOCABULARY is not at hand.")
    return [
        teacher.score(config.model_dir, config.data, config.teacher, split, encode)
        for split in config.eval.splits
    ]


def mark_finished(config: RunConfig, steps: int, best: int, scored: list[Result]) -> None:
    """Says that nothing is left to do for a run of so many steps, the best of them `best`."""
    if not processes.is_lead():
        return
    accuracy = {result.split: result.accuracy for result in scored}
    text = json.dumps({"step": steps, "best_step": best, "accuracy": accuracy}, indent=1) + "\n"
    records.write_atomic(epath.Path(config.model_dir) / FINISHED_FILE, text)
