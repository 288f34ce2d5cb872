"""Compiled programs kept on disk, so that the second start of a run need not compile."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import jax
from etils import epath

# JAX's own variable for the folder; it goes before ours.
ENVIRONMENT = "JAX_COMPILATION_CACHE_DIR"
FOLDER = "xla"
# A program that compiles faster than this is not worth a file.
_WORTH_SECONDS = 0.1
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_CPU_TRAITS = ("model name", "flags", "Features")


def enable_compilation_cache(root: epath.PathLike) -> None:
    """Keeps XLA's programs below ``root/xla``, or where JAX_COMPILATION_CACHE_DIR says.

    A folder that cannot be written costs a warning of JAX's and no more.

    Args:
        root: folder of the caches, `TokenConfig.root`, on a disk or a store: a machine that was
            taken away leaves its programs to the next.
    """
    if os.environ.get(ENVIRONMENT):
        return
    jax.config.update("jax_compilation_cache_dir", str(epath.Path(root) / FOLDER / host()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_SECONDS)


def host() -> str:
    """Name of this kind of host: machine code made on one need not run on another.

    JAX tells programs apart by device, but to it every CPU is the same device, and hosts of many
    kinds may share one folder.
    """
    traits = [platform.machine()]
    if _CPU_INFO.exists():
        first, _, _ = _CPU_INFO.read_text().partition("\n\n")
        traits += [line for line in first.splitlines() if line.startswith(_CPU_TRAITS)]
    return f"{platform.machine()}-{hashlib.sha256(repr(traits).encode()).hexdigest()[:12]}"
