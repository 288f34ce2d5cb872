"""T5's building blocks: dense without bias, RMS norm, MLP, embedding, dropout."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jax.ad_checkpoint import checkpoint_name

from stepdistill_jax.model.config import T5Config

Initializer = Callable[..., Any]
Axes = tuple[str | None, ...]

ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}

# The residual stream names no embed axis: rows already use the mesh axis that splits "embed" of
# the parameters.
RESIDUAL_AXES = ("batch", "length", None)

truncated_normal_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def parameter(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], axes: tuple[str, ...]
) -> jax.Array:
    """A float32 parameter of `module` with its logical axes, which its gradient has too."""
    array: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return _constrained(array, None, axes)


# Without a constraint on a gradient, XLA sums the partial gradients of devices that share a batch
# whole on each device, and only then splits the sum. A plain constraint on the array would apply to
# its gradient too.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _constrained(array: jax.Array, axes: Axes | None, gradient_axes: Axes) -> jax.Array:
    """`array` sharded by logical `axes`, None = left to XLA; its gradient by `gradient_axes`."""
    return array if axes is None else with_logical_constraint(array, axes)


def _constrained_forward(
    array: jax.Array, axes: Axes | None, gradient_axes: Axes
) -> tuple[jax.Array, None]:
    return _constrained(array, axes, gradient_axes), None


def _constrained_backward(
    axes: Axes | None, gradient_axes: Axes, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    del axes
    return (with_logical_constraint(gradient, gradient_axes),)


_constrained.defvjp(_constrained_forward, _constrained_backward)


def dropout(config: T5Config, name: str | None = None) -> nn.Dropout:
    """T5's dropout: one draw for all positions of a row (for all queries, in attention)."""
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,), name=name)


# Name of every dense layer's output, for the remat policy that stores them.
DENSE_OUTPUT = "dense_output"


def _contract(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.einsum` in the operands' dtype.

    XLA for CPU has a fast bfloat16 product only with a float32 result. Elsewhere float32 sums would
    double what tensor parallelism sends between devices. With float32 operands both are the same.
    """
    if a.dtype == b.dtype == jnp.float32:
        return jnp.einsum(subscripts, a, b)

    def in_float32(a: jax.Array, b: jax.Array) -> jax.Array:
        product = jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
        return product.astype(a.dtype)

    return jax.lax.platform_dependent(
        a, b, cpu=in_float32, default=functools.partial(jnp.einsum, subscripts)
    )


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., in] times [in, out], with an explicit backward pass.

    By default, XLA for CPU fuses the elementwise gradient of an MLP's gate into a transposing copy
    for the kernel's gradient and computes it by columns, which takes an eighth of a train step.
    """
    return _contract("...i,io->...o", x, kernel)


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _product(x, kernel), (x, kernel)


def _product_backward(residuals: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # Materialised before the products: neither is fused with the code that computes it.
    gradient = jax.lax.optimization_barrier(gradient)
    return (
        _contract("...o,io->...i", gradient, kernel),
        _contract("...i,...o->io", x, gradient),
    )


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _float32_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., in] times [in, out], accumulated and returned in float32."""
    return jnp.einsum("...i,io->...o", x, kernel, preferred_element_type=jnp.float32)


def _float32_product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _float32_product(x, kernel), (x, kernel)


def _float32_product_backward(residuals: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """On TPUs, rounds the gradient to bfloat16 before the product, as the TPU does in any case.

    XLA then sums the kernel's gradient over devices into shards. With a conversion after the sum,
    it would sum it whole on each device.
    """
    x, kernel = residuals

    def rounded(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.einsum("...i,...o->io", x, gradient.astype(x.dtype))

    def unrounded(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.einsum("...i,...o->io", x, gradient).astype(x.dtype)

    return (
        jnp.einsum("...o,io->...i", gradient, kernel).astype(x.dtype),
        jax.lax.platform_dependent(x, gradient, tpu=rounded, default=unrounded),
    )


_float32_product.defvjp(_float32_product_forward, _float32_product_backward)


class Dense(nn.Module):
    """A product with a 2-D kernel, without bias.

    Attributes:
        features: width of the output.
        axes: logical axes of the kernel.
        dtype: of the product; the kernel is stored in float32.
        kernel_init: initialiser of the kernel.
        float32_output: the product is accumulated and returned in float32, not in `dtype`.
    """

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype
    kernel_init: Initializer = truncated_normal_init
    float32_output: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features]."""
        kernel = parameter(
            self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.axes
        )
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.float32_output:
            return _float32_product(x, kernel)
        return checkpoint_name(_product(x, kernel), DENSE_OUTPUT)


class RMSNorm(nn.Module):
    """Layer norm of T5: no mean, no bias, computed in float32."""

    dtype: jnp.dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis; the result is in `dtype`."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],), ("embed",))
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
        return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


@functools.partial(jax.checkpoint, static_argnums=1)
def _gate(factors: list[jax.Array], activations: tuple[str, ...]) -> jax.Array:
    """Product of the activated factors.

    The backward pass recomputes it, which is cheaper than to store and read the six intermediate
    arrays of gelu's formula.
    """
    activated = [ACTIVATION_FUNCTIONS[a](x) for a, x in zip(activations, factors, strict=True)]
    return functools.reduce(operator.mul, activated)


class Mlp(nn.Module):
    """``wo(dropout(act(wi x)))``, or gated: ``wo(dropout(act_0(wi_0 x) * act_1(wi_1 x)))``."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]."""
        config = self.config
        names = ("wi",) if len(config.mlp_activations) == 1 else ("wi_0", "wi_1")
        dense = functools.partial(Dense, dtype=config.activation_dtype)
        factors = [dense(config.mlp_dim, ("embed", "mlp"), name=name)(x) for name in names]
        hidden = _gate(factors, config.mlp_activations)
        hidden = dropout(config)(hidden, deterministic=deterministic)
        hidden = with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return dense(config.emb_dim, ("mlp", "embed"), name="wo")(hidden)


class Embed(nn.Module):
    """Token embedding, and the output matrix where it is tied (T5X: `token_embedder`)."""

    config: T5Config

    def setup(self) -> None:
        """Declares the parameter."""
        config = self.config
        self.embedding = parameter(
            self,
            "embedding",
            nn.initializers.normal(config.embedding_init_scale),
            (config.vocab_size, config.emb_dim),
            ("vocab", "embed"),
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32 [B, L] to [B, L, D] in the activations' dtype."""
        config = self.config
        dtype = config.activation_dtype
        if config.one_hot_embedding:
            one_hot = jax.nn.one_hot(tokens, config.vocab_size, dtype=dtype)
            x = jnp.einsum("blv,vd->bld", one_hot, self.embedding.astype(dtype))
        else:
            # Rows are cast after the gather, so only these rows are read and the gradient adds up
            # in float32. "clip" saves a pass over the result: ids are in range, as checked
            # against the vocabulary at the start. With split rows, each device would send its
            # tokens to all others.
            table = _constrained(self.embedding, ("vocab", None), ("vocab", "embed"))
            x = jnp.take(table, tokens, axis=0, mode="clip").astype(dtype)
        return with_logical_constraint(x, RESIDUAL_AXES)

    def attend(self, hidden: jax.Array) -> jax.Array:
        """Scores of every token: [..., D] to float32 [..., V]."""
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            self.embedding.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
