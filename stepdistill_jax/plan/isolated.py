"""Calls a function in a process of its own, so that a compiler that crashes ends that one alone."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


class CrashedError(Exception):
    """The process ended without an answer; says how."""


class Isolated:
    """One process that answers calls in turn; a new one takes its place after a crash."""

    def __init__(self) -> None:
        # Not forked: JAX's threads would not come along.
        self._context = multiprocessing.get_context("spawn")
        self._process: multiprocessing.context.SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            # It has nothing to clear up, and at SIGTERM it would print a trace.
            self._process.kill()
        self._close()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)``, which both have to be picklable; it raises what that raises.

        Raises:
            CrashedError: the process died.
        """
        if self._pipe is None:
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._pipe.send((function, args))
            answered, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise CrashedError(_end(self._close())) from error
        if not answered:
            raise value
        return value

    def _close(self) -> int | None:
        """Waits for the process and forgets it; its exit code."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is None:
            return None
        process.join()
        return process.exitcode


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args)))
        except Exception as error:
            pipe.send((False, error))


def _end(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the compiler ended with exit code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return f"the compiler was killed ({name}); has this machine enough memory?"
    return f"the compiler crashed ({name}); try another mesh, REMAT or PRNG_IMPL"
