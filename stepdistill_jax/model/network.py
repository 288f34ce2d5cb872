"""T5 as a Linen module with the parameter names of T5X's minimal T5.

Stacks compute masks and relative-position bias once for all layers. Functions at the end return a
model's parameters as a plain tree, their shapes, and their logical axes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.linen.spmd import with_logical_constraint

from stepdistill_jax.model import masks
from stepdistill_jax.model.blocks import DecoderLayer, EncoderLayer
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.layers import Dense, Embed, RMSNorm, dropout
from stepdistill_jax.model.relpos import RelativePositionBias
from stepdistill_jax.model.stack import Params, make_layers, run_layers


class DecodeCache(struct.PyTreeNode):
    """State between decoding steps of one position each (N decoder layers, S positions).

    Attributes:
        index: int32 scalar, the next position.
        self_key: [N, B, S, H, K], filled up to `index`.
        self_value: [N, B, S, H, K].
        cross_key: [N, B, L, H, K], of the encoder's output.
        cross_value: [N, B, L, H, K].
        cross_bias: float32 [B, 1, 1, L], the input's mask.
        relpos: float32 [H, 2S - 1], bias of each distance.
    """

    index: jax.Array
    self_key: jax.Array
    self_value: jax.Array
    cross_key: jax.Array
    cross_value: jax.Array
    cross_bias: jax.Array
    relpos: jax.Array


class Encoder(nn.Module):
    """The encoder's stack, from embedded tokens to normalised output."""

    config: T5Config
    row_shards: int = 1

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        self.relpos_bias = RelativePositionBias(config, bidirectional=True)
        self.layers = make_layers(config, EncoderLayer, config.num_encoder_layers)
        self.encoder_norm = RMSNorm(config.activation_dtype)
        self.dropout = dropout(config)

    def __call__(self, x: jax.Array, segment_ids: jax.Array, deterministic: bool) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]."""
        config = self.config
        length = x.shape[1]
        biases = (
            self.relpos_bias(length, length, self.row_shards),
            masks.mask_bias(masks.segment_mask(segment_ids, segment_ids)),
        )

        def body(layer: EncoderLayer, x: jax.Array, _: None, shared: Any) -> tuple[jax.Array, None]:
            return layer(x, shared, deterministic), None

        x = self.dropout(x, deterministic=deterministic)
        x, _ = run_layers(config, self.layers, config.num_encoder_layers, body, x, shared=biases)
        return self.dropout(self.encoder_norm(x), deterministic=deterministic)


class Decoder(nn.Module):
    """The decoder's stack, and the output matrix unless it is tied."""

    config: T5Config
    row_shards: int = 1

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        self.relpos_bias = RelativePositionBias(config, bidirectional=False)
        self.layers = make_layers(config, DecoderLayer, config.num_decoder_layers)
        self.decoder_norm = RMSNorm(config.activation_dtype)
        self.dropout = dropout(config)
        if not config.logits_via_embedding:
            self.logits_dense = Dense(
                config.vocab_size,
                ("embed", "vocab"),
                config.activation_dtype,
                float32_output=True,
            )

    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array,
        self_mask: jax.Array,
        cross_mask: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D], reading encoded [B, L, D]."""
        config = self.config
        length = x.shape[1]
        shared = (
            encoded,
            (self.relpos_bias(length, length, self.row_shards), masks.mask_bias(self_mask)),
            (masks.mask_bias(cross_mask),),
        )

        def body(layer: DecoderLayer, x: jax.Array, _: None, shared: Any) -> tuple[jax.Array, None]:
            encoded, self_biases, cross_biases = shared
            return layer(x, encoded, self_biases, cross_biases, deterministic), None

        x = self.dropout(x, deterministic=deterministic)
        x, _ = run_layers(config, self.layers, config.num_decoder_layers, body, x, shared=shared)
        return self.dropout(self.decoder_norm(x), deterministic=deterministic)

    def start_cache(
        self, encoded: jax.Array, input_segment_ids: jax.Array, max_decode_length: int
    ) -> DecodeCache:
        """A cache that contains only the keys and values of the cross-attention."""
        config = self.config
        count = config.num_decoder_layers

        def body(layer: DecoderLayer, carry: None, _: None, encoded: jax.Array) -> Any:
            return carry, layer.cross_keys_values(encoded)

        _, (cross_key, cross_value) = run_layers(
            config, self.layers, count, body, None, shared=encoded
        )
        rows = encoded.shape[0]
        shape = (count, rows, max_decode_length, config.num_heads, config.head_dim)
        return DecodeCache(
            index=jnp.zeros((), jnp.int32),
            self_key=jnp.zeros(shape, config.activation_dtype),
            self_value=jnp.zeros(shape, config.activation_dtype),
            cross_key=cross_key,
            cross_value=cross_value,
            cross_bias=masks.mask_bias(input_segment_ids > 0)[:, None, None, :],
            relpos=self.relpos_bias.by_distance(max_decode_length, max_decode_length),
        )

    def step(self, x: jax.Array, cache: DecodeCache) -> tuple[jax.Array, DecodeCache]:
        """One position: x [B, 1, D] to [B, 1, D]."""
        config = self.config
        count = config.num_decoder_layers
        length = cache.self_key.shape[2]
        relpos = jax.lax.dynamic_slice_in_dim(
            cache.relpos, length - 1 - cache.index, length, axis=1
        )
        seen = masks.mask_bias(jnp.arange(length) <= cache.index)
        self_biases = (relpos[None, :, None, :], seen[None, None, None, :])

        def body(layer: DecoderLayer, carry: Any, scanned: Any, shared: Any) -> Any:
            return layer.step(*carry, *scanned, *shared), None

        (x, self_key, self_value), _ = run_layers(
            config,
            self.layers,
            count,
            body,
            (x, cache.self_key, cache.self_value),
            scanned=(jnp.arange(count), cache.cross_key, cache.cross_value),
            shared=(self_biases, (cache.cross_bias,), cache.index),
        )
        cache = cache.replace(index=cache.index + 1, self_key=self_key, self_value=self_value)
        return self.decoder_norm(x), cache


class Transformer(nn.Module):
    """T5: encode, decode, logits as separate methods, so that a step can share the encoder.

    Attributes:
        config: the model.
        row_shards: parts into which devices split the rows; B is a multiple of it. It does not
            change results.
    """

    config: T5Config
    row_shards: int = 1

    def setup(self) -> None:
        """Declares the submodules."""
        self.token_embedder = Embed(self.config)
        self.encoder = Encoder(self.config, self.row_shards)
        self.decoder = Decoder(self.config, self.row_shards)

    def encode(
        self, inputs: jax.Array, segment_ids: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Runs the encoder.

        Args:
            inputs: int32 [B, L] token ids.
            segment_ids: int32 [B, L], 0 = padding.
            deterministic: no dropout; else the caller passes the random stream ``dropout``.

        Returns:
            [B, L, D] in the activations' dtype; values at padding are meaningless.
        """
        return self.encoder(self.token_embedder(inputs), segment_ids, deterministic)

    def decode_hidden(
        self,
        encoded: jax.Array,
        input_segment_ids: jax.Array,
        decoder_inputs: jax.Array,
        target_segment_ids: jax.Array,
        deterministic: bool = True,
        read_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the decoder over whole targets, up to the logits.

        Args:
            encoded: [B, L, D] of `encode`.
            input_segment_ids: int32 [B, L].
            decoder_inputs: int32 [B, T], the targets shifted right within each segment.
            target_segment_ids: int32 [B, T]; a target reads the input of the same segment.
            deterministic: no dropout.
            read_segment_ids: int32 [B, T], the input segment that each target position reads;
                None = that of the same number.

        Returns:
            [B, T, D] in the activations' dtype.
        """
        if read_segment_ids is None:
            read_segment_ids = target_segment_ids
        return self.decoder(
            self.token_embedder(decoder_inputs),
            encoded,
            masks.causal_segment_mask(target_segment_ids),
            masks.segment_mask(read_segment_ids, input_segment_ids),
            deterministic,
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of every token: [..., D] to float32 [..., V].

        T5 1.0 scales by 1/sqrt(D) because its embedding is not initialised as an output matrix.
        """
        if self.config.logits_via_embedding:
            logits = self.token_embedder.attend(hidden * self.config.emb_dim**-0.5)
        else:
            logits = self.decoder.logits_dense(hidden)
        axes = ("batch", "length", "vocab")[3 - hidden.ndim :] if hidden.ndim < 4 else None
        return with_logical_constraint(logits, axes)

    def __call__(
        self,
        inputs: jax.Array,
        input_segment_ids: jax.Array,
        decoder_inputs: jax.Array,
        target_segment_ids: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """The whole pass: float32 [B, T, V]; arguments as `encode` and `decode_hidden`."""
        encoded = self.encode(inputs, input_segment_ids, deterministic)
        hidden = self.decode_hidden(
            encoded, input_segment_ids, decoder_inputs, target_segment_ids, deterministic
        )
        return self.logits(hidden)

    def start_cache(
        self, encoded: jax.Array, input_segment_ids: jax.Array, max_decode_length: int
    ) -> DecodeCache:
        """A cache for decoding up to `max_decode_length` tokens, one example a row.

        Args:
            encoded: [B, L, D] of `encode`.
            input_segment_ids: int32 [B, L]; all positions except padding are read.
            max_decode_length: S, a Python integer.
        """
        return self.decoder.start_cache(encoded, input_segment_ids, max_decode_length)

    def decode_step(self, tokens: jax.Array, cache: DecodeCache) -> tuple[jax.Array, DecodeCache]:
        """Feeds one token a row.

        Args:
            tokens: int32 [B], 0 at the start.
            cache: of `start_cache` or the previous step.

        Returns:
            float32 [B, V] scores of the next token, and the cache with this one.
        """
        hidden, cache = self.decoder.step(self.token_embedder(tokens[:, None]), cache)
        return self.logits(hidden)[:, 0], cache


@functools.partial(jax.jit, static_argnames="config")
def init_params(config: T5Config, rng: jax.Array) -> Params:
    """Fresh float32 parameters as a plain nested dict; may be called inside another jit."""
    return nn.meta.unbox(_init(config, rng))


def abstract_params(config: T5Config) -> Params:
    """`jax.ShapeDtypeStruct` for every parameter, without computing any."""
    return jax.tree.map(lambda box: box.value, _abstract(config), is_leaf=_is_box)


def logical_axes(config: T5Config) -> Params:
    """The tree of `init_params` with a tuple of `spec.LOGICAL_AXES` names at every leaf."""
    return jax.tree.map(lambda box: box.names, _abstract(config), is_leaf=_is_box)


@functools.cache
def _abstract(config: T5Config) -> Params:
    """Cached: a start needs it a dozen times, and tracing unrolled layers takes seconds."""
    return jax.eval_shape(lambda: _init(config, jax.random.key(0)))


def _is_box(tree: Any) -> bool:
    return isinstance(tree, nn.LogicallyPartitioned)


def _init(config: T5Config, rng: jax.Array) -> Params:
    token = jnp.zeros((1, 1), jnp.int32)
    return dict(Transformer(config).init(rng, token, token, token, token)["params"])
