"""TPU topologies that are not there: devices to compile for."""

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
# What libtpu is told that this machine is; what it compiles for is the topology's name alone.
_ANY_ACCELERATOR = "v5litepod-4"
# The compiler crashes on a slice of more dimensions than its network has.
_FLAT = ("v5e", "v6e")
# JAX counts a v4 chip as one device; its compiler, left alone, as two.
_OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several alike.

    Attributes:
        name: as given.
        chip: figures of its devices.
        slices: number of slices.
        devices: compile-only devices, all slices'.
    """

    name: str
    chip: Chip
    slices: int
    devices: tuple[Any, ...]


def topology(name: str) -> Topology:
    """The topology of a name such as ``v5e:4x4``, or ``v5e:4x4*2`` for two such slices.

    Needs libtpu (extra ``tpu``) and no TPU.

    Raises:
        InputError: there is no such topology, or no TPU compiler is installed.
    """
    match = _NAME.fullmatch(name)
    if not match or match["chip"] not in CHIPS:
        generation = name.partition(":")[0]
        near = difflib.get_close_matches(generation, CHIPS, n=1)
        hint = f"did you mean {near[0]}? " if near and generation not in CHIPS else ""
        raise InputError(
            f"--topology={name}: {hint}expected GENERATION:SHAPE, as v5e:4x4 or v5p:2x2x4, with "
            f"*N for N slices; generations: {', '.join(CHIPS)}"
        )
    if match["chip"] in _FLAT and match["shape"].count("x") > 1:
        raise InputError(
            f"--topology={name}: a slice of {match['chip']} has two dimensions; write "
            f"{match['chip']}:ROWSxCOLUMNS, as {match['chip']}:8x8"
        )
    # Else libtpu asks the metadata server of a machine that is no TPU VM, and waits for it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Else it complains that this is no worker of a TPU VM.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ANY_ACCELERATOR)
    # It guards a TPU against two users; nothing here uses one.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    slices = int(match["slices"] or 1)
    options = dict(_OPTIONS.get(match["chip"], {}))
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(f"{match['chip']}:{match['shape']}", "tpu", **options)
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(
                f"the TPU compiler cannot be had ({reason}); install it with the extra tpu: "
                "pip install -c constraints.txt '.[tpu]'"
            ) from error
        raise InputError(
            f"--topology={name}: the TPU compiler knows no such slice ({reason}); name one that "
            "Google Cloud has, as v5e:2x4, v5e:8x8, v5p:2x2x4 or v5p:4x4x8"
        ) from error
    return Topology(name, CHIPS[match["chip"]], slices, tuple(found.devices))
