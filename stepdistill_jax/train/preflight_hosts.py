"""Facts about each host of a run, and a comparison of those that must be equal."""

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

# Packages whose versions can change the compiled programs or the bytes of a checkpoint.
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Variables that change the compiled programs.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")
# Cloud tokens and the order of files tolerate this difference between clocks.
CLOCK_SECONDS = 5.0
# These folders may have different names on each host.
_HOST_MACROS = frozenset({"DATA_DIR", "CACHE_DIR"})


def name() -> str:
    """This host's name; with several processes, also the number of this one."""
    host = socket.gethostname()
    return host if processes.count() == 1 else f"{host} (process {processes.index()})"


def use_devices() -> dict[str, str]:
    """Adds some numbers on every local device; returns the devices' kinds, counts and memory.

    Raises:
        InputError: a device gives a wrong sum.
    """
    local = jax.local_devices()
    for device in local:
        total = int(jax.device_put(np.arange(8), device).sum())
        if total != 28:
            raise InputError(
                f"{device} computes 0 + 1 + ... + 7 = {total}. Take this machine out of service."
            )
    kinds = collections.Counter(device.device_kind for device in local)
    limits = {(device.memory_stats() or {}).get("bytes_limit", 0) for device in local}
    memory = " or ".join(f"{limit / 2**30:.1f} GiB" for limit in sorted(limits) if limit)
    return {
        "devices": ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())),
        "memory of each": memory or "unknown",
    }


def software(config: RunConfig) -> dict[str, str]:
    """Versions, variables, source code and settings of this host, which must be equal on all."""
    facts = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts |= {variable: os.environ.get(variable, "").strip() for variable in VARIABLES}
    facts["source code"] = _source()
    settings = configs.values(config).items()
    facts |= {macro: repr(value) for macro, value in settings if macro not in _HOST_MACROS}
    return facts


def _source() -> str:
    """Twelve hexadecimal digits of a hash over the source files."""
    digest = hashlib.sha256()
    for package in ("stepdistill_jax", "launch"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        folder = pathlib.Path(str(spec.origin)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def refuse_different(facts: Mapping[str, Mapping[str, str]]) -> None:
    """Checks that all hosts have the same facts: host -> name of a fact -> value.

    Raises:
        InputError: some hosts differ from the majority; names them and both values.
    """
    different = []
    for fact in next(iter(facts.values())):
        values = {host: of_host.get(fact, "") for host, of_host in facts.items()}
        (usual, _), *others = collections.Counter(values.values()).most_common()
        different += [
            f"{host} has {fact} {value or 'unset'}, {_others(values, usual)} {usual or 'unset'}"
            for host, value in values.items()
            if others and value != usual
        ]
    if different:
        raise InputError(
            f"{'; '.join(different)}. Set up all hosts alike and start the same command on each."
        )


def _others(values: Mapping[str, str], usual: str) -> str:
    having = [host for host, value in values.items() if value == usual]
    return f"{having[0]} has" if len(having) == 1 else f"{len(having)} others have"


def clock_skew(times: Mapping[str, float], limit: float = CLOCK_SECONDS) -> float:
    """Seconds between the slowest and the fastest clock.

    Args:
        times: host -> seconds since the epoch, read at one moment.

    Raises:
        InputError: the difference exceeds `limit` seconds; names both hosts.
    """
    first, last = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    skew = times[last] - times[first]
    if skew > limit:
        raise InputError(
            f"the clock of {last} is {skew:.1f} s ahead of that of {first}, more than {limit:g} s. "
            "Synchronize the clocks with NTP (timedatectl set-ntp true)."
        )
    return skew
