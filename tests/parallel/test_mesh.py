import jax
import pytest

from stepdistill_jax.parallel.mesh import MeshConfig, batch_shards, make_mesh
from stepdistill_jax.spec import InputError


@pytest.mark.parametrize(
    ("config", "shape", "shards"),
    [
        (MeshConfig(), {"replica": 1, "fsdp": 8, "tensor": 1}, 8),
        (MeshConfig(fsdp=4, tensor=2), {"replica": 1, "fsdp": 4, "tensor": 2}, 4),
        (MeshConfig(fsdp=2, tensor=-1), {"replica": 1, "fsdp": 2, "tensor": 4}, 2),
        (MeshConfig(replica=2, tensor=2), {"replica": 2, "fsdp": 2, "tensor": 2}, 4),
        (MeshConfig(replica=-1, fsdp=1), {"replica": 8, "fsdp": 1, "tensor": 1}, 8),
    ],
)
def test_remaining_axis_takes_what_the_others_leave(config, shape, shards):
    mesh = make_mesh(config)
    assert dict(mesh.shape) == shape
    assert set(mesh.devices.flat) == set(jax.devices())
    assert batch_shards(mesh) == shards


def test_given_devices_only():
    assert make_mesh(MeshConfig(), jax.devices()[:2]).shape["fsdp"] == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MeshConfig(replica=1, fsdp=3, tensor=2),
            r"MESH_REPLICA=1 x MESH_FSDP=3 x MESH_TENSOR=2 needs 6 devices, and there are 8",
        ),
        (
            MeshConfig(fsdp=-1, tensor=3),
            r"MESH_FSDP=-1 x MESH_TENSOR=3 needs a multiple of 3 devices, and there are 8",
        ),
        (MeshConfig(fsdp=-1, tensor=16), "needs a multiple of 16 devices, and there are 8"),
        (MeshConfig(fsdp=4), "needs 4 devices, and there are 8"),
    ],
)
def test_contradictory_sizes_are_named_with_both_numbers(config, message):
    with pytest.raises(InputError, match=message):
        make_mesh(config)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 0}, "MESH_FSDP: got 0, expected at least 1 device"),
        ({"tensor": -2}, "MESH_TENSOR: got -2"),
        ({"tensor": -1}, "MESH_FSDP and MESH_TENSOR are both -1"),
    ],
)
def test_illegal_sizes_name_the_macro(sizes, message):
    with pytest.raises(InputError, match=message):
        MeshConfig(**sizes)
