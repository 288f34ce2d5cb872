"""Calls a function in a process of its own, so that a compiler that crashes ends that one alone."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")


class CrashedError(Exception):
    """The process ended without an answer."""


class Isolated:
    """One process that answers calls in turn; a new one takes its place after a crash."""

    def __init__(self) -> None:
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)``, which both have to be picklable; it raises what that raises.

        Raises:
            CrashedError: the process died.
        """
        if self._pool is None:
            # Not forked: JAX's threads would not come along.
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
        try:
            return self._pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            self._close()
            raise CrashedError from error

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
