"""A `Trainer` from a `RunConfig`: every part of a training run, built and joined."""

from __future__ import annotations

import dataclasses
import time

import grain
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from stepdistill_jax.checkpoint.initial import initial_params
from stepdistill_jax.checkpoint.restore import sharded_params
from stepdistill_jax.data import triage
from stepdistill_jax.data.packing import RowShape, row_shape
from stepdistill_jax.data.pipeline import SplitCache, train_iterator
from stepdistill_jax.data.token_shards import Manifest
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.optim import optimizer as make_optimizer
from stepdistill_jax.parallel import cluster, processes
from stepdistill_jax.parallel.mesh import batch_shards
from stepdistill_jax.parallel.place import data_shard, place_batch
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.costs import CostMeter
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.train import log, loop
from stepdistill_jax.train.clock import Clock, Goodput
from stepdistill_jax.train.state import TrainState, abstract_state, create_state
from stepdistill_jax.train.step import TrainStep, make_train_step
from stepdistill_jax.train.trace import StepTrace


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the steps of a run are made of, before any state is.

    Attributes:
        cache: the training data as METHOD reads it.
        shape: of a batch.
        batches: this process's part of them, from the first on.
        optimizer: the update rule.
        abstract: shapes and shardings of a state.
        train_step: compiles when it is first called.
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
        name=lambda row: f"example {cache.row(row)['id']}",
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
    evaluator: Evaluator,
    checkpoints: ocp.CheckpointManager,
    text: str,
    clock: Clock,
) -> tuple[loop.Trainer, TrainState, list[tuple[int, float]]]:
    """Builds the run, continued from its latest checkpoint where there is one.

    Returns:
        The trainer, the state to start from, and the validation accuracies so far.

    Raises:
        InputError: data, vocabulary, mesh or checkpoint do not fit the configuration.
    """
    started = time.perf_counter()
    parts = make_parts(config, mesh)
    cache, shape = parts.cache, parts.shape

    def fresh() -> TrainState:
        shardings = sharded_params(config.model, mesh)
        params = initial_params(config.initial_checkpoint, shardings)
        return create_state(config.model, parts.optimizer, mesh, config.seed, params)

    # The fingerprint covers the data's bytes, the vocabulary and all that makes tokens of text.
    identity = {"config": text, "training data": cache.manifest.fingerprint}
    state, evals = loop.resume(checkpoints, parts.batches, fresh, parts.abstract, identity)
    count = log.write_inventory(config.model_dir, state.params)
    cluster.say(_training_data(cache.manifest))
    cluster.say(
        f"{count:,} parameters; {_step(parts, mesh)}; "
        f"{_origin(config, checkpoints.latest_step())}; "
        f"ready in {time.perf_counter() - started:.1f} s"
    )
    step = int(state.step)
    if step < config.train_steps:
        cluster.say("compiling the step, which may take a minute or more; then it trains")
    flops = train_flops(config.model, shape.rows, shape.inputs, shape.targets)
    trainer = loop.Trainer(
        config=loop.LoopConfig(
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(loop.LoopConfig)}
        ),
        train_step=parts.train_step,
        batches=parts.batches,
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
        example_ids=lambda index: [cache.row(int(i) - 1)["id"] for i in np.unique(index)],
        identity=identity,
    )
    return trainer, state, evals


def _step(parts: Parts, mesh: Mesh) -> str:
    """What a step is, and of how many pairs in all."""
    shape = parts.shape
    return (
        f"{len(parts.cache):,} pairs for training; a step is {shape.rows} rows of "
        f"{shape.inputs} inputs and {dict(shape.targets)} targets on {mesh.size} device(s)"
        f"{_of_processes()}"
    )


def _training_data(manifest: Manifest) -> str:
    """One line on what became of the rows: joined, judged by TRIAGE, cut."""
    report, judged = triage.split_counts(manifest.report)
    report |= {f"{name} cut": count for name, count in manifest.truncated.items()}
    noted = {name: f"{count:,}" for name, count in report.items() if count}
    noted |= triage.yields(judged)
    return "training data: " + ", ".join(f"{name} {text}" for name, text in noted.items())


def _of_processes() -> str:
    """How many processes hold the devices, where it is not one."""
    return f" of {processes.count()} processes" if processes.count() > 1 else ""


def _origin(config: RunConfig, latest: int | None) -> str:
    """What a run whose latest checkpoint is of step `latest` goes on from."""
    if latest is not None:
        return f"continued from step {latest:,}"
    if config.initial_checkpoint is None:
        return "from random parameters"
    return f"from the parameters of {config.initial_checkpoint}"
