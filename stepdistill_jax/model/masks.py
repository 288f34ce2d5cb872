"""Attention masks from segment ids.

Segment ids number the pairs of a packed row from 1; 0 is padding. A row with pairs of 2 and 3
tokens and one padding slot has segment ids ``[1, 1, 2, 2, 2, 0]``; its encoder mask is

    1 1 0 0 0 0
    1 1 0 0 0 0
    0 0 1 1 1 0
    0 0 1 1 1 0
    0 0 1 1 1 0
    0 0 0 0 0 0
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Added to the float32 score of a masked position, whose weight is then exactly 0. Finite, so that a
# padding query, which has no position to attend to, gives no NaN.
MASKED = -1e10


def segment_mask(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """True where both positions are in the same segment; padding is in none.

    Args:
        query_segments: int32 [B, Q].
        key_segments: int32 [B, K].

    Returns:
        bool [B, 1, Q, K]; the 1 is for heads.
    """
    query = query_segments[:, None, :, None]
    key = key_segments[:, None, None, :]
    return (query == key) & (query > 0)


def causal_segment_mask(segments: jax.Array) -> jax.Array:
    """True where the key is in the query's segment and not after the query; bool [B, 1, T, T]."""
    positions = jnp.arange(segments.shape[-1])
    causal = positions[:, None] >= positions[None, :]
    return segment_mask(segments, segments) & causal[None, None]


def mask_bias(mask: jax.Array) -> jax.Array:
    """The mask as a float32 term of the attention scores, 0 or `MASKED`."""
    return jnp.where(mask, jnp.float32(0), jnp.float32(MASKED))
