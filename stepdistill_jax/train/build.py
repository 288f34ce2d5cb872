"""One training run, from its `RunConfig` to its results: every part is built and joined here."""

from __future__ import annotations

import dataclasses

import grain
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from stepdistill_jax.checkpoint import initial, manager, restore
from stepdistill_jax.data import triage
from stepdistill_jax.data.packing import RowShape, row_shape
from stepdistill_jax.data.pipeline import SplitCache, train_iterator
from stepdistill_jax.data.token_shards import Manifest
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.eval.score import score_best
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.optim import optimizer as make_optimizer
from stepdistill_jax.parallel import cluster, compilation, processes
from stepdistill_jax.parallel.mesh import batch_shards, make_mesh
from stepdistill_jax.parallel.place import data_shard, place_batch
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.costs import CostMeter
from stepdistill_jax.run.folder import claim, locked
from stepdistill_jax.run.mend import mend
from stepdistill_jax.run.results import Result
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.train import log, loop
from stepdistill_jax.train.clock import Clock, Goodput
from stepdistill_jax.train.state import TrainState, abstract_state, create_state
from stepdistill_jax.train.step import TrainStep, make_train_step
from stepdistill_jax.train.trace import StepTrace


def train(config: RunConfig, clock: Clock) -> tuple[loop.Outcome, list[Result]]:
    """Trains a run, from its latest checkpoint if there is one, and scores its best step.

    Returns:
        How the training ended, and the results on EVAL_SPLITS; none if it was preempted.

    Raises:
        InputError: a setting, the data, the weights or MODEL_DIR do not fit the run, or another
            program trains in MODEL_DIR.
        NonFiniteError: a loss became NaN or infinite.
    """
    with locked(config):
        return _train(config, clock)


def _train(config: RunConfig, clock: Clock) -> tuple[loop.Outcome, list[Result]]:
    # The lead looks for checkpoints, but all processes check: reading weights may start devices.
    if not processes.from_lead(lambda: restore.available_steps(config.model_dir)):
        initial.check(config.initial_checkpoint, config.model, config.tokens.vocabulary)
    processes.from_lead(lambda: mend(config.model_dir))
    config_text = claim(config)
    compilation.enable_compilation_cache(config.tokens.root())
    mesh = make_mesh(config.mesh)
    processes.connect(mesh)
    evaluator = Evaluator(config, mesh)
    # All splits are opened before hours of training, by all processes in one order.
    parts = make_parts(config, mesh)
    for split in sorted({"validation", *config.eval.splits}):
        open_split(config, split)
    with manager.manager(config.model_dir, keep=config.keep_checkpoints) as checkpoints:
        trainer, state, evals = make_trainer(
            config, mesh, parts, evaluator, checkpoints, config_text, clock
        )
        try:
            outcome = trainer.run(state, evals)
        except loop.NonFiniteError:
            raise  # in all processes at once
        except Exception as error:
            # Before the manager closes, which waits for saves of the other processes.
            cluster.end(error)
            raise
        finally:
            trainer.log.close()
    if outcome.preempted:
        return outcome, []
    results = score_best(config, evaluator, outcome.step)
    clock.lap("evaluation")
    trainer.goodput.note(outcome.step, saved=True)
    return outcome, results


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the steps of a run need, apart from the state.

    Attributes:
        cache: the training data as METHOD reads it.
        shape: of a batch over all devices.
        batches: this process's part of each batch, from the first batch on.
        optimizer: the update rule.
        abstract: shapes and shardings of a state.
        train_step: compiles at its first call.
    """

    cache: SplitCache
    shape: RowShape
    batches: grain.DatasetIterator[loop.Batch]
    optimizer: optax.GradientTransformation
    abstract: TrainState
    train_step: TrainStep


def build_step(config: RunConfig, mesh: Mesh) -> tuple[optax.GradientTransformation, TrainStep]:
    """The update rule and the train step of a run; the step compiles at its first call."""
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    return optimizer, make_train_step(config, optimizer, mesh)


def make_parts(config: RunConfig, mesh: Mesh) -> Parts:
    """Opens the training data and makes the step.

    Raises:
        InputError: data, vocabulary or mesh do not fit the configuration.
    """
    cache = open_split(config, "train")
    shape = row_shape(
        cache.lengths,
        config.pipeline,
        config.streams,
        name=lambda row: f"example {cache.example(row)['id']}",
    )
    shard, shards = data_shard(mesh)
    batches = train_iterator(
        cache,
        config.pipeline,
        shape,
        config.streams,
        process_index=shard,
        process_count=shards,
        row_multiple=batch_shards(mesh) * config.microbatches,
    )
    optimizer, train_step = build_step(config, mesh)
    abstract = abstract_state(config.model, optimizer, mesh)
    return Parts(cache, shape, batches, optimizer, abstract, train_step)


def make_trainer(
    config: RunConfig,
    mesh: Mesh,
    parts: Parts,
    evaluator: Evaluator,
    checkpoints: ocp.CheckpointManager,
    config_text: str,
    clock: Clock,
) -> tuple[loop.Trainer, TrainState, list[tuple[int, float]]]:
    """Joins the parts of a run and reads its latest checkpoint, if there is one.

    Returns:
        The trainer, the state to start from, and the validation accuracies so far.

    Raises:
        InputError: the checkpoint does not fit the configuration.
    """
    cache, shape = parts.cache, parts.shape
    # The fingerprint covers the data's bytes, the vocabulary and the tokenizer settings.
    identity = {"config": config_text, "training data": cache.manifest.fingerprint}
    state, evals = loop.resume(
        checkpoints,
        parts.batches,
        lambda: _initial_state(config, parts.optimizer, mesh),
        parts.abstract,
        identity,
    )
    count = log.write_inventory(config.model_dir, state.params)
    cluster.say(_describe_data(cache.manifest))
    cluster.say(
        f"{count:,} parameters; {_describe_step(parts, mesh)}; "
        f"{_origin(config, checkpoints.latest_step())}"
    )
    step = int(state.step)
    if step < config.train_steps:
        cluster.say("compiling the train step, which can take a minute or more")
    flops = train_flops(config.model, shape.rows, shape.inputs, shape.targets)
    trainer = loop.Trainer(
        config,
        parts.train_step,
        parts.batches,
        place=lambda batch: place_batch(batch, mesh, config.microbatches),
        evaluate=lambda params, step: evaluator.evaluate(params, step, "validation").accuracy,
        checkpoints=checkpoints,
        log=log.MetricLog(config.model_dir, step, tensorboard=config.tensorboard),
        throughput=log.Throughput(flops, shape.rows, clock),
        costs=CostMeter(
            config.model_dir, step, train_pairs=len(cache), flops_per_step=flops, devices=mesh.size
        ),
        clock=clock,
        goodput=Goodput(config.model_dir, clock, step, writes=processes.is_lead()),
        trace=StepTrace(config.model_dir, config.profile_steps, clock),
        example_ids=lambda index: [cache.example(int(i) - 1)["id"] for i in np.unique(index)],
        identity=identity,
    )
    return trainer, state, evals


def _initial_state(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state of step 0, with the parameters of INITIAL_CHECKPOINT or fresh ones."""
    shardings = restore.sharded_params(config.model, mesh)
    params = initial.initial_params(config.initial_checkpoint, shardings)
    return create_state(config.model, optimizer, mesh, config.seed, params)


def _describe_step(parts: Parts, mesh: Mesh) -> str:
    shape = parts.shape
    processes_text = f" of {processes.count()} processes" if processes.count() > 1 else ""
    return (
        f"{len(parts.cache):,} pairs for training; a step is {shape.rows} rows of "
        f"{shape.inputs} inputs and {dict(shape.targets)} targets on {mesh.size} device(s)"
        f"{processes_text}"
    )


def _describe_data(manifest: Manifest) -> str:
    """One line of counts: pairs joined, pairs per TRIAGE filter, texts cut to their limit."""
    report, judged = triage.split_counts(manifest.report)
    report |= {f"{name} cut": count for name, count in manifest.truncated.items()}
    counts = {name: f"{count:,}" for name, count in report.items() if count}
    counts |= triage.yields(judged)
    return "training data: " + ", ".join(f"{name} {text}" for name, text in counts.items())


def _origin(config: RunConfig, latest_step: int | None) -> str:
    if latest_step is not None:
        return f"continued from step {latest_step:,}"
    if config.initial_checkpoint is None:
        return "from random parameters"
    return f"from the parameters of {config.initial_checkpoint}"
