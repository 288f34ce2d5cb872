"""Arrays of Orbax and T5X checkpoints, opened through tensorstore and read slice by slice."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.checkpoint.names import Shape
from stepdistill_jax.spec import InputError

ORBAX_INDEX = "_METADATA"
_CHUNK_BYTES = 64 * 2**20
_AGAIN = "copy the checkpoint anew"


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that an index names.

    Attributes:
        spec: tensorstore's, of driver and store alone.
        shape: what the index says; None where it does not.
    """

    spec: dict[str, Any]
    shape: Shape | None = None


def stored(
    folder: epath.Path,
    name: str,
    driver: str = "zarr",
    *,
    ocdbt: bool = False,
    shape: Shape | None = None,
) -> Stored:
    """The array `name` of a folder, of its own folder or inside Orbax's OCDBT store."""
    store: dict[str, Any] = (
        {"driver": "ocdbt", "base": _store(folder), "path": f"{name}/"}
        if ocdbt
        else _store(folder / name)
    )
    return Stored({"driver": driver, "kvstore": store}, shape)


def _store(folder: epath.Path) -> dict[str, Any]:
    path = str(folder)
    if path.startswith("gs://"):
        bucket, _, inside = path.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{inside}/"}
    return {"driver": "file", "path": f"{folder.expanduser().resolve()}/"}


def has_ocdbt(folder: epath.Path) -> bool:
    """Whether a folder's arrays lie together in one store."""
    return (folder / "manifest.ocdbt").is_file()


def orbax_arrays(index: epath.Path, root: str) -> dict[str, Stored]:
    """The arrays below `root` that an Orbax checkpoint's index names, by key ``a/b/c``.

    Raises:
        InputError: the index is damaged, or has nothing below `root`.
    """
    try:
        metadata = json.loads(index.read_text())
        paths = [
            tuple(str(part["key"]) for part in entry["key_metadata"])
            for entry in metadata["tree_metadata"].values()
        ]
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        ocdbt = metadata.get("use_ocdbt", has_ocdbt(index.parent))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index}: no index of an Orbax checkpoint, or damaged ({type(error).__name__}); "
            f"{_AGAIN}"
        ) from error
    found = {
        "/".join(path[1:]): stored(index.parent, ".".join(path), driver, ocdbt=ocdbt)
        for path in paths
        if path[0] == root and len(path) > 1
    }
    if not found:
        held = sorted({path[0] for path in paths})
        raise InputError(f"{index}: no {root!r} in it, but {', '.join(held) or 'nothing'}")
    return found


def open_all(arrays: Mapping[str, Stored | np.ndarray], where: str) -> dict[str, Any]:
    """Opens every array, all at once; reads none. An array in memory stays what it is.

    Raises:
        InputError: all that cannot be opened or that differ from the index, together.
    """
    # Without the second, a chunk that is missing would read as zeros.
    strict = {"open": True, "fill_missing_data_reads": False}
    pending = {
        key: ts.open({**array.spec, **strict}, read=True)
        for key, array in arrays.items()
        if isinstance(array, Stored)
    }
    opened: dict[str, Any] = {}
    problems = []
    for key, array in arrays.items():
        if not isinstance(array, Stored):
            opened[key] = array
            continue
        try:
            opened[key] = pending[key].result()
        except (ValueError, OSError) as error:
            storage.raise_failure(error)
            problems.append(f"{key}: {in_short(error)}")
            continue
        shape = tuple(opened[key].shape)
        if array.shape is not None and array.shape != shape:
            problems.append(f"{key} is {shape}, its index says {array.shape}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(
            f"{where}: {len(problems)} of its arrays cannot be opened: {'; '.join(problems[:5])}"
            f"{more}; {_AGAIN}"
        )
    return opened


def read(array: Any, index: Any, key: str, where: str) -> np.ndarray:
    """The elements of an opened array at `index`.

    Raises:
        InputError: a chunk is missing or damaged.
    """
    part = array[index]
    if isinstance(part, np.ndarray):
        return part
    try:
        values: np.ndarray = part.read().result()
    except (ValueError, OSError) as error:
        storage.raise_failure(error)
        raise InputError(f"{where}: {key} cannot be read: {in_short(error)}; {_AGAIN}") from error
    return values


def write(folder: epath.Path, name: str, array: np.ndarray) -> dict[str, Any]:
    """Writes one Zarr array as T5X does: gzip, chunks of at most 64 MiB.

    Returns:
        Its tensorstore spec, with a path relative to `folder`.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    metadata = {
        "shape": list(array.shape),
        "chunks": _chunks(array.shape, array.dtype.itemsize),
        "compressor": {"id": "gzip", "level": 1},
    }
    # Zeros too are written, so that a reader can tell a lost chunk from them.
    spec = {
        **stored(folder, name).spec,
        "metadata": metadata,
        "store_data_equal_to_fill_value": True,
    }
    try:
        store = ts.open(spec, dtype=array.dtype, create=True, delete_existing=True).result()
        store.write(array).result()
    except (ValueError, OSError) as error:
        storage.raise_failure(error)
        raise InputError(
            f"{folder}: {name} cannot be written: {in_short(error)}; make room, or choose another "
            "--out"
        ) from error
    return {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": f"{name}/"},
        "metadata": metadata,
    }


def _chunks(shape: Shape, itemsize: int) -> list[int]:
    """The longest axis is halved, rounding up, until a chunk is small enough."""
    chunks = list(shape)
    while np.prod(chunks, dtype=np.int64) * itemsize > _CHUNK_BYTES:
        longest = int(np.argmax(chunks))
        chunks[longest] = -(-chunks[longest] // 2)
    return chunks


def in_short(error: Exception) -> str:
    """tensorstore's reason in one line, without its dump of settings."""
    text = " ".join(str(error).split())
    return re.split(r" \[tensorstore_spec| \[source locations|\.? See full", text)[0][:400]
