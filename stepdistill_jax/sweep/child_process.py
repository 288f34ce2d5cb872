"""Child processes of a sweep or a batch evaluation: start, stop signals, reason of a failure."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from stepdistill_jax.parallel import cluster


def start(module: str, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
    """Starts ``python -m module arguments`` without standard input, as a run of one process.

    It has its own session: Ctrl-C reaches only this program, which passes it on as SIGTERM.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=cluster.alone(),
        **options,
    )


@contextlib.contextmanager
def on_stop_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` at SIGTERM and Ctrl-C, which then do not end this program."""

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failure(output: str, code: int) -> str:
    """One line on why a process failed: its exit code and its last error or line of output."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in output.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["no output"])[-1]
    return f"exit code {code}: {last.removeprefix('error: ')}"
