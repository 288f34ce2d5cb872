"""Many processes, one run: they meet before a device is asked for, and end together.

On a TPU pod, under Slurm, under Open MPI and in an indexed Kubernetes job JAX finds out by itself
where to meet. Elsewhere three variables of the environment say so, and without them a process is
alone: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

import jax
from jax._src import clusters, distributed

from stepdistill_jax import storage
from stepdistill_jax.parallel import device_memory, processes
from stepdistill_jax.spec import EXIT_UNAVAILABLE, InputError, UnavailableError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# How long the first process waits for the last one to come.
MEETING_SECONDS = 300
# A process from which nothing was heard for so long is dead to the others; most deaths close a
# connection and are noticed at once. JAX's own default: a busy host may be silent for 10 s.
HEARTBEAT_SECONDS = 100
# From then on a process that waits says so.
_SAYING_SECONDS = 15
# How long a process that stops with an error waits for others that have met the same one.
_LEAVING_SECONDS = 5
# JAX's words for a process that is not there any more.
_LOST = re.compile(
    r"gloo|heartbeat|coordination service|UNAVAILABLE|connection (closed|reset|refused)|"
    r"broken pipe|megascale",
    re.IGNORECASE,
)

_CONTINUES = "start the same command in all of them again: it continues from the last checkpoint"
_leaving: int | None = None


def start(*, preemptible: bool = False) -> None:
    """Meets the other processes, where there are any; to be called before JAX's first device.

    Once only: later calls do nothing, nor does any in a process that is alone, such as one on a
    TPU VM of a single host.

    Args:
        preemptible: SIGTERM to one process becomes a notice to all of them
            (`train.loop.Preemption`); else it kills.

    Raises:
        InputError: the environment says half of where to meet, or something impossible.
        UnavailableError: the processes cannot meet, or nobody says how many there are.
    """
    if jax.distributed.is_initialized():
        return
    where = _named() if any(map(os.environ.get, VARIABLES)) else _detected()
    if where is None:
        return
    jax.config.update("jax_enable_preemption_service", preemptible)
    # JAX would abort with a stack trace of C++ at its own deadline.
    deadline = threading.Timer(MEETING_SECONDS, _nobody_came)
    waiting = threading.Timer(_SAYING_SECONDS, _still_waiting)
    for timer in (deadline, waiting):
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=2 * MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        address = distributed.global_state.coordinator_address
        reason = str(error).splitlines()[0]
        raise UnavailableError(
            f"the processes cannot meet at {address}: {reason}; give each its own number, and "
            "process 0 a free port"
        ) from error
    finally:
        deadline.cancel()
        waiting.cancel()
    # JAX calls abort() in a thread of its own where a process has died. Python's own handlers run
    # in the main thread, which then waits for a device for ever.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def alone() -> dict[str, str]:
    """The environment of a process that is to meet nobody, whatever this one's surroundings are.

    Those of a program that starts others, as each worker of a job may, are inherited: the programs
    that two workers had started would take each other for processes of one run.
    """
    return {**os.environ, **dict(zip(VARIABLES, ("localhost:1", "1", "0"), strict=True))}


def say(line: str, *, error: bool = False) -> None:
    """Prints a line, once for all processes, at once: it may announce a wait."""
    if processes.is_lead():
        print(line, file=sys.stderr if error else sys.stdout, flush=True)


def leave(code: int) -> NoReturn:
    """Ends this process with `code`; where there are others, so that they notice at once.

    The usual way out waits for all processes, some of which wait for this one.
    """
    global _leaving
    if processes.count() == 1:
        sys.exit(code)
    _leaving = code
    sys.stdout.flush()
    sys.stderr.flush()
    # The coordinator ends with process 0: others with an error of their own are let speak before.
    client: Any = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier("stepdistill/leave", 1000 * _LEAVING_SECONDS)
    os._exit(code)


def understood(error: Exception) -> InputError | None:
    """An error of a store or of the devices' memory, in the words of its remedy; else None."""
    return storage.failure(error) or device_memory.failure(error)


def end(error: Exception) -> None:
    """Ends this process because of `error`, where it is one of several; else does nothing.

    To be called before anything waits for the others, as the end of a checkpoint manager does.
    Where another process has ended, the exit code is `EXIT_UNAVAILABLE`: nothing is wrong with this
    one, but nor has anything been saved.
    """
    if processes.count() == 1:
        return
    error = understood(error) or error
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
        leave(error.exit_code)
    # A device that cannot be started for want of the others is a plain RuntimeError of JAX's.
    if isinstance(error, (RuntimeError, ValueError)) and _LOST.search(str(error)):
        reason = str(error).splitlines()[0][:200]
        _say(f"another process of this run has ended ({reason}); {_CONTINUES}")
        # Not by `leave`: the dead one does not come.
        os._exit(EXIT_UNAVAILABLE)
    traceback.print_exception(error)
    leave(1)


def _named() -> dict[str, Any] | None:
    """What `VARIABLES` say, as arguments of `jax.distributed.initialize`; None = it is alone."""
    values = {name: os.environ.get(name, "") for name in VARIABLES}
    lacking = [name for name, value in values.items() if not value]
    if lacking:
        found = ", ".join(f"{name}={value}" for name, value in values.items() if value)
        raise InputError(
            f"the environment has {found} but no {' and no '.join(lacking)}; set all of "
            f"{', '.join(VARIABLES)}, or none of them"
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
    """The first surroundings that JAX knows and that have more than one process."""
    settings: Any = jax.config
    platforms = settings.jax_platforms
    for kind in clusters.ClusterEnv._cluster_types:
        # A TPU host told to compute on its CPU is on its own.
        idle = "tpu" in kind.name and platforms is not None and "tpu" not in platforms.split(",")
        # JAX asks Kubernetes itself, which knows nothing of pods that belong to no job.
        alone = kind is clusters.K8sCluster and "JOB_COMPLETION_INDEX" not in os.environ
        if kind.opt_in_only_method or idle or alone:
            continue
        try:
            if not kind.is_env_present():
                continue
            several = kind.get_process_count() > 1
        except OSError as error:
            raise UnavailableError(
                f"whether this host is one of several cannot be found out ({kind.__name__}: "
                f"{error}); let it reach the metadata server, or set {', '.join(VARIABLES)}, the "
                "second to 1 where it is the only one"
            ) from error
        return {"cluster_detection_method": kind.name} if several else None
    return None


def _still_waiting() -> None:
    address = distributed.global_state.coordinator_address or "the coordinator's address"
    print(
        f"waiting for the other processes at {address}, {MEETING_SECONDS} s at most",
        file=sys.stderr,
        flush=True,
    )


def _nobody_came() -> None:
    """Ends this process, whose main thread waits inside JAX and cannot be interrupted."""
    # JAX itself may not know yet, while it asks for the name of a TPU host.
    address = distributed.global_state.coordinator_address or "the coordinator's address"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        what = (
            "process 0 is there, but not all of the others are: start every process, each with a "
            "number of its own"
        )
    except (OSError, ValueError):
        what = (
            "nothing answers there: start process 0 on that host, let the port through, or correct "
            "the address (JAX_COORDINATOR_ADDRESS)"
        )
    _say(f"the processes have not met at {address} within {MEETING_SECONDS} s; {what}")
    # A host may only have been slow: what supervises the run may start it again.
    os._exit(EXIT_UNAVAILABLE)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    del number
    if _leaving is not None:
        os._exit(_leaving)
    _say(f"aborted, as JAX does where another process has ended (see above); {_CONTINUES}")
    os._exit(EXIT_UNAVAILABLE)


def _say(message: str) -> None:
    """Writes one line past Python's buffers, whose locks another thread may hold."""
    several = processes.count()
    # Not known before the coordinator's address is.
    who = f"process {processes.index()} of {several}: " if several > 1 else ""
    os.write(2, f"error: {who}{message}\n".encode())
