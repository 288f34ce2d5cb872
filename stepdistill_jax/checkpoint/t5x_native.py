"""T5X checkpoints, in and out: the native form, and the Orbax form that today's T5X writes.

The native form is a msgpack index, ``checkpoint_N/checkpoint``, whose leaves are small arrays or
tensorstore specs of Zarr arrays beside it (T5X's `checkpoints.Checkpointer`, version 2 and 3). The
Orbax form keeps the same tree in ``checkpoint_N/state``. Both hold parameters under ``target``;
nothing else of them is read.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization

from stepdistill_jax.checkpoint.names import Form, Shape
from stepdistill_jax.spec import InputError

INDEX = "checkpoint"
ORBAX_INDEX = "_METADATA"
VERSION = 3
_STATE = "state"
_TARGET = "target"
_OPTIMIZER = "optimizer"
# Orbax's older indices are msgpack files too, with these in the place of arrays.
_PLACEHOLDER = "PLACEHOLDER://"
_TENSORFLOW = b"model_checkpoint_path"
_STEP = re.compile(r"checkpoint_(\d+)")
_CHUNK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A Zarr array beside the index.

    Attributes:
        spec: of tensorstore, to open it with.
        shape: what the index says; None where it does not.
    """

    spec: dict[str, Any]
    shape: Shape | None = None


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether a local or ``gs://`` path holds a T5X checkpoint: one step's folder or several."""
    folder = epath.Path(path)
    return (
        folder.name == INDEX
        and folder.is_file()
        or _index(folder) is not None
        or bool(steps(folder))
    )


def steps(folder: epath.PathLike) -> list[int]:
    """The steps whose ``checkpoint_N`` lie in a folder, ascending."""
    folder = epath.Path(folder)
    if not folder.is_dir():
        return []
    found = [(_STEP.fullmatch(child.name), child) for child in folder.iterdir()]
    return sorted(int(name[1]) for name, child in found if name and _index(child) is not None)


def _index(folder: epath.Path) -> epath.Path | None:
    """The index of one step's folder."""
    if (folder / INDEX).is_file():
        return folder / INDEX
    # Only here does the name tell: other programs too keep a ``state`` of Orbax.
    if _STEP.fullmatch(folder.name):
        for index in (
            folder / _STATE / ORBAX_INDEX,
            folder / ORBAX_INDEX,
            folder / _STATE / INDEX,
        ):
            if index.is_file():
                return index
    return None


def _find(path: epath.PathLike) -> epath.Path:
    """The index of the one step that `path` names.

    Raises:
        InputError: none, or several.
    """
    folder = epath.Path(path)
    if folder.name == INDEX and folder.is_file():
        return folder
    index = _index(folder)
    if index is not None:
        return index
    present = steps(folder)
    if len(present) > 1:
        raise InputError(
            f"{folder} holds the T5X checkpoints of steps {', '.join(map(str, present))}; name "
            f"one, such as {folder / f'checkpoint_{present[-1]}'}"
        )
    only = _index(folder / f"checkpoint_{present[0]}") if present else None
    if only is None:
        raise InputError(
            f"{folder}: no T5X checkpoint lies here; expected {INDEX} or {_STATE}/{ORBAX_INDEX} "
            "in a folder checkpoint_N"
        )
    return only


class Checkpoint:
    """A T5X checkpoint whose arrays are read slice by slice; a `fill.Reader`.

    Attributes:
        where: the folder of the step.
        form: ``t5x``, or ``t5x_scanned`` where layers are stacked.
        step: optimizer steps done; None where neither the index nor the folder's name says.
        shapes: key below ``target`` -> shape of every parameter.
        dtypes: likewise.
    """

    def __init__(self, path: epath.PathLike) -> None:
        """Reads the index and the shapes, and no array.

        Raises:
            InputError: no such checkpoint, several, one of another program, or a damaged one.
        """
        index = _find(path)
        self._folder = index.parent
        step_folder = index.parent.parent if index.parent.name == _STATE else index.parent
        self.where = str(step_folder)
        entries, self.step = _orbax(index) if index.name == ORBAX_INDEX else _native(index)
        named = _STEP.fullmatch(step_folder.name)
        if self.step is None and named:
            self.step = int(named[1])
        self._arrays = _open(entries, self.where)
        self.shapes = {key: tuple(array.shape) for key, array in self._arrays.items()}
        self.dtypes = {key: _dtype(array) for key, array in self._arrays.items()}
        scanned = any(key.startswith(("encoder/encoder/", "decoder/decoder/")) for key in entries)
        self.form: Form = "t5x_scanned" if scanned else "t5x"
        self._slab: tuple[Any, np.ndarray] | None = None

    def read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        """See `fill.Reader`.

        Raises:
            InputError: a chunk is missing or damaged.
        """
        if self.form == "t5x_scanned" and len(index) > 1 and isinstance(index[1], int):
            # Chunks span layers: all layers of a slice are read at once, not once for each.
            slab_index = (index[0], slice(None), *index[2:])
            wanted = (key, str(slab_index))
            if self._slab is None or self._slab[0] != wanted:
                self._slab = (wanted, self._read(key, slab_index))
            return self._slab[1][:, index[1]]
        return self._read(key, index)

    def _read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        part = self._arrays[key][index]
        if isinstance(part, np.ndarray):
            return part
        try:
            return part.read().result()
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self.where}: {key} cannot be read: {_in_short(error)}; copy the checkpoint anew"
            ) from error


def open_checkpoint(path: epath.PathLike) -> Checkpoint:
    """Opens the checkpoint of one step for `fill.fill`.

    Args:
        path: local or ``gs://``: a ``checkpoint_N`` folder, or the folder that holds a single one.
            Where it holds several, the step must be named, as T5X's ``finetune.gin`` wants it
            (mode ``specific``).

    Raises:
        InputError: see `Checkpoint`.
    """
    return Checkpoint(path)


def _dtype(array: Any) -> np.dtype:
    return array.dtype if isinstance(array, np.ndarray) else array.dtype.numpy_dtype


def _native(index: epath.Path) -> tuple[dict[str, Any], int | None]:
    """Parameters by key, each an array or `_Stored`, and the step, of a msgpack index."""
    data = index.read_bytes()
    if data.startswith(_TENSORFLOW):
        raise InputError(
            f"{index}: a TensorFlow checkpoint of Mesh TensorFlow's T5; use its T5X form, as the "
            "public models have one under gs://t5-data/pretrained_models/t5x, or convert it with "
            "t5x's scripts/convert_tf_checkpoint.py"
        )
    try:
        tree = serialization.msgpack_restore(data)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise InputError(
            f"{index}: the index of a T5X checkpoint is expected; these {len(data):,} bytes end "
            f"early or are damaged ({type(error).__name__}); copy the checkpoint anew"
        ) from error
    root = tree.get(_OPTIMIZER, tree) if isinstance(tree, dict) else {}
    if not isinstance(root, dict) or not isinstance(root.get(_TARGET), dict):
        raise InputError(f"{index}: no {_TARGET!r} in it, where T5X keeps the parameters")
    state = root.get("state")
    step = state.get("step") if isinstance(state, dict) else None
    entries = dict(_leaves(root[_TARGET], (), index))
    return entries, int(step) if isinstance(step, np.ndarray | np.generic | int) else None


def _leaves(
    tree: Mapping[str, Any], path: tuple[str, ...], index: epath.Path
) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        own = (*path, name)
        key = "/".join(own)
        if isinstance(value, dict) and {"driver", "kvstore"} <= value.keys():
            yield key, _from_spec(value, key, index)
        elif isinstance(value, dict):
            yield from _leaves(value, own, index)
        elif isinstance(value, str) and value.startswith(_PLACEHOLDER):
            name = value.removeprefix(_PLACEHOLDER)
            yield key, _Stored(_spec(index.parent, name, ocdbt=_has_ocdbt(index.parent)))
        elif isinstance(value, np.ndarray | np.generic):
            yield key, np.asarray(value)
        else:
            raise InputError(
                f"{index}: {key} is {type(value).__name__}, expected an array or a tensorstore spec"
            )


def _from_spec(spec: Mapping[str, Any], key: str, index: epath.Path) -> _Stored:
    """The array of a spec of the index, wherever the checkpoint lies now."""
    # tensorstore before 0.1.14 kept the path outside the kvstore.
    name = spec["kvstore"].get("path", spec.get("path"))
    if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{index}: {key} lies at {name!r}, expected a path inside the folder")
    if spec["driver"] not in ("zarr", "zarr3"):
        raise InputError(f"{index}: {key} is stored as {spec['driver']!r}, expected 'zarr'")
    shape = spec.get("metadata", {}).get("shape")
    return _Stored(
        _spec(index.parent, name.rstrip("/"), spec["driver"]),
        None if shape is None else tuple(shape),
    )


def _orbax(index: epath.Path) -> tuple[dict[str, Any], int | None]:
    """As `_native`, of Orbax's index; the step is an array there, and in the folder's name."""
    try:
        metadata = json.loads(index.read_text())
        paths = [
            tuple(str(part["key"]) for part in entry["key_metadata"])
            for entry in metadata["tree_metadata"].values()
        ]
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        ocdbt = metadata.get("use_ocdbt", _has_ocdbt(index.parent))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index}: no index of an Orbax checkpoint, or damaged ({type(error).__name__}); copy "
            "the checkpoint anew"
        ) from error
    entries = {
        "/".join(path[1:]): _Stored(_spec(index.parent, ".".join(path), driver, ocdbt=ocdbt))
        for path in paths
        if path[0] == _TARGET
    }
    if not entries:
        raise InputError(f"{index}: no {_TARGET!r} in it, where T5X keeps the parameters")
    return entries, None


def _has_ocdbt(folder: epath.Path) -> bool:
    return (folder / "manifest.ocdbt").is_file()


def _spec(
    folder: epath.Path, name: str, driver: str = "zarr", *, ocdbt: bool = False
) -> dict[str, Any]:
    store: dict[str, Any] = (
        {"driver": "ocdbt", "base": _kvstore(folder), "path": f"{name}/"}
        if ocdbt
        else _kvstore(folder / name)
    )
    return {"driver": driver, "kvstore": store}


def _kvstore(folder: epath.Path) -> dict[str, Any]:
    """tensorstore's name for a folder."""
    path = str(folder)
    if path.startswith("gs://"):
        bucket, _, inside = path.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{inside}/"}
    return {"driver": "file", "path": f"{folder.expanduser().resolve()}/"}


def _open(entries: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Opens every array, all at once; reads none.

    Raises:
        InputError: all that cannot be opened or that differ from the index, together.
    """
    # Without this, a chunk that is missing would read as zeros.
    strict = {"open": True, "fill_missing_data_reads": False}
    pending = {
        key: ts.open({**entry.spec, **strict}, read=True)
        for key, entry in entries.items()
        if isinstance(entry, _Stored)
    }
    opened = {}
    problems = []
    for key, entry in entries.items():
        if key not in pending:
            opened[key] = entry
            continue
        try:
            opened[key] = pending[key].result()
        except (ValueError, OSError) as error:
            problems.append(f"{key}: {_in_short(error)}")
            continue
        if entry.shape is not None and entry.shape != tuple(opened[key].shape):
            problems.append(f"{key} is {tuple(opened[key].shape)}, its index says {entry.shape}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(
            f"{where}: {len(problems)} of its arrays cannot be opened: {'; '.join(problems[:5])}"
            f"{more}; copy the checkpoint anew"
        )
    return opened


def _in_short(error: Exception) -> str:
    """tensorstore's reason, without its dump of settings."""
    text = " ".join(str(error).split())
    return re.split(r" \[tensorstore_spec| \[source locations|\. See full", text)[0][:300]


def write(folder: epath.PathLike, step: int, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes the native form, one array at a time, the index last.

    T5X's `Checkpointer` restores it; there is no optimizer state in it.

    Args:
        folder: ``checkpoint_N`` to be made, local or ``gs://``.
        step: optimizer steps done.
        arrays: key below ``target`` -> array, of `fill.arrays`.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    folder = epath.Path(folder)
    target: dict[str, Any] = {}
    for key, array in arrays:
        name = f"{_TARGET}.{key.replace('/', '.')}"
        metadata = {
            "shape": list(array.shape),
            "chunks": _chunks(array.shape, array.dtype.itemsize),
            "compressor": {"id": "gzip", "level": 1},
        }
        try:
            store = ts.open(
                {
                    **_spec(folder, name),
                    "metadata": metadata,
                    "store_data_equal_to_fill_value": True,
                },
                dtype=array.dtype,
                create=True,
                delete_existing=True,
            ).result()
            store.write(array).result()
        except (ValueError, OSError) as error:
            raise InputError(
                f"{folder}: {key} cannot be written: {_in_short(error)}; make room, or choose "
                "another --out"
            ) from error
        *parents, leaf = key.split("/")
        node = target
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = {
            "driver": "zarr",
            "dtype": array.dtype.name,
            "kvstore": {"driver": "file", "path": f"{name}/"},
            "metadata": metadata,
        }
    optimizer = {_TARGET: target, "state": {"step": np.asarray(step, np.int32), "param_states": {}}}
    index = {"version": VERSION, _OPTIMIZER: optimizer}
    (folder / INDEX).write_bytes(serialization.msgpack_serialize(index))


def _chunks(shape: Shape, itemsize: int) -> list[int]:
    """Chunks of at most 64 MiB: the longest axis is halved, rounding up, until they are."""
    chunks = list(shape)
    while np.prod(chunks, dtype=np.int64) * itemsize > _CHUNK_BYTES:
        longest = int(np.argmax(chunks))
        chunks[longest] = -(-chunks[longest] // 2)
    return chunks
