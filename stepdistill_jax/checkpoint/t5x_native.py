"""T5X checkpoints, in and out: the native form, and the Orbax form that today's T5X writes.

The native form is a msgpack index, ``checkpoint_N/checkpoint``, whose leaves are small arrays or
tensorstore specs of Zarr arrays beside it (T5X's `checkpoints.Checkpointer`, version 2 and 3). The
Orbax form keeps the same tree in ``checkpoint_N/state``. Both hold parameters under ``target``;
nothing else of them is read.
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
# Orbax's older indices are msgpack files too, with these in the place of arrays.
_PLACEHOLDER = "PLACEHOLDER://"
_TENSORFLOW = b"model_checkpoint_path"
_STEP = re.compile(r"checkpoint_(\d+)")
# The scanned network (scalable_t5) keeps heads apart: [embed, layers, heads, kv] and, of `out`,
# [heads, layers, kv, embed]; the minimal one joins them.
_HEADS_LAST = re.compile(r".*attention/(query|key|value)/kernel")
_HEADS_FIRST = re.compile(r".*attention/out/kernel")


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether a local or ``gs://`` path holds a T5X checkpoint: one step's folder or several."""
    folder = epath.Path(path)
    return _index(folder) is not None or bool(_steps(folder))


def _steps(folder: epath.Path) -> dict[int, epath.Path]:
    """Step -> its folder ``checkpoint_STEP``, ascending; some pad the number with zeros."""
    if not folder.is_dir():
        return {}
    named = [(_STEP.fullmatch(child.name), child) for child in folder.iterdir()]
    return dict(sorted((int(m[1]), child) for m, child in named if m and _index(child) is not None))


def _index(path: epath.Path) -> epath.Path | None:
    """The index of one step's folder, or of a native index named itself."""
    if path.name == INDEX and path.is_file():
        return path
    if (path / INDEX).is_file():
        return path / INDEX
    # Only here does the folder's name tell: other programs too keep a ``state`` of Orbax.
    candidates = (
        path / _STATE / zarr_arrays.ORBAX_INDEX,
        path / zarr_arrays.ORBAX_INDEX,
        path / _STATE / INDEX,
    )
    if _STEP.fullmatch(path.name):
        return next((index for index in candidates if index.is_file()), None)
    return None


def _find(path: epath.PathLike) -> epath.Path:
    """The index of the one step that `path` names.

    Raises:
        InputError: none, or several.
    """
    folder = epath.Path(path)
    present = _steps(folder)
    if len(present) > 1:
        raise InputError(
            f"{folder} holds the T5X checkpoints of steps {', '.join(map(str, present))}; name "
            f"one, such as {present[max(present)]}"
        )
    found = _index(next(iter(present.values()), folder))
    if found is None:
        raise InputError(
            f"{folder}: no T5X checkpoint lies here; expected {INDEX} or "
            f"{_STATE}/{zarr_arrays.ORBAX_INDEX} in a folder checkpoint_STEP"
        )
    return found


class Checkpoint:
    """A T5X checkpoint whose arrays are read slice by slice; a `fill.Reader`.

    Attributes:
        where: the folder of the step.
        form: ``t5x``, or ``t5x_scanned`` where layers are stacked.
        step: optimizer steps done; None where neither the index nor the folder's name says.
        shapes: key below ``target`` -> shape of every parameter, heads joined.
    """

    def __init__(self, path: epath.PathLike) -> None:
        """Reads the index and the shapes, and no array.

        Raises:
            InputError: no such checkpoint, several, one of another program, or a damaged one.
        """
        index = _find(path)
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
        """See `fill.Reader`.

        Raises:
            InputError: a chunk is missing or damaged.
        """
        if self.form == "t5x_scanned" and len(index) > 1 and isinstance(index[1], int):
            # Chunks span layers: all layers of a slice are read at once, not once for each.
            wanted = (index[0], slice(None), *index[2:])
            name = (key, str(wanted))
            if self._layers is None or self._layers[0] != name:
                self._layers = None  # let go of the last before reading the next
                self._layers = (name, self._read(key, wanted))
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


def open_checkpoint(path: epath.PathLike) -> Checkpoint:
    """Opens the checkpoint of one step for `fill.fill`.

    Args:
        path: local or ``gs://``: a ``checkpoint_N`` folder, or the folder that holds a single one.
            Where it holds several, the step must be named, as in T5X's own ``finetune.gin``
            (mode ``specific``).

    Raises:
        InputError: see `Checkpoint`.
    """
    return Checkpoint(path)


def _joined(key: str, shape: Shape) -> Shape:
    """A stored shape with heads and kv as one axis."""
    if len(shape) == 4 and _HEADS_LAST.fullmatch(key):
        return (*shape[:2], shape[2] * shape[3])
    if len(shape) == 4 and _HEADS_FIRST.fullmatch(key):
        return (shape[0] * shape[2], shape[1], shape[3])
    return tuple(shape)


def _cover(joined: slice, heads: int, kv: int) -> tuple[slice, slice]:
    """The heads that a slice of the joined axis touches, and the slice inside these."""
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
            f"{index}: a TensorFlow checkpoint; read its T5X form, which the public models have "
            "under gs://t5-data/pretrained_models/t5x, or convert it with t5x's "
            "scripts/convert_tf_checkpoint.py"
        )
    try:
        tree = serialization.msgpack_restore(data)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise InputError(
            f"{index}: expected the index of a T5X checkpoint; these {len(data):,} bytes end early "
            f"or are damaged ({type(error).__name__}); copy the checkpoint anew"
        ) from error
    root = tree.get(_OPTIMIZER, tree) if isinstance(tree, dict) else {}
    if not isinstance(root, dict) or not isinstance(root.get(_TARGET), dict):
        raise InputError(f"{index}: no {_TARGET!r} in it, where T5X keeps the parameters")
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
                f"{index}: {key} is {type(value).__name__}, expected an array or a tensorstore spec"
            )


def _from_spec(spec: Mapping[str, Any], key: str, index: epath.Path) -> zarr_arrays.Stored:
    """The array of a spec of the index, wherever the checkpoint was written and lies now."""
    # tensorstore before 0.1.14 kept the path outside the kvstore.
    name = spec["kvstore"].get("path", spec.get("path"))
    if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{index}: {key} lies at {name!r}, expected a path inside the folder")
    if spec["driver"] not in ("zarr", "zarr3"):
        raise InputError(f"{index}: {key} is stored as {spec['driver']!r}, expected 'zarr'")
    shape = spec.get("metadata", {}).get("shape")
    shape = None if shape is None else tuple(shape)
    return zarr_arrays.stored(index.parent, name.rstrip("/"), spec["driver"], shape=shape)


def write(
    folder: epath.PathLike, step: int, arrays: Iterable[tuple[str, np.ndarray]], num_heads: int
) -> None:
    """Writes the native form, one array at a time, the index last.

    There is no optimizer state in it: T5X's `eval.py` and `infer.py` restore it as it is,
    `train.py` where `RestoreCheckpointConfig` has ``fallback_to_scratch = True`` and
    ``assignment_map = (('state.*', None),)``.

    Args:
        folder: ``checkpoint_N`` to be made, local or ``gs://``.
        step: optimizer steps done.
        arrays: key below ``target`` -> array, of `fill.arrays`.
        num_heads: attention heads, which the scanned form keeps apart.

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
        array = _heads_apart(key, joined, num_heads)
        node[leaf] = zarr_arrays.write(folder, f"{_TARGET}.{key.replace('/', '.')}", array)
    optimizer = {_TARGET: target, _STATE: {"step": np.asarray(step, np.int32), "param_states": {}}}
    index = {"version": VERSION, _OPTIMIZER: optimizer}
    (folder / INDEX).write_bytes(serialization.msgpack_serialize(index))


def _heads_apart(key: str, array: np.ndarray, num_heads: int) -> np.ndarray:
    """The inverse of what `Checkpoint.read` does to scanned attention kernels."""
    if array.ndim == 3 and _HEADS_LAST.fullmatch(key):
        return array.reshape(*array.shape[:2], num_heads, -1)
    if array.ndim == 3 and _HEADS_FIRST.fullmatch(key):
        split = array.reshape(num_heads, -1, *array.shape[1:])
        return np.ascontiguousarray(np.moveaxis(split, 1, 2))
    return array
