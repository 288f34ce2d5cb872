"""A separate process that compiles, so that a crash of the compiler does not end this one."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


class CompilerCrashedError(Exception):
    """The process ended without a result; the message says how."""


class CompilerProcess:
    """A process that runs one call after another; restarted after a crash."""

    def __init__(self) -> None:
        # JAX's threads do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._process: multiprocessing.context.SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> CompilerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            # It holds nothing to clean up, and on SIGTERM it would print a stack trace.
            self._process.kill()
        self._close()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Returns or raises what ``function(*args)`` does; all of it must be picklable.

        Raises:
            CompilerCrashedError: the process died.
        """
        if self._pipe is None:
            self._pipe, child_pipe = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(child_pipe,), daemon=True)
            self._process.start()
            child_pipe.close()
        try:
            self._pipe.send((function, args))
            succeeded, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise CompilerCrashedError(_describe_exit(self._close())) from error
        if not succeeded:
            raise value
        return value

    def _close(self) -> int | None:
        """Waits for the process to end; returns its exit code."""
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


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the compiler ended with exit code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return f"the compiler was killed ({name}). Free host memory and try again."
    return f"the compiler crashed ({name}). Try another mesh, REMAT or PRNG_IMPL."
