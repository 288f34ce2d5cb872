"""T5's relative-position bias: one learned number per head and bucket of distances.

Packed rows need no explicit positions. The bias depends only on the distance between two slots, and
a segment fills successive slots, so distances within it are those of an unpacked row. The mask
covers distances between segments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.layers import parameter


def relative_position_bucket(
    distance: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """Bucket of each distance "key position minus query position" (T5, section 2.1).

    Half of a direction's buckets hold one distance each. The other half grow exponentially up to
    `max_distance`; larger distances share the last bucket. A bidirectional stack uses the upper
    half of all buckets for keys after the query; a causal one puts those into bucket 0.

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
    # 1e-9: rounding must not move distances on a bucket's border (16, 32, 64) below it.
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
        return _by_distance(self.rel_embedding, self._buckets(query_length, key_length))

    def __call__(self, query_length: int, key_length: int, copies: int = 1) -> jax.Array:
        """Bias of every pair of positions: float32 [C, H, Q, K], the same C times.

        With one copy for each part of the rows, the gradient [H, Q, K] of a layer stays on the
        device that computed it; devices sum only the gradient of the table, [H, R].
        """
        buckets = tuple(self._buckets(query_length, key_length).tolist())
        if copies == 1:
            return _spread(self.rel_embedding, buckets, query_length)[None]
        tables = jnp.broadcast_to(self.rel_embedding, (copies, *self.rel_embedding.shape))
        tables = with_logical_constraint(tables, ("batch", "heads", None))
        bias = jax.vmap(lambda table: _spread(table, buckets, query_length))(tables)
        return with_logical_constraint(bias, ("batch", "heads", None, None))

    def _buckets(self, query_length: int, key_length: int) -> np.ndarray:
        """Bucket of every distance, int32 [Q + K - 1]."""
        return relative_position_bucket(
            np.arange(-(query_length - 1), key_length),
            self.bidirectional,
            self.config.relpos_buckets,
            self.config.relpos_max_distance,
        )


# Two ways to compute the same values, since neither suits every device. A TPU stores tiles of
# 8 x 128: shearing by reshapes takes its compiler minutes and moves every element. A CPU would
# compute H * R * Q * K products instead of copies.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(table: jax.Array, buckets: tuple[int, ...], query_length: int) -> jax.Array:
    """Bias of every pair, [H, Q, K], of a table [H, R] by the buckets of Q + K - 1 distances."""
    return jax.lax.platform_dependent(table, **_ways(buckets, query_length))


def _spread_forward(
    table: jax.Array, buckets: tuple[int, ...], query_length: int
) -> tuple[jax.Array, jax.Array]:
    return _spread(table, buckets, query_length), table


def _spread_backward(
    buckets: tuple[int, ...], query_length: int, table: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    transposed = {
        platform: lambda g, way=way: jax.linear_transpose(way, table)(g)[0]
        for platform, way in _ways(buckets, query_length).items()
    }
    return (jax.lax.platform_dependent(gradient, **transposed),)


_spread.defvjp(_spread_forward, _spread_backward)


def _ways(
    buckets: tuple[int, ...], query_length: int
) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Platform -> function of `_spread`; each is linear."""
    distances = np.array(buckets, np.int32)

    def by_product(table: jax.Array) -> jax.Array:
        rows = np.arange(query_length)[:, None]
        keys = np.arange(len(distances) - query_length + 1)
        pairs = jnp.asarray(distances[keys - rows + query_length - 1])
        one_hot = jax.nn.one_hot(pairs, table.shape[1], axis=0, dtype=jnp.float32)
        return jnp.einsum("hr,rqk->hqk", table, one_hot, precision=jax.lax.Precision.HIGHEST)

    def by_shear(table: jax.Array) -> jax.Array:
        return toeplitz(_by_distance(table, distances), query_length)

    return {"tpu": by_product, "default": by_shear}


def _by_distance(table: jax.Array, buckets: np.ndarray) -> jax.Array:
    """Values [H, D] of D distances, given a table [H, R] and each one's bucket."""
    # A one-hot product over the distances is cheap and its gradient needs no scatter.
    one_hot = jax.nn.one_hot(buckets, table.shape[1], axis=0, dtype=jnp.float32)
    return jnp.einsum("hr,rd->hd", table, one_hot, precision=jax.lax.Precision.HIGHEST)


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
