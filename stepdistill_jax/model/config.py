"""What a T5 is made of: sizes, variant, precision and how its layers are compiled."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from stepdistill_jax.spec import InputError

# `gelu` is the tanh approximation, as in T5 1.1 (`gelu_new` elsewhere).
ACTIVATIONS = ("relu", "gelu", "silu", "linear")
DTYPES = ("float32", "bfloat16")
# What the backward pass finds stored of each layer: everything; the products with parameters;
# the layer's input alone.
REMAT_POLICIES = ("none", "dots", "full")

_SIZES = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5 model. Each field is set by the gin macro of its name unless one is given.

    Attributes:
        vocab_size: rows of the embedding, at least the vocabulary's ids (T5 pads to 32128).
        emb_dim: width of the residual stream.
        num_heads: attention heads; `num_heads * head_dim` need not equal `emb_dim`.
        head_dim: width of one head.
        mlp_dim: width between the MLP's two products.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        mlp_activations: one name for a plain MLP, ``("relu",)`` in T5 1.0; two for a gated one,
            ``("gelu", "linear")`` in T5 1.1 and FLAN-T5.
        logits_via_embedding: macro TIED_EMBEDDINGS. The embedding is also the output matrix, with
            hidden states scaled by 1/sqrt(emb_dim): T5 1.0. Else a matrix of its own: T5 1.1.
        dropout_rate: in [0, 1).
        dtype: of activations; parameters, softmax and logits are float32 always.
        scan_layers: one compiled layer over stacked parameters, else one per layer.
        remat: what the backward pass recomputes, one of `REMAT_POLICIES`.
        one_hot_embedding: embed by a one-hot product instead of a gather.
        relpos_buckets: buckets of the relative-position bias, a multiple of 4.
        relpos_max_distance: distance from which all positions share the last bucket.
        embedding_init_scale: standard deviation of the initial embedding.

    Raises:
        InputError: a value that no T5 can have, naming the macro.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    dropout_rate: float = 0.1
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "dots"
    one_hot_embedding: bool = False
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    embedding_init_scale: float = 1.0

    def __post_init__(self) -> None:
        _require(
            isinstance(self.mlp_activations, (tuple, list))
            and len(self.mlp_activations) in (1, 2)
            and set(self.mlp_activations) <= set(ACTIVATIONS),
            "MLP_ACTIVATIONS",
            self.mlp_activations,
            f"one or two of {', '.join(ACTIVATIONS)}, such as ('relu',) or ('gelu', 'linear')",
        )
        # Gin writes a sequence as a list too; the configuration must stay hashable for jit.
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for name in _SIZES:
            _require(getattr(self, name) >= 1, name.upper(), getattr(self, name), "at least 1")
        _require(0 <= self.dropout_rate < 1, "DROPOUT_RATE", self.dropout_rate, "in [0, 1)")
        _require(self.dtype in DTYPES, "DTYPE", self.dtype, f"one of {', '.join(DTYPES)}")
        _require(
            self.remat in REMAT_POLICIES,
            "REMAT",
            self.remat,
            f"one of {', '.join(REMAT_POLICIES)}",
        )
        _require(
            self.relpos_buckets >= 4 and self.relpos_buckets % 4 == 0,
            "RELPOS_BUCKETS",
            self.relpos_buckets,
            "a positive multiple of 4",
        )
        _require(
            self.relpos_max_distance > self.relpos_buckets // 2,
            "RELPOS_MAX_DISTANCE",
            self.relpos_max_distance,
            f"more than half of RELPOS_BUCKETS = {self.relpos_buckets}",
        )
        _require(
            self.embedding_init_scale > 0,
            "EMBEDDING_INIT_SCALE",
            self.embedding_init_scale,
            "greater than 0",
        )

    @property
    def activation_dtype(self) -> jnp.dtype:
        """`dtype` as JAX knows it."""
        return jnp.dtype(self.dtype)


def _require(condition: bool, macro: str, value: object, wanted: str) -> None:
    if not condition:
        raise InputError(f"{macro} = {value!r}: must be {wanted}")
