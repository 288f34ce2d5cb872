"""The device mesh: replica (between slices), fsdp (sharded parameters), tensor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils

from stepdistill_jax.settings import setting
from stepdistill_jax.spec import BATCH_AXES, MESH_AXES, InputError

REMAINING = -1
_AXIS_TYPES = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one is -1. The loss does not depend on them."""

    HEADING = "Mesh"

    replica: int = setting(
        1,
        "Copies of the parameters, one per slice; -1 on at most one axis = the remaining devices.",
        macro="MESH_REPLICA",
    )
    fsdp: int = setting(
        REMAINING,
        "Devices that split the rows, the parameters and the optimizer state of one copy.",
        macro="MESH_FSDP",
    )
    tensor: int = setting(
        1, "Devices that split heads, MLP and vocabulary of each product.", macro="MESH_TENSOR"
    )

    def __post_init__(self) -> None:
        for axis in MESH_AXES:
            size = getattr(self, axis)
            if size < 1 and size != REMAINING:
                raise InputError(
                    f"{_macro(axis)}: got {size}, expected at least 1 device, or -1 for the "
                    "remaining devices."
                )
        remaining = [_macro(axis) for axis in MESH_AXES if getattr(self, axis) == REMAINING]
        if len(remaining) > 1:
            raise InputError(f"{' and '.join(remaining)} are both -1. Set all but one to a number.")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices`, all by default, laid out for the interconnect.

    Raises:
        InputError: the product of the sizes is not the number of devices, or does not fit their
            slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != REMAINING)
    for axis, size in sizes.items():
        if size == REMAINING:
            sizes[axis] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        product = " x ".join(f"{_macro(axis)}={getattr(config, axis)}" for axis in MESH_AXES)
        multiple = "a multiple of " if REMAINING in dataclasses.astuple(config) else ""
        raise InputError(
            f"{product} needs {multiple}{fixed} devices, and there are {len(devices)}. Set one of "
            f"the three to -1 and the others to numbers whose product divides {len(devices)}."
        )
    # Only TPU devices belong to slices; on CPUs, `slice_index` is the host.
    slices = {getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}
    if len(slices) > 1:
        return _mesh_over_slices(sizes, len(slices), devices)
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=_AXIS_TYPES, devices=devices)


def _mesh_over_slices(
    sizes: dict[str, int], slices: int, devices: Sequence[jax.Device]
) -> jax.sharding.Mesh:
    """A mesh in which only the replica axis crosses slices, since their network is slow.

    Raises:
        InputError: the replicas do not divide among the slices.
    """
    replicas, *within = sizes.values()
    if replicas % slices:
        raise InputError(
            f"MESH_REPLICA={replicas}, but the {len(devices)} devices form {slices} slices, and "
            f"parameters are not split between slices. Set MESH_REPLICA to a multiple of {slices}."
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (replicas // slices, *within), (slices, 1, 1), devices
    )
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=_AXIS_TYPES)


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Number of parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _macro(axis: str) -> str:
    return f"MESH_{axis.upper()}"
