"""T5's multi-head attention: no biases, no 1/sqrt(K) (it is in the initialiser), float32 softmax.

The same module serves whole sequences and one position at a time with cached keys and values.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.layers import Dense, dropout

HEAD_AXES = ("batch", "length", "heads", "kv")

kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Attention(nn.Module):
    """Attention of one layer, over itself or over the encoder's output."""

    config: T5Config

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        joined = config.num_heads * config.head_dim
        dense = functools.partial(Dense, dtype=config.activation_dtype, kernel_init=kernel_init)

        def query_init(*args: Any) -> jax.Array:
            return kernel_init(*args) * config.head_dim**-0.5

        self.query = dense(joined, ("embed", "joined_kv"), kernel_init=query_init)
        self.key = dense(joined, ("embed", "joined_kv"))
        self.value = dense(joined, ("embed", "joined_kv"))
        self.out = dense(config.emb_dim, ("joined_kv", "embed"))
        self.dropout = dropout(config)

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of [B, S, D]: each [B, S, H, K]."""
        return self._split_heads(self.key(x)), self._split_heads(self.value(x))

    def attend(
        self,
        x: jax.Array,
        key: jax.Array,
        value: jax.Array,
        biases: tuple[jax.Array, ...],
        deterministic: bool,
    ) -> jax.Array:
        """Attends from the positions of x to keys and values.

        Args:
            x: [B, Q, D].
            key: [B, S, H, K].
            value: [B, S, H, K].
            biases: float32 terms of the scores, each broadcast over axes of size 1 to
                [B, H, Q, S], or [C, H, Q, S] with one entry for each B / C successive rows. They
                are separate since relative positions have no rows and masks no heads: their sum
                would be the largest array of the stack.
            deterministic: no dropout.

        Returns:
            [B, Q, D].
        """
        query = self._split_heads(self.query(x))
        scores = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
        for bias in biases:
            scores = _add(scores, bias)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        heads = jnp.einsum("bhqs,bshk->bqhk", weights, self._dropped(value, deterministic))
        heads = with_logical_constraint(heads, HEAD_AXES)
        return self.out(heads.reshape(*heads.shape[:2], -1))

    def _dropped(self, value: jax.Array, deterministic: bool) -> jax.Array:
        """Values [B, S, H, K] without the positions that T5's dropout of the weights drops.

        It drops a position for all queries of a row and head at once, so its factor [B, H, 1, S]
        can scale the values instead of the weights. That needs fewer products, and the TPU
        compiler crashes on many programs that scale the weights.
        """
        if deterministic or not self.config.dropout_rate:
            return value
        B, S, H, _ = value.shape
        factor = self.dropout(jnp.ones((B, H, 1, S), jnp.float32), deterministic=False)
        return (value * factor.transpose(0, 3, 1, 2)).astype(value.dtype)

    def __call__(
        self, x: jax.Array, memory: jax.Array, biases: tuple[jax.Array, ...], deterministic: bool
    ) -> jax.Array:
        """Attention from x [B, Q, D] to memory [B, S, D]; see `attend`."""
        return self.attend(x, *self.keys_values(memory), biases, deterministic)

    def _split_heads(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)
        return with_logical_constraint(x, HEAD_AXES)


def _add(scores: jax.Array, bias: jax.Array) -> jax.Array:
    """Scores [B, H, Q, S] plus a bias of `Attention.attend`."""
    copies = bias.shape[0]
    if copies in (1, scores.shape[0]):
        return scores + bias
    grouped = scores.reshape(copies, -1, *scores.shape[1:])
    return (grouped + bias[:, None]).reshape(scores.shape)
