"""What a T5 is made of: sizes, variant, precision and how its layers are compiled."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import InputError

# Of an array, which XLA indexes by 32 bits.
MAX_SIZE = 2**31 - 1
REMAT_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes, variant, precision and compilation of a T5. The default is T5 1.1 Base."""

    HEADING = "Model"

    vocab_size: int = setting(
        32128,
        "Rows of the embedding table, at least the vocabulary's size.",
        at_least=1,
        at_most=MAX_SIZE,
    )
    emb_dim: int = setting(768, "Width of the residual stream.", at_least=1, at_most=MAX_SIZE)
    num_heads: int = setting(12, "Attention heads.", at_least=1, at_most=MAX_SIZE)
    head_dim: int = setting(64, "Width of one attention head.", at_least=1, at_most=MAX_SIZE)
    mlp_dim: int = setting(2048, "Width of the MLP.", at_least=1, at_most=MAX_SIZE)
    num_encoder_layers: int = setting(12, "Encoder layers.", at_least=1, at_most=MAX_SIZE)
    num_decoder_layers: int = setting(12, "Decoder layers.", at_least=1, at_most=MAX_SIZE)
    # "gelu" is the tanh approximation ("gelu_new" elsewhere), as in T5 1.1.
    mlp_activations: tuple[str, ...] = setting(
        ("gelu", "linear"),
        "('relu',) for T5 1.0, ('gelu', 'linear') for T5 1.1 and FLAN-T5. Two make a gated MLP.",
        choices=("relu", "gelu", "silu", "linear"),
    )
    logits_via_embedding: bool = setting(
        False,
        "Logits from the embedding table (T5 1.0) instead of a separate matrix (T5 1.1).",
        macro="TIED_EMBEDDINGS",
    )
    dropout_rate: float = setting(
        0.1, "Share of activations dropped in training.", at_least=0, below=1
    )
    dtype: str = setting(
        "float32",
        "Type of activations. Parameters, softmax and logits are always float32.",
        choices=("float32", "bfloat16"),
    )
    scan_layers: bool = setting(
        True,
        "Compile one layer and scan over it; False unrolls the layers. Results agree, except that "
        "adafactor clips by array.",
    )
    remat: str = setting(
        "dots",
        "What the forward pass of a layer stores for the backward pass.",
        choices={
            "none": "everything.",
            "dots": "products with parameters; less memory, and faster on a CPU.",
            "full": "the layer's input only; least memory, most recomputation.",
        },
    )
    one_hot_embedding: bool = setting(
        False, "Look up embeddings by a one-hot product instead of a gather."
    )
    relpos_buckets: int = setting(32, "Buckets of the relative-position bias, a multiple of 4.")
    relpos_max_distance: int = setting(
        128, "Distance in tokens from which all positions share the last bucket."
    )
    embedding_init_scale: float = setting(
        1.0, "Standard deviation of the initial embedding.", above=0
    )

    def __post_init__(self) -> None:
        # A list would not be hashable, as a static argument of jit has to be.
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        check(self)
        if len(self.mlp_activations) not in (1, 2):
            raise InputError(
                f"MLP_ACTIVATIONS: got {self.mlp_activations}, expected one or two activations, "
                "as in ('gelu', 'linear')."
            )
        if self.relpos_buckets < 4 or self.relpos_buckets % 4:
            raise InputError(
                f"RELPOS_BUCKETS: got {self.relpos_buckets}, expected a positive multiple of 4."
            )
        if self.relpos_max_distance <= self.relpos_buckets // 2:
            raise InputError(
                f"RELPOS_MAX_DISTANCE: got {self.relpos_max_distance}, expected more than half of "
                f"RELPOS_BUCKETS={self.relpos_buckets}."
            )

    @property
    def activation_dtype(self) -> jnp.dtype:
        """`dtype` as JAX knows it."""
        return jnp.dtype(self.dtype)
