"""T5's relative-position bias: one learned number per head and bucket of distances.

Packed rows need no positions of their own: the bias depends on the distance between two slots of
a row alone, each segment lies in successive slots, so the distance within a segment is what it is
in a row of its own; between segments the mask leaves nothing to bias.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.layers import parameter


def relative_position_bucket(
    distance: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """Bucket of each distance "key position minus query position" (T5, section 2.1).

    Half of a direction's buckets hold one distance each, the other half grow as powers up to
    `max_distance`; all beyond share the last one. A bidirectional stack keeps the upper half of
    the buckets for keys after the query; a causal one puts those into bucket 0.

    Returns:
        int32 of the shape of `distance`, in ``[0, num_buckets)``.
    """
    if bidirectional:
        num_buckets //= 2
        offset = np.where(distance > 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        offset = np.zeros_like(distance)
        distance = np.maximum(-distance, 0)
    exact = num_buckets // 2
    # Distances on a bucket's border (16, 32, 64) must not fall below it by rounding.
    ratio = np.maximum(distance, exact) / exact
    logarithmic = np.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact) + 1e-9
    far = np.minimum(exact + logarithmic.astype(np.int32), num_buckets - 1)
    return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativePositionBias(nn.Module):
    """The bias of one stack (T5X: `relpos_bias`), computed once and shared by its layers.

    Attributes:
        config: the model's.
        bidirectional: True in the encoder, False in the decoder.
    """

    config: T5Config
    bidirectional: bool

    def setup(self) -> None:
        """Declares the parameter."""
        config = self.config
        self.rel_embedding = parameter(
            self,
            "rel_embedding",
            nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
            (config.num_heads, config.relpos_buckets),
            ("heads", "relpos_buckets"),
        )

    def by_distance(self, query_length: int, key_length: int) -> jax.Array:
        """Bias of every distance from ``-(Q - 1)`` to ``K - 1``: float32 [H, Q + K - 1]."""
        config = self.config
        buckets = relative_position_bucket(
            np.arange(-(query_length - 1), key_length),
            self.bidirectional,
            config.relpos_buckets,
            config.relpos_max_distance,
        )
        # A one-hot product over Q + K - 1 distances costs nothing and has no scatter behind it.
        one_hot = jax.nn.one_hot(buckets, config.relpos_buckets, axis=0, dtype=jnp.float32)
        return jnp.einsum(
            "hr,rd->hd", self.rel_embedding, one_hot, precision=jax.lax.Precision.HIGHEST
        )

    def __call__(self, query_length: int, key_length: int) -> jax.Array:
        """Bias of every pair of positions: float32 [1, H, Q, K]."""
        return toeplitz(self.by_distance(query_length, key_length), query_length)[None]


def toeplitz(by_distance: jax.Array, query_length: int) -> jax.Array:
    """Spreads values of distances over pairs: ``result[h, q, k] = value of k - q``.

    Shears a repeated row by reshapes; forward and backward are copies and a sum, where indexing
    by [Q, K] buckets would need a gather of that size and scatter its gradient.

    Args:
        by_distance: [H, Q + K - 1], the first for distance ``-(Q - 1)``.
        query_length: Q.

    Returns:
        [H, Q, K].
    """
    heads, distances = by_distance.shape
    width = distances + 1
    padded = jnp.pad(by_distance, ((0, 0), (0, 1)))
    rows = jnp.broadcast_to(padded[:, None], (heads, query_length, width))
    # Reading rows of `width` as rows of `width - 1` moves each row one further to the right.
    flat = rows.reshape(heads, query_length * width)[:, : query_length * distances]
    return flat.reshape(heads, query_length, distances)[:, :, query_length - 1 :]
