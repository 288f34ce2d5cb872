"""The one train step; every method and baseline is a configuration of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import Transformer, abstract_params, logical_axes
from stepdistill_jax.objective import (
    ObjectiveConfig,
    StreamSums,
    coefficients,
    combine,
    shift_right,
    stream_sums,
)
from stepdistill_jax.parallel.mesh import batch_shards
from stepdistill_jax.parallel.place import batch_sharding
from stepdistill_jax.parallel.rules import activation_rules, fitting_rules
from stepdistill_jax.spec import BATCH_AXES
from stepdistill_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    model: T5Config,
    objective: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    streams: tuple[str, ...],
    microbatches: int,
    seed: int,
    prng_impl: str,
    mesh: Mesh,
    state_shardings: TrainState,
    alpha: optax.Schedule | None = None,
) -> TrainStep:
    """Compiles one update: ``(state, batch) -> (state, metrics)``; the given state is donated.

    The result depends on neither the mesh nor `microbatches`, but for rounding and, with
    microbatches, for the dropout masks drawn.

    Args:
        model: the model.
        objective: the loss.
        optimizer: the update rule, clipping included.
        schedule: only for the metric; the optimizer has its own count.
        streams: of `spec.METHOD_STREAMS`; the batch holds `spec.batch_keys(streams)`.
        microbatches: parts that the batch is cut into, one after another, to save memory; the
            batch comes from `parallel.place.place_batch` with the same number.
        seed: of dropout. The masks of a step follow from it and the step's number alone.
        prng_impl: dropout's generator: ``threefry2x32``, or ``rbg``, the TPU's own (its masks
            depend on the mesh).
        mesh: the mesh.
        state_shardings: `train.state.state_shardings`.
        alpha: weight of the label stream at each step, `objective.alpha_schedule`; None = always
            the objective's.

    Returns:
        The jitted step. Its metrics are float32 scalars, those of `objective.combine` and
        ``grad_norm`` (before clipping), ``param_norm`` (after the update), ``learning_rate`` and,
        where it is scheduled, ``alpha`` (of this update).
    """
    rules = fitting_rules(logical_axes(model), abstract_params(model), mesh)
    whole = NamedSharding(mesh, PartitionSpec())

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weights = {stream: jnp.sum(batch[f"{stream}_weights"]) for stream in streams}
        share = objective.alpha if alpha is None else jnp.asarray(alpha(state.step), jnp.float32)
        factors = coefficients(weights, share)

        def part_loss(params: Any, part: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
            sums = batch_sums(model, objective, streams, params, part, key, batch_shards(mesh))
            terms = [factors[stream] * sums[stream].loss for stream in streams]
            return sum(terms, start=jnp.float32(0)), sums

        def part_gradients(part: Batch, key: jax.Array) -> tuple[Any, Any]:
            gradients, sums = jax.grad(part_loss, has_aux=True)(state.params, part, key)
            # Said here, so that parts are reduced into shards, not summed whole on every device.
            return jax.lax.with_sharding_constraint(gradients, state_shardings.params), sums

        with activation_rules(rules, mesh):
            key = jax.random.fold_in(jax.random.key(seed, impl=prng_impl), state.step)
            gradients, sums = _sum_over_parts(part_gradients, batch, key, microbatches, mesh)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        _, metrics = combine(sums, share)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        metrics["param_norm"] = optax.tree.norm(params)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        if alpha is not None:
            metrics["alpha"] = jnp.asarray(share)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )


def batch_sums(
    model: T5Config,
    objective: ObjectiveConfig,
    streams: tuple[str, ...],
    params: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
    row_shards: int = 1,
) -> dict[str, StreamSums]:
    """Forward pass: each stream's sums over the batch.

    The encoder runs once over all streams' rows; the decoder runs for each stream on targets of
    its own length.

    Args:
        model: the model.
        objective: z-loss, smoothing and chunking.
        streams: the streams to run.
        params: parameters.
        batch: `spec.batch_keys(streams)`.
        dropout_key: None = no dropout.
        row_shards: devices that the rows are split over.
    """
    module = Transformer(model, row_shards)
    deterministic = dropout_key is None

    def run(method: str, use: int, *args: jax.Array) -> jax.Array:
        rngs = {} if dropout_key is None else {"dropout": jax.random.fold_in(dropout_key, use)}
        output: Any = module.apply(
            {"params": params}, *args, deterministic, method=method, rngs=rngs
        )
        return output

    def logits(hidden: jax.Array) -> jax.Array:
        output: Any = module.apply({"params": params}, hidden, method="logits")
        return output

    # Rows of the streams are interleaved, [B, streams, L] -> [streams * B, L], not laid end to
    # end: so each device encodes the rows that it holds, and nothing moves.
    inputs, segments = (
        jnp.stack([batch[f"{stream}_{suffix}"] for stream in streams], axis=1)
        for suffix in ("inputs", "inputs_segment_ids")
    )
    B, _, L = inputs.shape
    encoded = run("encode", 0, inputs.reshape(-1, L), segments.reshape(-1, L))
    encoded = encoded.reshape(B, len(streams), L, -1)
    sums = {}
    for i, stream in enumerate(streams):
        targets = batch[f"{stream}_targets"]
        target_segments = batch[f"{stream}_targets_segment_ids"]
        hidden = run(
            "decode_hidden",
            i + 1,
            encoded[:, i],
            segments[:, i],
            shift_right(targets, target_segments),
            target_segments,
        )
        weights = batch[f"{stream}_weights"]
        sums[stream] = stream_sums(
            logits,
            hidden,
            targets,
            weights,
            objective.of_stream(stream),
            row_shards=row_shards,
        )
    return sums


def _sum_over_parts(
    function: Callable[[Batch, jax.Array], Any],
    batch: Batch,
    key: jax.Array,
    parts: int,
    mesh: Mesh,
) -> Any:
    """Sums ``function(part, key of the part)`` over the parts of a batch, one at a time.

    Part i has rows i, i + parts, ...: every device finds its share of it among its own rows.
    """
    if parts == 1:
        return function(batch, key)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
        rows = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
        return jax.lax.with_sharding_constraint(x, rows)

    def add(total: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        part, i = xs
        return jax.tree.map(jnp.add, total, function(part, jax.random.fold_in(key, i))), None

    split_batch = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], split_batch)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first, key)
    )
    return jax.lax.scan(add, zeros, (split_batch, jnp.arange(parts)))[0]
