"""The worker number of a program: flags --worker and --workers, or environment variables."""

from __future__ import annotations

import os

from absl import flags

from stepdistill_jax.spec import InputError

_WORKER = flags.DEFINE_integer(
    "worker", None, "Number of this worker, from 0; default: environment variable, else 0."
)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Number of workers; default: environment variable, else 1."
)


def read(prefix: str) -> tuple[int, int]:
    """(worker, workers), from the flags, else ``<prefix>_WORKER`` and ``<prefix>_WORKERS``.

    Raises:
        InputError: a variable is not a whole number, or there is no such worker.
    """
    worker = _number(_WORKER.value, f"{prefix}_WORKER", 0)
    workers = _number(_WORKERS.value, f"{prefix}_WORKERS", 1)
    if not 0 <= worker < workers:
        raise InputError(
            f"worker {worker} of {workers}: expected 0 to {workers - 1}. Set --worker and "
            f"--workers, or {prefix}_WORKER and {prefix}_WORKERS in the environment."
        )
    return worker, workers


def _number(flag: int | None, variable: str, default: int) -> int:
    if flag is not None:
        return flag
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise InputError(f"environment variable {variable}: got {text!r}, expected a whole number.")
    return int(text)
