"""Host batches to global arrays on the mesh."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepdistill_jax.parallel.mesh import batch_shards
from stepdistill_jax.spec import BATCH_AXES, EXAMPLE_INDEX, InputError


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are split over replica and fsdp; other dimensions are not split."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


@functools.cache
def data_shard(mesh: Mesh) -> tuple[int, int]:
    """The part of the data that this process reads: ``(index, count)``.

    Processes that share rows, because the tensor axis crosses them, read the same part.

    Raises:
        InputError: the rows of one process are not one contiguous part of the batch.
    """
    return _data_shard(
        np.vectorize(lambda device: device.process_index)(mesh.devices), jax.process_index()
    )


def _data_shard(processes: np.ndarray, process: int) -> tuple[int, int]:
    """`data_shard` of `process`, given the process of each device [replica, fsdp, tensor]."""
    rows = processes.reshape(-1, processes.shape[-1])
    mine = np.flatnonzero((rows == process).any(axis=1))
    count, remainder = divmod(len(rows), len(mine))
    if remainder or mine[0] % len(mine) or mine[-1] - mine[0] + 1 != len(mine):
        raise InputError(
            f"process {process} holds parts {mine.tolist()} of the {len(rows)} parts of a batch, "
            "which is not one contiguous, equal share. Set MESH_TENSOR to a divisor or a multiple "
            "of the devices of one process."
        )
    return int(mine[0]) // len(mine), count


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, microbatches: int = 1
) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices as parts of global arrays ``[B', ...]``.

    B' is B padded to a multiple of row shards x microbatches with rows of zeros: segment 0 and
    weight 0, so they add nothing to any sum. BATCH_SIZE therefore does not depend on the devices.
    `spec.EXAMPLE_INDEX` stays on the host.

    Args:
        batch: name -> [B / processes, ...], this process's `data_shard`.

    Raises:
        InputError: features with unequal numbers of rows.
    """
    sharding = batch_sharding(mesh)
    device_batch = {name: array for name, array in batch.items() if name != EXAMPLE_INDEX}
    counts = {name: len(array) for name, array in device_batch.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"features of a batch have unequal numbers of rows: {counts}")
    rows = next(iter(counts.values()))
    parts = batch_shards(mesh) // data_shard(mesh)[1] * microbatches
    padding = -rows % parts

    def place(array: np.ndarray) -> jax.Array:
        padded = np.pad(array, [(0, padding), *[(0, 0)] * (array.ndim - 1)])
        return jax.make_array_from_process_local_data(sharding, padded)

    return {name: place(array) for name, array in device_batch.items()}
