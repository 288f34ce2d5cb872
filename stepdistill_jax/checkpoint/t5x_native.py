"""Reads T5X checkpoints, in the native and the Orbax form, and writes the native form.

The native form is a msgpack index, ``checkpoint_N/checkpoint``, whose leaves are small arrays or
tensorstore specs of Zarr arrays beside it (T5X's `checkpoints.Checkpointer`, version 2 and 3). The
Orbax form keeps the same tree in ``checkpoint_N/state``. Both hold the parameters under ``target``;
only these are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
from etils import epath
from flax import serialization

from stepdistill_jax.checkpoint import zarr_arrays
from stepdistill_jax.checkpoint.names import Form, Shape
from stepdistill_jax.spec import InputError

INDEX = "checkpoint"
VERSION = 3
_STATE = "state"
_TARGET = "target"
_OPTIMIZER = "optimizer"
# Older Orbax indices are msgpack files with these instead of arrays.
_PLACEHOLDER = "PLACEHOLDER://"
_TENSORFLOW = b"model_checkpoint_path"
_STEP = re.compile(r"checkpoint_(\d+)")
# The scanned network (scalable_t5) has one axis for heads and one for kv: [embed, layers, heads,
# kv] and, for `out`, [heads, layers, kv, embed]. The minimal network joins the two.
_HEADS_LAST = re.compile(r".*attention/(query|key|value)/kernel")
_HEADS_FIRST = re.compile(r".*attention/out/kernel")


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether a local or ``gs://`` path holds the T5X checkpoint of one step or of several."""
    folder = epath.Path(path)
    return _index(folder) is not None or bool(_steps(folder))


def _steps(folder: epath.Path) -> dict[int, epath.Path]:
    """Step -> its folder ``checkpoint_STEP``, ascending; the number may have leading zeros."""
    if not folder.is_dir():
        return {}
    named = [(_STEP.fullmatch(child.name), child) for child in folder.iterdir()]
    return dict(sorted((int(m[1]), child) for m, child in named if m and _index(child) is not None))


def _index(path: epath.Path) -> epath.Path | None:
    """The index of one step's folder; `path` may also be a native index itself."""
    if path.name == INDEX and path.is_file():
        return path
    if (path / INDEX).is_file():
        return path / INDEX
    # Other programs write Orbax folders named ``state`` too, so the folder's name decides.
    candidates = (
        path / _STATE / zarr_arrays.ORBAX_INDEX,
        path / zarr_arrays.ORBAX_INDEX,
        path / _STATE / INDEX,
    )
    if _STEP.fullmatch(path.name):
        return next((index for index in candidates if index.is_file()), None)
    return None


def _only_index(path: epath.PathLike) -> epath.Path:
    """The index of the only step in `path`.

    Raises:
        InputError: there is none, or several.
    """
    folder = epath.Path(path)
    present = _steps(folder)
    if len(present) > 1:
        raise InputError(
            f"{folder}: several T5X checkpoints: steps {', '.join(map(str, present))}. Name "
            f"one, as {present[max(present)]}."
        )
    index = _index(next(iter(present.values()), folder))
    if index is None:
        raise InputError(
            f"{folder}: no T5X checkpoint: expected {INDEX} or "
            f"{_STATE}/{zarr_arrays.ORBAX_INDEX} in a folder checkpoint_STEP. Correct the path."
        )
    return index


class T5XCheckpoint:
    """A T5X checkpoint; a `fill.CheckpointReader`.

    Attributes:
        where: the folder of the step.
        form: ``t5x``, or ``t5x_scanned`` if layers are stacked.
        step: optimizer steps done; None = neither the index nor the folder's name has it.
        shapes: key below ``target`` -> shape of every parameter, heads joined.
    """

    def __init__(self, path: epath.PathLike) -> None:
        """Reads the index and the shapes, but no array.

        Args:
            path: local or ``gs://``: a ``checkpoint_N`` folder, or a folder that holds only one.

        Raises:
            InputError: there is no checkpoint or are several, or it is damaged or another
                program's.
        """
        index = _only_index(path)
        folder = index.parent.parent if index.parent.name == _STATE else index.parent
        self.where = str(folder)
        arrays: Mapping[str, Any]
        if index.name == zarr_arrays.ORBAX_INDEX:
            arrays, self.step = zarr_arrays.orbax_arrays(index, _TARGET), None
        else:
            arrays, self.step = _native(index)
        named = _STEP.fullmatch(folder.name)
        if self.step is None and named:
            self.step = int(named[1])
        scanned = any(key.startswith(("encoder/encoder/", "decoder/decoder/")) for key in arrays)
        self.form: Form = "t5x_scanned" if scanned else "t5x"
        self._arrays = zarr_arrays.open_all(arrays, self.where)
        self.shapes: Mapping[str, Shape] = {
            key: _joined(key, array.shape) for key, array in self._arrays.items()
        }
        self._layers: tuple[Any, np.ndarray] | None = None

    def read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        """See `fill.CheckpointReader`.

        Raises:
            InputError: a chunk is missing or damaged.
        """
        if self.form == "t5x_scanned" and len(index) > 1 and isinstance(index[1], int):
            # A chunk spans several layers, so all layers of a slice are read at once.
            all_layers = (index[0], slice(None), *index[2:])
            name = (key, str(all_layers))
            if self._layers is None or self._layers[0] != name:
                self._layers = None  # frees the last array before reading the next
                self._layers = (name, self._read(key, all_layers))
            return self._layers[1][:, index[1]]
        return self._read(key, index)

    def _read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        array = self._arrays[key]
        if len(array.shape) != 4:
            return zarr_arrays.read(array, index, key, self.where)
        first, layers, last = index
        if _HEADS_LAST.fullmatch(key):
            heads, rest = _cover(last, *array.shape[2:])
            part = zarr_arrays.read(array, (first, layers, heads), key, self.where)
            return part.reshape(*part.shape[:2], math.prod(part.shape[2:]))[..., rest]
        heads, rest = _cover(first, array.shape[0], array.shape[2])
        part = zarr_arrays.read(array, (heads, layers, slice(None), last), key, self.where)
        part = np.moveaxis(part, 1, 2)
        return part.reshape(math.prod(part.shape[:2]), *part.shape[2:])[rest]


def _joined(key: str, shape: Shape) -> Shape:
    """A stored shape with heads and kv as one axis."""
    if len(shape) == 4 and _HEADS_LAST.fullmatch(key):
        return (*shape[:2], shape[2] * shape[3])
    if len(shape) == 4 and _HEADS_FIRST.fullmatch(key):
        return (shape[0] * shape[2], shape[1], shape[3])
    return tuple(shape)


def _cover(joined: slice, heads: int, kv: int) -> tuple[slice, slice]:
    """The heads that a slice of the joined axis overlaps, and the slice within these heads."""
    start, stop, _ = joined.indices(heads * kv)
    first = start // kv
    return slice(first, -(-stop // kv)), slice(start - first * kv, stop - first * kv)


def _native(index: epath.Path) -> tuple[dict[str, Any], int | None]:
    """Parameters by key, and the step, of a msgpack index.

    Raises:
        InputError: the index is damaged, or another program's.
    """
    data = index.read_bytes()
    if data.startswith(_TENSORFLOW):
        raise InputError(
            f"{index}: a TensorFlow checkpoint. Use the T5X form, for public models in "
            "gs://t5-data/pretrained_models/t5x, or convert it with t5x's "
            "scripts/convert_tf_checkpoint.py."
        )
    try:
        tree = serialization.msgpack_restore(data)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise InputError(
            f"{index}: truncated or damaged index of a T5X checkpoint ({len(data):,} bytes): "
            f"{type(error).__name__}. {zarr_arrays.COPY_AGAIN}"
        ) from error
    root = tree.get(_OPTIMIZER, tree) if isinstance(tree, dict) else {}
    if not isinstance(root, dict) or not isinstance(root.get(_TARGET), dict):
        raise InputError(
            f"{index}: no {_TARGET!r}, where T5X keeps the parameters. Name a T5X checkpoint."
        )
    state = root.get(_STATE)
    step = state.get("step") if isinstance(state, dict) else None
    arrays = dict(_leaves(root[_TARGET], (), index))
    return arrays, int(step) if isinstance(step, np.ndarray | np.generic | int) else None


def _leaves(
    tree: Mapping[str, Any], path: tuple[str, ...], index: epath.Path
) -> Iterator[tuple[str, Any]]:
    """Every array by its key, in memory or as `zarr_arrays.Stored`."""
    folder = index.parent
    for name, value in tree.items():
        key = "/".join((*path, name))
        if isinstance(value, dict) and {"driver", "kvstore"} <= value.keys():
            yield key, _from_spec(value, key, index)
        elif isinstance(value, dict):
            yield from _leaves(value, (*path, name), index)
        elif isinstance(value, str) and value.startswith(_PLACEHOLDER):
            inside = value.removeprefix(_PLACEHOLDER)
            yield key, zarr_arrays.stored(folder, inside, ocdbt=zarr_arrays.has_ocdbt(folder))
        elif isinstance(value, np.ndarray | np.generic):
            yield key, np.asarray(value)
        else:
            raise InputError(
                f"{index}: bad value of {key}: got {type(value).__name__}, expected an array or a "
                f"tensorstore spec. {zarr_arrays.COPY_AGAIN}"
            )


def _from_spec(spec: Mapping[str, Any], key: str, index: epath.Path) -> zarr_arrays.Stored:
    """The array of a spec, relative to the folder where the checkpoint is now."""
    # tensorstore before 0.1.14 kept the path outside the kvstore.
    name = spec["kvstore"].get("path", spec.get("path"))
    if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
        raise InputError(
            f"{index}: bad path of {key}: got {name!r}, expected a path inside the folder. "
            f"{zarr_arrays.COPY_AGAIN}"
        )
    if spec["driver"] not in ("zarr", "zarr3"):
        raise InputError(
            f"{index}: unsupported driver of {key}: got {spec['driver']!r}, expected 'zarr'. "
            "Convert the checkpoint with T5X."
        )
    shape = spec.get("metadata", {}).get("shape")
    shape = None if shape is None else tuple(shape)
    return zarr_arrays.stored(index.parent, name.rstrip("/"), spec["driver"], shape=shape)


def write(
    folder: epath.PathLike, step: int, arrays: Iterable[tuple[str, np.ndarray]], num_heads: int
) -> None:
    """Writes the native form without optimizer state, one array at a time, the index last.

    T5X's `eval.py` and `infer.py` restore it as it is; `train.py` if `RestoreCheckpointConfig` has
    ``fallback_to_scratch = True`` and ``assignment_map = (('state.*', None),)``.

    Args:
        folder: the new ``checkpoint_N``, local or ``gs://``.
        step: optimizer steps done.
        arrays: key below ``target`` and array, of `fill.arrays`.
        num_heads: attention heads, for the scanned form.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    folder = epath.Path(folder)
    target: dict[str, Any] = {}
    for key, joined in arrays:
        *parents, leaf = key.split("/")
        node = target
        for parent in parents:
            node = node.setdefault(parent, {})
        array = _split_heads(key, joined, num_heads)
        node[leaf] = zarr_arrays.write(folder, f"{_TARGET}.{key.replace('/', '.')}", array)
    optimizer = {_TARGET: target, _STATE: {"step": np.asarray(step, np.int32), "param_states": {}}}
    index = {"version": VERSION, _OPTIMIZER: optimizer}
    (folder / INDEX).write_bytes(serialization.msgpack_serialize(index))


def _split_heads(key: str, array: np.ndarray, num_heads: int) -> np.ndarray:
    """The inverse of what `T5XCheckpoint.read` does to scanned attention kernels."""
    if array.ndim == 3 and _HEADS_LAST.fullmatch(key):
        return array.reshape(*array.shape[:2], num_heads, -1)
    if array.ndim == 3 and _HEADS_FIRST.fullmatch(key):
        split = array.reshape(num_heads, -1, *array.shape[1:])
        return np.ascontiguousarray(np.moveaxis(split, 1, 2))
    return array
