"""What each host of a run is, and in what hosts differ that have to be alike."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import socket
from collections.abc import Mapping

import jax
import numpy as np

from stepdistill_jax.parallel import processes
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import InputError

# Packages in which the compiled programs, or the bytes of a checkpoint, might differ.
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Variables that change the compiled programs.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")
# Clocks may be apart by so much: cloud tokens and the order of files tolerate it.
CLOCK_SECONDS = 5.0
# Folders may have other names on every host.
_OWN_MACROS = frozenset({"DATA_DIR", "CACHE_DIR"})
_LEAST_SUM = 28


def name() -> str:
    """This host's name, with the process's number where there are several."""
    host = socket.gethostname()
    return host if processes.count() == 1 else f"{host} (process {processes.index()})"


def use_devices() -> dict[str, str]:
    """Has every local device add some numbers; returns kind and count of those here.

    Raises:
        InputError: a device gives a wrong sum.
    """
    local = jax.local_devices()
    for device in local:
        found = int(jax.device_put(np.arange(8), device).sum())
        if found != _LEAST_SUM:
            raise InputError(
                f"{device} says that 0 + 1 + ... + 7 is {found}; take this machine out of service"
            )
    kinds = collections.Counter(device.device_kind for device in local)
    limits = {(device.memory_stats() or {}).get("bytes_limit", 0) for device in local}
    memory = " or ".join(f"{limit / 2**30:.1f} GiB" for limit in sorted(limits) if limit)
    return {
        "devices": ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())),
        "memory of each": memory or "not told",
    }


def software(config: RunConfig) -> dict[str, str]:
    """Versions, variables, source code and settings of this host: what has to be alike."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found |= {variable: os.environ.get(variable, "").strip() for variable in VARIABLES}
    found["source code"] = _source()
    settings = configs.values(config).items()
    found |= {macro: repr(value) for macro, value in settings if macro not in _OWN_MACROS}
    return found


def _source() -> str:
    """Twelve digits that name the code of this package, whatever its version says."""
    digest = hashlib.sha256()
    for package in ("stepdistill_jax", "launch"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        folder = pathlib.Path(str(spec.origin)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def refuse_different(facts: Mapping[str, Mapping[str, str]]) -> None:
    """Checks that all hosts say the same.

    Args:
        facts: host -> what -> value.

    Raises:
        InputError: naming every host that says something else than most, and both values.
    """
    different = []
    for what in next(iter(facts.values())):
        values = {host: known.get(what, "") for host, known in facts.items()}
        (usual, _), *others = collections.Counter(values.values()).most_common()
        different += [
            f"{host} has {what} {value or 'unset'}, {_others(values, usual)} {usual or 'unset'}"
            for host, value in values.items()
            if others and value != usual
        ]
    if different:
        raise InputError(
            f"{'. '.join(different)}; set up all hosts alike and start the same command on each"
        )


def _others(values: Mapping[str, str], usual: str) -> str:
    having = [host for host, value in values.items() if value == usual]
    return f"{having[0]} has" if len(having) == 1 else f"{len(having)} others have"


def clock_skew(times: Mapping[str, float], limit: float = CLOCK_SECONDS) -> float:
    """Seconds between the slowest and the fastest clock.

    Args:
        times: host -> seconds since the epoch, read at one moment.
        limit: in seconds.

    Raises:
        InputError: they are further apart than `limit`; names both hosts.
    """
    first, last = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    skew = times[last] - times[first]
    if skew > limit:
        raise InputError(
            f"the clock of {last} is {skew:.1f} s ahead of that of {first}, more than {limit:g} s; "
            "set the clocks by NTP (timedatectl set-ntp true)"
        )
    return skew
