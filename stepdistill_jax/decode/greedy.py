"""Greedy decoding with a key-value cache, compiled once per shape."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import DecodeCache, Transformer
from stepdistill_jax.model.stack import Params
from stepdistill_jax.spec import EOS_ID, PAD_ID


class _State(struct.PyTreeNode):
    """State of the decoding loop: output [B, S], last token [B], whether each row has ended [B]."""

    output: jax.Array
    token: jax.Array
    ended: jax.Array
    cache: DecodeCache


@functools.partial(jax.jit, static_argnames=("config", "max_length"))
def greedy(
    config: T5Config,
    params: Params,
    inputs: jax.Array,
    segment_ids: jax.Array,
    max_length: int,
) -> jax.Array:
    """Decodes the most probable token at each step, one example a row.

    The loop ends when every row has its EOS. Rows of padding alone (all segment ids 0), which fill
    the last batch, count as ended from the start.

    Args:
        inputs: int32 [B, L] token ids.
        segment_ids: int32 [B, L], 0 = padding.
        max_length: maximum number of tokens to write, EOS included.

    Returns:
        int32 [B, max_length]: each row's tokens, EOS if it was reached, then PAD.
    """
    model: Any = Transformer(config)
    variables = {"params": params}
    encoded = model.apply(variables, inputs, segment_ids, method="encode")
    cache = model.apply(variables, encoded, segment_ids, max_length, method="start_cache")
    rows = inputs.shape[0]

    def step(state: _State) -> _State:
        logits, cache = model.apply(variables, state.token, state.cache, method="decode_step")
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        token = jnp.where(state.ended, PAD_ID, best)
        return _State(
            output=jax.lax.dynamic_update_slice(
                state.output, token[:, None], (0, state.cache.index)
            ),
            token=token,
            ended=state.ended | (token == EOS_ID),
            cache=cache,
        )

    state = _State(
        output=jnp.full((rows, max_length), PAD_ID, jnp.int32),
        # The decoder starts from PAD, as T5 does.
        token=jnp.full((rows,), PAD_ID, jnp.int32),
        ended=~jnp.any(segment_ids > 0, axis=-1),
        cache=cache,
    )
    last = jax.lax.while_loop(
        lambda state: (state.cache.index < max_length) & ~jnp.all(state.ended), step, state
    )
    return last.output
