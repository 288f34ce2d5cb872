"""What a benchmark ran on, and how much memory it took."""

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
    """CPU model and cores, devices as JAX counts them, versions."""
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
    """The processor's own name, as far as the system tells."""
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def return_free_memory() -> None:
    """Gives freed memory back to the system where the C library can (glibc), else does nothing.

    It keeps what PyTorch frees, gigabytes of a train step, for PyTorch alone.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def peak_host_bytes() -> int:
    """Most memory that this process held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes() -> int | None:
    """Most memory in use on any one local device; None where the device does not report it."""
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    return max(peaks, default=None)
