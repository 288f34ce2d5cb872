"""Scores a closed set of labels instead of decoding: gives probabilities and only valid labels.

The choices of an example are segments of one decoder row that read the same input, so the encoder
and the keys and values of its output are computed once per example.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import Transformer
from stepdistill_jax.model.stack import Params
from stepdistill_jax.spec import PAD_ID


@functools.partial(jax.jit, static_argnames="config")
def choice_log_probs(
    config: T5Config,
    params: Params,
    inputs: jax.Array,
    segment_ids: jax.Array,
    choices: jax.Array,
) -> jax.Array:
    """Log-probability of each choice as the whole target, one example a row.

    Args:
        inputs: int32 [B, L] token ids.
        segment_ids: int32 [B, L], 0 = padding.
        choices: int32 [B, C, T]; each choice ends in EOS, then PAD. A choice of PAD alone is
            absent, for rows with fewer choices.

    Returns:
        float32 [B, C]; -inf where there is no choice.
    """
    rows, count, length = choices.shape
    joined = (rows, count * length)

    present = choices != PAD_ID
    decoder_inputs = jnp.pad(choices[:, :, :-1], ((0, 0), (0, 0), (1, 0)), constant_values=PAD_ID)
    numbers = jnp.arange(1, count + 1, dtype=jnp.int32)[None, :, None]
    segments = jnp.where(present, numbers, 0)

    model: Any = Transformer(config)
    variables = {"params": params}
    encoded = model.apply(variables, inputs, segment_ids, method="encode")
    hidden = model.apply(
        variables,
        encoded,
        (segment_ids > 0).astype(jnp.int32),
        decoder_inputs.reshape(joined),
        segments.reshape(joined),
        read_segment_ids=present.astype(jnp.int32).reshape(joined),
        method="decode_hidden",
    )
    logits = model.apply(variables, hidden, method="logits")
    targets = choices.reshape(joined)[..., None]
    score = jnp.take_along_axis(logits, targets, axis=-1)[..., 0]
    log_probs = (score - jax.nn.logsumexp(logits, axis=-1)).reshape(choices.shape)
    total = jnp.sum(jnp.where(present, log_probs, 0.0), axis=-1)
    return jnp.where(jnp.any(present, axis=-1), total, -jnp.inf)


def choice_probabilities(log_probs: jax.Array) -> jax.Array:
    """Probabilities within each row's choices: [B, C] that sum to 1.

    An absent choice has 0; a row without any choice is all 0.
    """
    exists = jnp.isfinite(log_probs)
    # Finite, so that a row without any choice gives no NaN.
    finite = jnp.where(exists, log_probs, jnp.finfo(jnp.float32).min)
    return jnp.where(exists, jax.nn.softmax(finite, axis=-1), 0.0)
