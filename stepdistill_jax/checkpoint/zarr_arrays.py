"""Arrays of Orbax and T5X checkpoints, read slice by slice through tensorstore."""

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
COPY_AGAIN = "Copy the checkpoint again."


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of an index.

    Attributes:
        spec: tensorstore's driver and store.
        shape: in the index; None = the index has none.
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
    """The array `name` of a folder, as a subfolder or inside Orbax's OCDBT store."""
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
    """Whether a folder's arrays are in one OCDBT store."""
    return (folder / "manifest.ocdbt").is_file()


def orbax_arrays(index: epath.Path, root: str) -> dict[str, Stored]:
    """The arrays below `root` of an Orbax checkpoint's index, by key ``a/b/c``.

    Raises:
        InputError: the index is damaged, or has no array below `root`.
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
            f"{index}: damaged index of an Orbax checkpoint: {type(error).__name__}. {COPY_AGAIN}"
        ) from error
    below = {
        "/".join(path[1:]): stored(index.parent, ".".join(path), driver, ocdbt=ocdbt)
        for path in paths
        if path[0] == root and len(path) > 1
    }
    if not below:
        roots = sorted({path[0] for path in paths})
        raise InputError(
            f"{index}: no {root!r}, only {', '.join(roots) or 'an empty tree'}. Name a checkpoint "
            "with parameters."
        )
    return below


def open_all(arrays: Mapping[str, Stored | np.ndarray], where: str) -> dict[str, Any]:
    """Opens all arrays concurrently, without reading; arrays in memory are returned unchanged.

    Raises:
        InputError: lists the arrays that cannot be opened or whose shape differs from the index.
    """
    # By default tensorstore reads a missing chunk as zeros.
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
            problems.append(f"{key} has shape {shape}, the index has {array.shape}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(
            f"{where}: cannot open {len(problems)} arrays: {'; '.join(problems[:5])}{more}. "
            f"{COPY_AGAIN}"
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
        raise InputError(f"{where}: cannot read {key}: {in_short(error)}. {COPY_AGAIN}") from error
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
    # Writes chunks of zeros too, so that a reader detects a lost chunk.
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
            f"{folder}: cannot write {name}: {in_short(error)}. Free disk space, or choose another "
            "--out."
        ) from error
    return {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": f"{name}/"},
        "metadata": metadata,
    }


def _chunks(shape: Shape, itemsize: int) -> list[int]:
    """Halves the longest axis, rounding up, until a chunk has at most `_CHUNK_BYTES`."""
    chunks = list(shape)
    while np.prod(chunks, dtype=np.int64) * itemsize > _CHUNK_BYTES:
        longest = int(np.argmax(chunks))
        chunks[longest] = -(-chunks[longest] // 2)
    return chunks


def in_short(error: Exception) -> str:
    """An error of tensorstore in one line, without its dump of settings."""
    text = " ".join(str(error).split())
    return re.split(r" \[tensorstore_spec| \[source locations|\.? See full", text)[0][:400]
