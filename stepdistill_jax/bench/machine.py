"""The machine of a benchmark, and its peak memory."""

from __future__ import annotations

import ctypes
import os
import pathlib
import platform
import resource
import sys
from typing import Any

import jax

_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """CPU model and cores, JAX's devices, versions."""
    device = jax.devices()[0]
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Name of the processor."""
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def return_free_memory() -> None:
    """Returns freed memory to the system if the C library can (glibc).

    Otherwise the gigabytes that PyTorch frees after a train step stay reserved for PyTorch.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def peak_host_bytes() -> int:
    """Peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # KiB on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes() -> int | None:
    """Peak memory of the fullest local device; None if devices do not report it."""
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    return max(peaks, default=None)
