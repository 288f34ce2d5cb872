"""The mesh axis of each logical axis: one table for parameters and activations."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from flax.core.spmd import logical_axis_rules
from flax.linen import spmd
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepdistill_jax.spec import BATCH_AXES

Rules = tuple[tuple[str, tuple[str, ...] | None], ...]

# Order is precedence, since an array uses a mesh axis once: activations [batch, length, embed] use
# fsdp for their rows; parameters [embed, mlp] have no rows and use it for embed.
RULES: Rules = (
    ("batch", BATCH_AXES),
    ("embed", ("fsdp",)),
    ("joined_kv", ("tensor",)),
    ("heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
    ("relpos_buckets", ("fsdp",)),
    ("length", None),
    ("kv", None),
    ("layers", None),
)


def fitting_rules(logical_axes: Any, shapes: Any, mesh: Mesh) -> Rules:
    """`RULES` without the entries that would split a dimension of this model unequally.

    Such an axis is not split, in parameters or activations; a warning names it once.

    Args:
        logical_axes: tree of tuples of logical axis names, one name a dimension.
        shapes: the same tree of arrays or shape structs.
    """
    sizes = _axis_sizes(logical_axes, shapes)
    rules = []
    for name, mesh_axes in RULES:
        parts = math.prod(mesh.shape[axis] for axis in mesh_axes or ())
        uneven = sorted(size for size in sizes.get(name, ()) if size % parts)
        if uneven:
            _warn_once(
                f"Axis {name} of size {', '.join(map(str, uneven))} does not divide into the "
                f"{parts} parts of mesh axis {'+'.join(mesh_axes or ())}: not split."
            )
        rules.append((name, None if uneven else mesh_axes))
    return tuple(rules)


def param_shardings(logical_axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """Sharding of every parameter under `fitting_rules`; same arguments, same tree."""
    rules = fitting_rules(logical_axes, shapes, mesh)

    def sharding(axes: tuple[str, ...]) -> NamedSharding:
        return NamedSharding(mesh, spmd.logical_to_mesh_axes(axes, rules) or PartitionSpec())

    return jax.tree.map(sharding, logical_axes, is_leaf=_is_axes)


@contextlib.contextmanager
def activation_rules(rules: Rules, mesh: Mesh) -> Iterator[None]:
    """While tracing, applies the model's logical constraints on activations to this mesh."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), logical_axis_rules(rules):
        yield


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning(message)


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple)


def _axis_sizes(logical_axes: Any, shapes: Any) -> Mapping[str, set[int]]:
    """Logical axis -> its sizes in the tree."""
    sizes: dict[str, set[int]] = {}

    def collect(axes: tuple[str, ...], shape: Any) -> None:
        for name, size in zip(axes, shape.shape, strict=True):
            sizes.setdefault(name, set()).add(size)

    jax.tree.map(collect, logical_axes, shapes, is_leaf=_is_axes)
    return sizes
