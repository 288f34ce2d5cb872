"""One layer of the encoder and one of the decoder."""

from __future__ import annotations

import jax
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint

from stepdistill_jax.model.attention import Attention
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.layers import RESIDUAL_AXES, Mlp, RMSNorm, dropout


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each with a norm before and a residual connection around it."""

    config: T5Config

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        self.pre_attention_layer_norm = RMSNorm(config.activation_dtype)
        self.attention = Attention(config)
        self.pre_mlp_layer_norm = RMSNorm(config.activation_dtype)
        self.mlp = Mlp(config)
        self.dropout = dropout(config)

    def __call__(
        self, x: jax.Array, biases: tuple[jax.Array, ...], deterministic: bool
    ) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]."""
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, y, biases, deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        return with_logical_constraint(x, RESIDUAL_AXES)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's output, MLP."""

    config: T5Config

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        self.pre_self_attention_layer_norm = RMSNorm(config.activation_dtype)
        self.self_attention = Attention(config)
        self.pre_cross_attention_layer_norm = RMSNorm(config.activation_dtype)
        self.encoder_decoder_attention = Attention(config)
        self.pre_mlp_layer_norm = RMSNorm(config.activation_dtype)
        self.mlp = Mlp(config)
        self.dropout = dropout(config)

    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array,
        self_biases: tuple[jax.Array, ...],
        cross_biases: tuple[jax.Array, ...],
        deterministic: bool,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        y = self.pre_self_attention_layer_norm(x)
        y = self.self_attention(y, y, self_biases, deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        cross = self.cross_keys_values(encoded)
        return self._after_self_attention(x, *cross, cross_biases, deterministic)

    def cross_keys_values(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the encoder's output, each [B, L, H, K]."""
        return self.encoder_decoder_attention.keys_values(encoded)

    def step(
        self,
        x: jax.Array,
        self_key: jax.Array,
        self_value: jax.Array,
        layer: jax.Array | int,
        cross_key: jax.Array,
        cross_value: jax.Array,
        self_biases: tuple[jax.Array, ...],
        cross_biases: tuple[jax.Array, ...],
        index: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One position x [B, 1, D]; keys and values are the whole stack's, [N, B, S, H, K].

        Writes one position of one layer of the cache in place, so a loop never copies it.
        """
        y = self.pre_self_attention_layer_norm(x)
        key, value = self.self_attention.keys_values(y)
        self_key = jax.lax.dynamic_update_slice(self_key, key[None], (layer, 0, index, 0, 0))
        self_value = jax.lax.dynamic_update_slice(self_value, value[None], (layer, 0, index, 0, 0))
        keys = jax.lax.dynamic_index_in_dim(self_key, layer, keepdims=False)
        values = jax.lax.dynamic_index_in_dim(self_value, layer, keepdims=False)
        x = x + self.self_attention.attend(y, keys, values, self_biases, True)
        x = self._after_self_attention(x, cross_key, cross_value, cross_biases, True)
        return x, self_key, self_value

    def _after_self_attention(
        self,
        x: jax.Array,
        cross_key: jax.Array,
        cross_value: jax.Array,
        cross_biases: tuple[jax.Array, ...],
        deterministic: bool,
    ) -> jax.Array:
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention.attend(
            y, cross_key, cross_value, cross_biases, deterministic
        )
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        return with_logical_constraint(x, RESIDUAL_AXES)
