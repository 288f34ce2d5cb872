"""TPU topologies: devices to compile for, without any TPU."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import re
from typing import Any

from jax.experimental import topologies

from stepdistill_jax.parallel.chips import CHIPS, Chip
from stepdistill_jax.spec import InputError

_NAME = re.compile(r"(?P<chip>[a-z0-9]+):(?P<shape>\d+(?:x\d+){1,2})(?:\*(?P<slices>[1-9]\d*))?")
# libtpu requires a type for this machine; the topology alone decides what it compiles for.
_ANY_ACCELERATOR = "v5litepod-4"
# The compiler crashes on three-dimensional slices of these.
_FLAT = ("v5e", "v6e")
# JAX counts a v4 chip as one device, its compiler by default as two.
_OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One slice, or several equal ones.

    Attributes:
        name: as the user wrote it.
        chip: peak figures of a device.
        slices: number of slices.
        devices: compile-only devices of all slices.
    """

    name: str
    chip: Chip
    slices: int
    devices: tuple[Any, ...]


def topology(name: str) -> Topology:
    """The topology of a name such as ``v5e:4x4``, or ``v5e:4x4*2`` for two such slices.

    Needs libtpu (extra ``tpu``), but no TPU.

    Raises:
        InputError: the topology does not exist, or libtpu is not installed.
    """
    match = _NAME.fullmatch(name)
    if not match or match["chip"] not in CHIPS:
        generation = name.partition(":")[0]
        near = difflib.get_close_matches(generation, CHIPS, n=1)
        hint = f"Did you mean {near[0]}? " if near and generation not in CHIPS else ""
        raise InputError(
            f"--topology={name}: expected GENERATION:SHAPE with a generation of "
            f"{', '.join(CHIPS)}. {hint}Write it as v5e:4x4 or v5p:2x2x4, or v5e:4x4*2 for two "
            "slices."
        )
    if match["chip"] in _FLAT and match["shape"].count("x") > 1:
        raise InputError(
            f"--topology={name}: a slice of {match['chip']} has two dimensions. Write "
            f"{match['chip']}:ROWSxCOLUMNS, as {match['chip']}:8x8."
        )
    # Otherwise libtpu waits for the metadata server of a TPU VM.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Otherwise libtpu warns that this machine is not a worker of a TPU VM.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ANY_ACCELERATOR)
    # libtpu's lock protects a TPU against two users; there is no TPU here.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    slices = int(match["slices"] or 1)
    options = dict(_OPTIONS.get(match["chip"], {}))
    if slices > 1:
        options["num_slices"] = slices
    try:
        description = topologies.get_topology_desc(
            f"{match['chip']}:{match['shape']}", "tpu", **options
        )
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(
                f"--topology={name}: libtpu is not installed: {reason}. Run pip install -c "
                "constraints.txt '.[tpu]'."
            ) from error
        raise InputError(
            f"--topology={name}: no such slice: {reason}. Use a slice of Google Cloud, as v5e:2x4, "
            "v5e:8x8, v5p:2x2x4 or v5p:4x4x8."
        ) from error
    return Topology(name, CHIPS[match["chip"]], slices, tuple(description.devices))
