"""Checksums of a checkpoint's arrays and records: saved with each step, compared when it is read.

They are of values, not of files: they do not depend on the mesh, need no second read, and a part of
a checkpoint can be compared alone. One changed element of at most 32 bits changes its array's
checksum.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from stepdistill_jax.spec import InputError

ITEM = "checksums"
_FILE = "metadata"
_LISTING = "_CHECKPOINT_METADATA"

PyTree = Any


def of_arrays(tree: PyTree) -> dict[str, int]:
    """Path -> checksum of every array, computed where the array is."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    # One after the other: programs that sum over devices at the same time can wait for each other.
    sums = [int(_on_device(leaf)) for _, leaf in flat]
    return dict(zip(names, sums, strict=True))


def of_record(value: Any) -> int:
    """Checksum of a value that JSON can write."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def of_host_array(array: np.ndarray) -> int:
    """As `of_arrays`, of one array in host memory."""
    bits = array.view(f"u{array.dtype.itemsize}").astype(np.uint32)
    return int((bits * _weights(array.shape, np)).sum(dtype=np.uint32))


@jax.jit
def _on_device(array: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"u{array.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    return (bits * _weights(array.shape, jnp)).sum(dtype=jnp.uint32)


def _weights(shape: tuple[int, ...], xp: Any) -> Any:
    """An odd factor, modulo 2**32, for every position: 1, 3, 5, ... in row-major order."""
    weights = xp.ones((1,) * len(shape), xp.uint32)
    stride = 2
    for axis, size in reversed(list(enumerate(shape))):
        steps = xp.arange(size, dtype=xp.uint32) * xp.uint32(stride % 2**32)
        weights = weights + steps.reshape([size if a == axis else 1 for a in range(len(shape))])
        stride *= size
    return weights


def compare(folder: epath.Path, actual: Mapping[str, int]) -> None:
    """Compares checksums with those saved with a step; steps of earlier versions have none.

    Args:
        folder: of the step.
        actual: name -> checksum, of arrays and records.

    Raises:
        InputError: some differ, or the saved ones cannot be read.
    """
    path = folder / ITEM / _FILE
    # Orbax lists the items that it wrote. A step of an earlier version has no checksums.
    listing = folder / _LISTING
    if not path.exists() and not (listing.exists() and f'"{ITEM}"' in listing.read_text()):
        return
    remedy = (
        "Delete this folder: the run then continues from the step before it; or choose another "
        "step."
    )
    try:
        saved = json.loads(path.read_bytes())
        wrong = [name for name, value in actual.items() if saved.get(name) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged: {type(error).__name__}. {remedy}") from error
    if wrong:
        more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise InputError(
            f"{folder}: damaged checkpoint: the checksum of {wrong[0]}{more} differs from the "
            f"saved one. {remedy}"
        )
