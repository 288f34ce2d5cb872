"""The train state, its shardings, and its creation on the mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params, init_params, logical_axes
from stepdistill_jax.parallel.rules import param_shardings


class TrainState(struct.PyTreeNode):
    """Everything that an update changes.

    Attributes:
        step: int32 scalar, updates made.
        params: float32 parameters.
        opt_state: state of the optimizer.
    """

    step: Any
    params: Any
    opt_state: Any


def state_shardings(
    model: T5Config, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A `TrainState` of `NamedSharding`: moments are sharded as their parameters.

    Optimizer leaves of another shape than their parameter (Adafactor's factored vectors, counts)
    are small and whole on every device.
    """
    shapes = abstract_params(model)
    shardings = param_shardings(logical_axes(model), shapes, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    structure: Any = jax.tree.structure(shapes)

    def is_like_params(tree: Any) -> bool:
        return bool(structure == jax.tree.structure(tree))

    def place(tree: Any) -> Any:
        if not is_like_params(tree):
            return whole
        return jax.tree.map(
            lambda leaf, param, sharding: sharding if leaf.shape == param.shape else whole,
            tree,
            shapes,
            shardings,
        )

    opt_state = jax.eval_shape(optimizer.init, shapes)
    return TrainState(
        step=whole,
        params=shardings,
        opt_state=jax.tree.map(place, opt_state, is_leaf=is_like_params),
    )


def abstract_state(
    model: T5Config, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of a state, as a restore needs them; computes nothing."""
    params = abstract_params(model)
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        opt_state=jax.eval_shape(optimizer.init, params),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(model, optimizer, mesh),
    )


def create_state(
    model: T5Config,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    params: Any = None,
) -> TrainState:
    """The state before the first update; each device computes its own part.

    Args:
        seed: of fresh parameters, which do not depend on the mesh.
        params: parameters to start from, sharded as in `state_shardings`; None makes fresh ones.
    """
    shardings = state_shardings(model, optimizer, mesh)
    if params is None:
        # Threefry, whatever PRNG_IMPL is: its numbers do not depend on the sharding.
        init = jax.jit(
            lambda: init_params(model, jax.random.key(seed, impl="threefry2x32")),
            out_shardings=shardings.params,
        )
        params = init()
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)()
    return TrainState(step=step, params=params, opt_state=opt_state)
