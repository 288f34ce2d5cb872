"""The processes of one run: they connect before they use a device, and end together.

On a TPU pod, under Slurm, under Open MPI and in an indexed Kubernetes job, JAX finds the other
processes itself. Elsewhere three environment variables name them: JAX_COORDINATOR_ADDRESS
(host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without them a process is alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

import jax
from jax._src import clusters, distributed, hardware_utils
from tqdm import tqdm

from stepdistill_jax import storage
from stepdistill_jax.parallel import device_memory, processes
from stepdistill_jax.spec import EXIT_UNAVAILABLE, InputError, UnavailableError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Maximum time between the start of the first and the last process.
MEETING_SECONDS = 300
# A process without a heartbeat for this time counts as dead; most deaths close a connection and are
# noticed at once. JAX's default, since a busy host may be silent for 10 s.
HEARTBEAT_SECONDS = 100
# A process that waits longer prints a line.
_QUIET_SECONDS = 15
# How long a process that ends with an error waits for others with the same error.
_LEAVING_SECONDS = 5
# What JAX's errors contain when another process has died.
_LOST = re.compile(
    r"gloo|heartbeat|coordination service|UNAVAILABLE|connection (closed|reset|refused)|"
    r"broken pipe|megascale",
    re.IGNORECASE,
)

_CONTINUES = "Start the same command in all of them again: it continues from the last checkpoint."
_AMD_GPUS = "/dev/kfd"
_leaving: int | None = None


def start(*, preemptible: bool = False) -> None:
    """Connects to the other processes, if there are any; call it before JAX's first device.

    Later calls do nothing, nor do calls in a process that is alone, as on a TPU VM of one host.

    Args:
        preemptible: SIGTERM to one process becomes a notice to all of them
            (`train.loop.Preemption`); else it kills the process.

    Raises:
        InputError: the three variables are incomplete or invalid.
        UnavailableError: the processes cannot connect, or their number is unknown.
    """
    _skip_missing_tpu()
    if jax.distributed.is_initialized():
        return
    connection = _named() if any(map(os.environ.get, VARIABLES)) else _detected()
    if connection is None:
        return
    jax.config.update("jax_enable_preemption_service", preemptible)
    # At its own deadline JAX would abort with a stack trace of C++.
    deadline = threading.Timer(MEETING_SECONDS, _nobody_came)
    waiting = threading.Timer(_QUIET_SECONDS, _still_waiting)
    for timer in (deadline, waiting):
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(
            **connection,
            initialization_timeout=2 * MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        address = distributed.global_state.coordinator_address
        reason = str(error).splitlines()[0]
        raise UnavailableError(
            f"the processes cannot connect at {address}: {reason}. Give each process its own "
            "number, and process 0 a free port."
        ) from error
    finally:
        deadline.cancel()
        waiting.cancel()
    # When a process dies, JAX calls abort() in a thread of the others. Python's handlers would run
    # in the main thread, which waits for a device forever.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def _skip_missing_tpu() -> None:
    """Selects the CPU where there is no accelerator: else libtpu, if installed, logs errors."""
    settings: Any = jax.config
    if settings.jax_platforms or importlib.util.find_spec("libtpu") is None:
        return
    tpus, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    gpus = hardware_utils.has_visible_nvidia_gpu() or os.path.exists(_AMD_GPUS)
    if not tpus and not gpus and "JAX_FORCE_TPU_INIT" not in os.environ:
        jax.config.update("jax_platforms", "cpu")


def alone() -> dict[str, str]:
    """The environment for a child process that connects to no other process.

    Children of a cluster's job inherit its variables: the children of two workers would take each
    other for processes of one run.
    """
    return {**os.environ, **dict(zip(VARIABLES, ("localhost:1", "1", "0"), strict=True))}


def say(line: str, *, error: bool = False) -> None:
    """Prints a line in the lead process alone, above any progress bar, and flushes it."""
    if processes.is_lead():
        stream = sys.stderr if error else sys.stdout
        tqdm.write(line, file=stream)
        stream.flush()


def leave(code: int) -> NoReturn:
    """Ends this process with `code`, so that the others notice at once.

    The usual exit waits for all processes, some of which wait for this one.
    """
    global _leaving
    if processes.count() == 1:
        sys.exit(code)
    _leaving = code
    sys.stdout.flush()
    sys.stderr.flush()
    # The coordinator ends with process 0, so other processes get time to print their errors.
    client: Any = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier("stepdistill/leave", 1000 * _LEAVING_SECONDS)
    os._exit(code)


def understood(error: Exception) -> InputError | None:
    """A failed store or an out-of-memory error as one line with a remedy; else None."""
    return storage.failure(error) or device_memory.failure(error)


def end(error: Exception) -> None:
    """Ends this process because of `error` if it is one of several; else does nothing.

    Call it before anything that waits for the others, such as closing a checkpoint manager. If
    another process has ended, the exit code is `EXIT_UNAVAILABLE`: a restart may help.
    """
    if processes.count() == 1:
        return
    error = understood(error) or error
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
        leave(error.exit_code)
    # If a device cannot start without the others, JAX raises a plain RuntimeError.
    if isinstance(error, (RuntimeError, ValueError)) and _LOST.search(str(error)):
        reason = str(error).splitlines()[0][:200]
        _say(f"another process of this run has ended ({reason}). {_CONTINUES}")
        # Not by `leave`, which would wait for the dead process.
        os._exit(EXIT_UNAVAILABLE)
    traceback.print_exception(error)
    leave(1)


def _named() -> dict[str, Any] | None:
    """`VARIABLES` as arguments of `jax.distributed.initialize`; None = the process is alone."""
    values = {name: os.environ.get(name, "") for name in VARIABLES}
    missing = [name for name, value in values.items() if not value]
    if missing:
        present = ", ".join(f"{name}={value}" for name, value in values.items() if value)
        raise InputError(
            f"the environment has {present} but no {' and no '.join(missing)}. Set all of "
            f"{', '.join(VARIABLES)}, or none of them."
        )
    address, *numbers = values.values()
    for name, value in zip(VARIABLES[1:], numbers, strict=True):
        if not value.isdecimal():
            raise InputError(f"{name}={value!r} in the environment: expected a whole number")
    several, process = map(int, numbers)
    if several < 1:
        raise InputError(f"JAX_NUM_PROCESSES={several} in the environment: expected 1 or more")
    if process >= several:
        raise InputError(
            f"JAX_PROCESS_ID={process} in the environment: expected 0 to {several - 1}, of "
            f"JAX_NUM_PROCESSES={several}"
        )
    if not re.fullmatch(r".+:\d+", address):
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS={address!r} in the environment: expected HOST:PORT"
        )
    if several == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": several,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _detected() -> dict[str, Any] | None:
    """The first cluster that JAX detects, if it has more than one process."""
    settings: Any = jax.config
    platforms = settings.jax_platforms
    for kind in clusters.ClusterEnv._cluster_types:
        # A TPU host that computes on its CPU does not take part in the TPU pod.
        idle = "tpu" in kind.name and platforms is not None and "tpu" not in platforms.split(",")
        # JAX asks Kubernetes, which fails for pods outside of a job.
        alone = kind is clusters.K8sCluster and "JOB_COMPLETION_INDEX" not in os.environ
        if kind.opt_in_only_method or idle or alone:
            continue
        try:
            if not kind.is_env_present():
                continue
            several = kind.get_process_count() > 1
        except OSError as error:
            raise UnavailableError(
                f"the number of hosts is unknown ({kind.__name__}: {error}). Make the metadata "
                f"server reachable, or set {', '.join(VARIABLES)} (JAX_NUM_PROCESSES=1 for a "
                "single host)."
            ) from error
        return {"cluster_detection_method": kind.name} if several else None
    return None


def _still_waiting() -> None:
    address = distributed.global_state.coordinator_address or "the coordinator's address"
    print(
        f"waiting up to {MEETING_SECONDS} s for the other processes at {address}",
        file=sys.stderr,
        flush=True,
    )


def _nobody_came() -> None:
    """Ends this process, whose main thread waits inside JAX and cannot be interrupted."""
    # The address may be unknown while JAX still asks for the name of a TPU host.
    address = distributed.global_state.coordinator_address or "the coordinator's address"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        what = (
            "process 0 answers, but other processes are missing. Start every process, each with "
            "its own number."
        )
    except (OSError, ValueError):
        what = (
            "nothing answers there. Start process 0 on that host, open the port, or correct the "
            "address (JAX_COORDINATOR_ADDRESS)."
        )
    _say(f"the processes did not connect at {address} within {MEETING_SECONDS} s: {what}")
    # Not an input error: a host may have been slow, and a supervisor may start the run again.
    os._exit(EXIT_UNAVAILABLE)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    del number
    if _leaving is not None:
        os._exit(_leaving)
    _say(f"JAX aborted this process because another process has ended (see above). {_CONTINUES}")
    os._exit(EXIT_UNAVAILABLE)


def _say(message: str) -> None:
    """Writes one line without Python's buffers, whose locks another thread may hold."""
    several = processes.count()
    # Unknown until the coordinator's address is known.
    who = f"process {processes.index()} of {several}: " if several > 1 else ""
    os.write(2, f"error: {who}{message}\n".encode())
