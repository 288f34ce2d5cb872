"""Distilling Step-by-Step's loss: per-stream sums over target tokens and their combination.

Streams return sums, never means: sums over microbatches and devices add up to the sum over the
global batch, means do not. `combine` divides once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import COUNTERFACTUAL, LABEL

# Maximum number of logits that a device holds of one stream; more are computed in chunks. 2**26
# float32 are 256 MiB, about 16 rows of 128 targets over T5's vocabulary.
LOGITS_BUDGET = 2**26


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    HEADING = "Objective"

    alpha: float = setting(
        0.5,
        "Weight of the label loss; the rationale loss (with METHOD 'pinto' the counterfactual "
        "loss) weighs 1 - ALPHA. No effect where METHOD trains the label alone.",
        at_least=0,
        at_most=1,
    )
    alpha_end: float | None = setting(
        None,
        "ALPHA at TRAIN_STEPS, reached linearly; None = constant.",
        at_least=0,
        at_most=1,
    )
    z_loss: float = setting(
        0.0,
        "Weight of the squared log of the softmax normaliser, as in T5X; 0 = off.",
        at_least=0,
    )
    label_smoothing: float = setting(
        0.0,
        "Probability that is spread over the other tokens of the vocabulary, as in T5X.",
        at_least=0,
        below=1,
    )
    counterfactual_smoothing: float = setting(
        0.1,
        "METHOD 'pinto': LABEL_SMOOTHING of the counterfactual stream (Wang et al. 2022).",
        at_least=0,
        below=1,
    )
    logits_chunk: int = setting(
        0,
        "Target positions whose logits are in memory at once; 0 = automatic. The loss does not "
        "depend on it.",
        at_least=0,
    )

    def __post_init__(self) -> None:
        check(self)

    def of_stream(self, stream: str) -> ObjectiveConfig:
        """The same objective with the label smoothing of `stream`."""
        if stream != COUNTERFACTUAL:
            return self
        return dataclasses.replace(self, label_smoothing=self.counterfactual_smoothing)


def alpha_schedule(config: ObjectiveConfig, train_steps: int) -> optax.Schedule | None:
    """Step -> alpha, from `alpha` at step 0 to `alpha_end` at `train_steps`; None = constant."""
    if config.alpha_end is None:
        return None
    return optax.linear_schedule(config.alpha, config.alpha_end, train_steps)


class StreamSums(NamedTuple):
    """Float32 scalars of one stream; they add over microbatches.

    Attributes:
        loss: weighted token losses.
        weight: token weights.
        correct: weights of the tokens whose target has the highest logit (a tie counts).
    """

    loss: jax.Array
    weight: jax.Array
    correct: jax.Array


def shift_right(targets: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Decoder inputs of packed rows: each segment's targets one to the right, 0 in front.

    ``targets      5 6 1  7 1  0``
    ``segment_ids  1 1 1  2 2  0``
    ``result       0 5 6  0 7  0``

    Args:
        targets: int [B, T].
        segment_ids: int [B, T], 0 = padding.
    """
    starts = ((0, 0), (1, 0))
    previous = jnp.pad(targets, starts)[:, :-1]
    previous_segment = jnp.pad(segment_ids, starts)[:, :-1]
    inside = (segment_ids == previous_segment) & (segment_ids > 0)
    return jnp.where(inside, previous, 0)


def cross_entropy_sums(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, config: ObjectiveConfig
) -> StreamSums:
    """Weighted cross-entropy, weight and correctness, summed over all tokens, in float32.

    Args:
        logits: [B, T, V].
        targets: int [B, T].
        weights: float [B, T]; a token of weight 0 adds nothing.
    """
    losses, correct = _token_losses(
        logits.astype(jnp.float32), targets, config.z_loss, config.label_smoothing
    )
    weights = weights.astype(jnp.float32)
    return StreamSums(
        loss=jnp.sum(losses * weights), weight=jnp.sum(weights), correct=jnp.sum(correct * weights)
    )


def stream_sums(
    logits_fn: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    config: ObjectiveConfig,
    *,
    row_shards: int = 1,
) -> StreamSums:
    """`cross_entropy_sums` of ``logits_fn(hidden)``; large logits are computed in chunks.

    Chunks split target positions, which no mesh axis splits, so no row moves between devices. The
    backward pass recomputes a chunk's logits.

    Args:
        logits_fn: [B, t, D] -> [B, t, V].
        hidden: [B, T, D].
        targets: int [B, T].
        weights: float [B, T].
        config: `ObjectiveConfig.logits_chunk` sets the chunk.
        row_shards: devices that the B rows are split over.
    """

    def sums(hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> StreamSums:
        return cross_entropy_sums(logits_fn(hidden), targets, weights, config)

    B, T, _ = hidden.shape
    V = jax.eval_shape(logits_fn, hidden).shape[-1]
    chunk = config.logits_chunk or max(1, LOGITS_BUDGET * row_shards // (B * V))
    if chunk >= T:
        return sums(hidden, targets, weights)
    n = -(-T // chunk)

    def chunked(x: jax.Array) -> jax.Array:
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, n * chunk - T)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(B, n, chunk, *x.shape[2:]), 1, 0)

    def add(
        total: StreamSums, xs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[StreamSums, None]:
        return jax.tree.map(jnp.add, total, jax.checkpoint(sums)(*xs)), None

    zero = StreamSums(*[jnp.zeros((), jnp.float32)] * 3)
    return jax.lax.scan(add, zero, (chunked(hidden), chunked(targets), chunked(weights)))[0]


def coefficients(
    weights: Mapping[str, jax.Array], alpha: float | jax.Array
) -> dict[str, jax.Array]:
    """Factor of each stream's loss sum: its share / its weight; 0 if the weight is 0.

    Args:
        weights: stream -> token weight of the global batch. A label stream alone has share 1;
            with another stream, label has alpha and the other 1 - alpha.
    """
    shares = {LABEL: alpha if len(weights) > 1 else 1.0}
    return {
        stream: shares.get(stream, 1.0 - alpha) * _inverse(weight)
        for stream, weight in weights.items()
    }


def combine(
    sums: Mapping[str, StreamSums], alpha: float | jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss ``alpha * label mean + (1 - alpha) * other stream's mean`` and its parts.

    Args:
        sums: stream -> sums over the global batch. With the label stream alone, the loss is its
            mean: standard finetuning.

    Returns:
        The loss, and ``loss``, and for each stream ``s``: ``s_loss`` (nats a token, z-loss
        included), ``s_accuracy`` (teacher-forced, a token) and ``s_tokens`` (token weight).
        A stream of weight 0 has loss 0 and accuracy 0.
    """
    factors = coefficients({stream: s.weight for stream, s in sums.items()}, alpha)
    loss = sum((factors[stream] * s.loss for stream, s in sums.items()), start=jnp.float32(0))
    metrics = {"loss": loss}
    for stream, s in sums.items():
        metrics[f"{stream}_loss"] = s.loss * _inverse(s.weight)
        metrics[f"{stream}_accuracy"] = s.correct * _inverse(s.weight)
        metrics[f"{stream}_tokens"] = s.weight
    return loss, metrics


def _inverse(weight: jax.Array) -> jax.Array:
    """1 / weight, 0 where weight is 0."""
    return jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)


# Autodiff would scatter the target's gradient into a second array of the logits' size and store the
# exponentials in a third. This rule stores the logits and computes their gradient in one pass. A
# masked sum, not a gather, reads the target's logit: it fuses into the same pass, and with a
# sharded vocabulary it needs only a scalar sum over devices.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _token_losses(
    logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Float32 [..., V] logits, int [...] targets -> float32 [...] losses and correctness."""
    return _token_losses_forward(logits, targets, z_loss, label_smoothing)[0]


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    return ids == targets[..., None]


def _probabilities(label_smoothing: float, V: int) -> tuple[float, float]:
    """Probability of the target and of each other id."""
    return 1.0 - label_smoothing, label_smoothing / (V - 1)


def _token_losses_forward(
    logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    target_logit = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), axis=-1)
    highest = jnp.max(logits, axis=-1)
    log_z = highest + jnp.log(jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1))
    losses = log_z - target_logit
    if label_smoothing > 0.0:
        high, low = _probabilities(label_smoothing, V=logits.shape[-1])
        losses = log_z - (high - low) * target_logit - low * jnp.sum(logits, axis=-1)
        entropy = -label_smoothing * math.log(low)
        if high > 0.0:
            entropy -= high * math.log(high)
        losses -= entropy
    if z_loss > 0.0:
        losses += z_loss * jnp.square(log_z)
    correct = (target_logit >= highest).astype(jnp.float32)
    return (losses, correct), (logits, targets, log_z)


def _token_losses_backward(
    z_loss: float,
    label_smoothing: float,
    residuals: tuple[jax.Array, jax.Array, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, None]:
    logits, targets, log_z = residuals
    high, low = _probabilities(label_smoothing, V=logits.shape[-1])
    softmax = jnp.exp(logits - log_z[..., None])
    slope = (1.0 + 2.0 * z_loss * log_z)[..., None] * softmax
    slope -= jnp.where(_is_target(logits, targets), high, low)
    return cotangents[0][..., None] * slope, None


_token_losses.defvjp(_token_losses_forward, _token_losses_backward)
