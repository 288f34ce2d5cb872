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
    alpha_schedule,
    coefficients,
    combine,
    shift_right,
    stream_sums,
)
from stepdistill_jax.optim import schedule
from stepdistill_jax.parallel.mesh import batch_shards
from stepdistill_jax.parallel.place import batch_sharding
from stepdistill_jax.parallel.rules import activation_rules, fitting_rules
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import BATCH_AXES
from stepdistill_jax.train.state import TrainState, state_shardings

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainStep:
    """One jitted update: ``(state, batch) -> (state, metrics)``. The input state is donated.

    Neither the mesh nor MICROBATCHES changes the result, except for rounding. Two exceptions:
    each microbatch draws its own dropout masks, and the masks of PRNG_IMPL=rbg depend on the mesh.
    The batch holds `spec.batch_keys` of the run's streams and comes from
    `parallel.place.place_batch` with MICROBATCHES.

    Metrics are float32 scalars: those of `objective.combine`, ``grad_norm`` (before clipping),
    ``param_norm`` (after the update), ``learning_rate`` and, with ALPHA_END, ``alpha``.
    """
    model, objective, streams = config.model, config.objective, config.streams
    rules = fitting_rules(logical_axes(model), abstract_params(model), mesh)
    shardings = state_shardings(model, optimizer, mesh)
    learning_rate = schedule(config.optimizer, config.train_steps)
    alphas = alpha_schedule(objective, config.train_steps) if len(streams) > 1 else None

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        alpha: float | jax.Array = objective.alpha
        if alphas is not None:
            alpha = jnp.asarray(alphas(state.step), jnp.float32)
        # The weights of the whole batch, so that the losses of its parts add up to its loss.
        weights = {stream: jnp.sum(batch[f"{stream}_weights"]) for stream in streams}
        factors = coefficients(weights, alpha)

        def loss(params: Any, part: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
            """The differentiated loss; `combine` below recomputes it for the metrics."""
            sums = batch_sums(model, objective, streams, params, part, key, batch_shards(mesh))
            terms = [factors[stream] * sums[stream].loss for stream in streams]
            return sum(terms, start=jnp.float32(0)), sums

        def part_gradients(part: Batch, key: jax.Array) -> tuple[Any, Any]:
            gradients, sums = jax.grad(loss, has_aux=True)(state.params, part, key)
            # Constrained here, so that each part is reduced into shards, not whole on every device.
            return jax.lax.with_sharding_constraint(gradients, shardings.params), sums

        with activation_rules(rules, mesh):
            key = jax.random.fold_in(jax.random.key(config.seed, impl=config.prng_impl), state.step)
            gradients, sums = _sum_over_parts(part_gradients, batch, key, config.microbatches, mesh)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        _, metrics = combine(sums, alpha)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        metrics["param_norm"] = optax.tree.norm(params)
        metrics["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        if alphas is not None:
            metrics["alpha"] = jnp.asarray(alpha)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
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
    """Forward pass: each stream's sums over the batch, which holds `spec.batch_keys(streams)`.

    The encoder runs once over all streams' rows. The decoder runs once a stream, since streams
    differ in target length.

    Args:
        dropout_key: None = no dropout.
        row_shards: devices that the rows are split over.
    """
    module = Transformer(model, row_shards)

    def run(method: str, use: int, *args: jax.Array) -> Any:
        rngs = {} if dropout_key is None else {"dropout": jax.random.fold_in(dropout_key, use)}
        return module.apply({"params": params}, *args, not rngs, method=method, rngs=rngs)

    def logits(hidden: jax.Array) -> Any:
        return module.apply({"params": params}, hidden, method="logits")

    # Rows of the streams are interleaved, [B, streams, L] -> [B * streams, L], not concatenated:
    # each device then encodes the rows that it holds, and no row moves.
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
        shifted = shift_right(targets, target_segments)
        hidden = run(
            "decode_hidden", i + 1, encoded[:, i], segments[:, i], shifted, target_segments
        )
        weights = batch[f"{stream}_weights"]
        config = objective.of_stream(stream)
        sums[stream] = stream_sums(logits, hidden, targets, weights, config, row_shards=row_shards)
    return sums


def _sum_over_parts(
    function: Callable[[Batch, jax.Array], Any],
    batch: Batch,
    key: jax.Array,
    parts: int,
    mesh: Mesh,
) -> Any:
    """Sums ``function(part, key of the part)`` over the parts of a batch, one at a time.

    Part i has rows i, i + parts, ...: every device has its share of a part among its own rows.
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
