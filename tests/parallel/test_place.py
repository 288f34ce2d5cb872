import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.parallel.place import _data_shard, data_shard, place_batch
from stepdistill_jax.spec import EXAMPLE_INDEX, InputError


def batch(rows):
    return {
        "label_targets": np.arange(rows * 3, dtype=np.int32).reshape(rows, 3) + 1,
        "label_weights": np.ones((rows, 3), np.float32),
        EXAMPLE_INDEX: np.ones((rows, 3), np.int32),
    }


@pytest.mark.parametrize(
    ("config", "microbatches", "rows", "placed"),
    [
        (MeshConfig(), 1, 8, 8),
        (MeshConfig(), 1, 5, 8),
        (MeshConfig(fsdp=4, tensor=2), 1, 5, 8),
        (MeshConfig(replica=2, fsdp=1, tensor=4), 1, 5, 6),
        (MeshConfig(fsdp=2, tensor=4), 3, 5, 6),
        (MeshConfig(), 2, 17, 32),
    ],
)
def test_rows_are_raised_by_empty_rows(config, microbatches, rows, placed):
    mesh = make_mesh(config)
    source = batch(rows)
    result = place_batch(source, mesh, microbatches)
    assert set(result) == {"label_targets", "label_weights"}
    for name, array in result.items():
        assert array.shape == (placed, 3)
        assert array.dtype == source[name].dtype
        assert array.sharding.spec == P(("replica", "fsdp"))
        np.testing.assert_array_equal(array[:rows], source[name])
        assert not np.any(array[rows:])


def test_each_device_holds_its_own_rows_only():
    mesh = make_mesh(MeshConfig())
    array = place_batch(batch(16), mesh)["label_targets"]
    for shard in array.addressable_shards:
        assert shard.data.shape == (2, 3)


def test_unequal_rows_are_refused():
    features = batch(4) | {"label_targets": np.ones((3, 3), np.int32)}
    with pytest.raises(InputError, match="'label_targets': 3, 'label_weights': 4"):
        place_batch(features, make_mesh(MeshConfig()))


def test_one_process_reads_everything():
    assert jax.process_count() == 1
    assert data_shard(make_mesh(MeshConfig(fsdp=2, tensor=4))) == (0, 1)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        # Two processes of four devices; [replica, fsdp, tensor] of process numbers.
        ([[[0], [0], [0], [0], [1], [1], [1], [1]]], [(0, 2), (1, 2)]),
        ([[[0, 0], [0, 0], [1, 1], [1, 1]]], [(0, 2), (1, 2)]),
        # The tensor axis crosses both processes: both hold every row.
        ([[[0, 0, 0, 0, 1, 1, 1, 1]]], [(0, 1), (0, 1)]),
        ([[[0, 0, 1, 1]], [[2, 2, 3, 3]]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        # Devices of the second process come first on the mesh.
        ([[[1], [1], [0], [0]]], [(1, 2), (0, 2)]),
    ],
)
def test_data_shard_of_each_process(processes, expected):
    found = [_data_shard(np.array(processes), process) for process in range(len(expected))]
    assert found == expected


def test_scattered_process_is_refused():
    with pytest.raises(InputError, match=r"process 0 holds parts \[0, 2\] of the 4 parts"):
        _data_shard(np.array([[[0], [1], [0], [1]]]), 0)
