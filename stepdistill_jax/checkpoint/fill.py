"""Copies parameters from and to Hugging Face and T5X checkpoints, one shard or array at a time."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from stepdistill_jax import hub
from stepdistill_jax.checkpoint import hf, t5x_native
from stepdistill_jax.checkpoint.names import (
    Binding,
    Form,
    Shape,
    bindings,
    check_shapes,
    flat,
    stored_shapes,
)
from stepdistill_jax.spec import InputError

PyTree = Any
Index = tuple[slice, ...]


class CheckpointReader(Protocol):
    """A Hugging Face or T5X checkpoint whose arrays are read slice by slice."""

    @property
    def form(self) -> Form:
        """Names and layout of its arrays."""

    @property
    def where(self) -> str:
        """Its folder or file, for messages."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Key -> shape of every array that a T5 has."""

    def read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        """The elements of one array at `index` (slices, and an integer for a layer)."""


def open_reader(name: str) -> hf.HFCheckpoint | t5x_native.T5XCheckpoint | None:
    """The Hugging Face or T5X checkpoint in a folder or at ``hf:OWNER/NAME``; None = neither.

    Raises:
        InputError: the checkpoint is damaged, or is not a T5.
    """
    folder = epath.Path(name)
    if name.startswith(hub.PREFIX) or hf.is_checkpoint(folder):
        return hf.HFCheckpoint(name)
    return t5x_native.T5XCheckpoint(folder) if t5x_native.is_checkpoint(folder) else None


def check(reader: CheckpointReader, abstract_params: PyTree) -> None:
    """Compares the names and shapes of a checkpoint's arrays with a model's; reads no array.

    Raises:
        InputError: arrays are unknown to the model, missing, or of another shape.
    """
    check_shapes(stored_shapes(bindings(abstract_params, reader.form)), reader.shapes, reader.where)


def fill(reader: CheckpointReader, abstract_params: PyTree) -> PyTree:
    """Reads a model's parameters, each device's shards directly from the files.

    The host holds one shard at a time, so the model may be larger than the host's memory.

    Args:
        reader: the checkpoint.
        abstract_params: tree of `jax.ShapeDtypeStruct`, stacked or unrolled. A leaf with a sharding
            becomes a `jax.Array`, a leaf without one a numpy array.

    Raises:
        InputError: see `check`; or an array holds NaN or infinite values.
    """
    check(reader, abstract_params)
    by_path = collections.defaultdict(list)
    for part in bindings(abstract_params, reader.form):
        by_path[part.path].append(part)

    def load(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        parts = by_path[jax.tree_util.keystr(path, simple=True, separator="/")]

        def shard(index: Index | None) -> np.ndarray:
            return _read(reader, parts, leaf, index or tuple(slice(None) for _ in leaf.shape))

        if leaf.sharding is None:
            return shard(None)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)

    return jax.tree_util.tree_map_with_path(load, abstract_params)


def _read(
    reader: CheckpointReader, parts: list[Binding], leaf: jax.ShapeDtypeStruct, index: Index
) -> np.ndarray:
    """One shard of one parameter."""
    shape = [len(range(*part.indices(size))) for part, size in zip(index, leaf.shape, strict=True)]
    out = np.empty(shape, leaf.dtype)
    if parts[0].layer is None:
        out[...] = _part(reader, parts[0], index)
        for part in parts[1:]:
            if not np.array_equal(out, _part(reader, part, index)):
                raise InputError(
                    f"{reader.where}: {part.key} differs between layers 0 and {part.key_layer}, "
                    f"but T5 shares {part.path} over all layers. Use a T5 checkpoint."
                )
    else:
        for row, part in zip(out, parts[index[0]], strict=True):
            row[...] = _part(reader, part, index[1:])
    return out


def _part(reader: CheckpointReader, part: Binding, index: Index) -> np.ndarray:
    stored = reader.read(part.key, part.stored_index(index))
    if not np.isfinite(stored).all():
        raise InputError(
            f"{reader.where}: {part.key} holds NaN or infinite values. Use another checkpoint."
        )
    return stored.T if part.transposed else stored


def arrays(params: PyTree, form: Form) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the key and value of every array of a checkpoint of `form`.

    Args:
        params: tree of arrays, stacked or unrolled, all addressable by this process.
        form: of the checkpoint.
    """
    by_key = collections.defaultdict(list)
    for part in bindings(params, form):
        by_key[part.key].append(part)
    leaves = flat(params)
    for key, parts in by_key.items():
        values = [_stored(leaves[part.path], part) for part in parts]
        yield key, values[0] if parts[0].key_layer is None else np.stack(values, axis=1)


def _stored(leaf: Any, part: Binding) -> np.ndarray:
    value = np.asarray(leaf if part.layer is None else leaf[part.layer])
    return np.ascontiguousarray(value.T if part.transposed else value)
