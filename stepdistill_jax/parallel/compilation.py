"""A cache of compiled programs on disk, so that a run's second start does not compile."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import jax
from etils import epath

# JAX's own variable for the folder takes precedence.
ENVIRONMENT = "JAX_COMPILATION_CACHE_DIR"
FOLDER = "xla"
# Programs that compile faster than this are not stored.
_WORTH_SECONDS = 0.1
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_CPU_TRAITS = ("model name", "flags", "Features")


def enable_compilation_cache(root: epath.PathLike) -> None:
    """Stores XLA's programs below ``root/xla``, or in JAX_COMPILATION_CACHE_DIR.

    If the folder cannot be written, JAX warns and the run continues.

    Args:
        root: `TokenConfig.root`, on a disk or an object store; on a store, the machine that
            replaces a preempted one finds the programs.
    """
    if os.environ.get(ENVIRONMENT):
        return
    jax.config.update("jax_compilation_cache_dir", str(epath.Path(root) / FOLDER / host()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_SECONDS)


def host() -> str:
    """Name of this kind of host, since machine code of one kind may not run on another.

    JAX's cache keys name the device, but all CPUs are one kind of device to it, and hosts of many
    kinds may share a folder.
    """
    traits = [platform.machine()]
    if _CPU_INFO.exists():
        first, _, _ = _CPU_INFO.read_text().partition("\n\n")
        traits += [line for line in first.splitlines() if line.startswith(_CPU_TRAITS)]
    return f"{platform.machine()}-{hashlib.sha256(repr(traits).encode()).hexdigest()[:12]}"
