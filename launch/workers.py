"""Which worker of how many a program is: the flags --worker and --workers, else the environment."""

from __future__ import annotations

import os

from absl import flags

from stepdistill_jax.spec import InputError

_WORKER = flags.DEFINE_integer(
    "worker", None, "Which worker this is, from 0; else the environment says."
)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "How many there are; else the environment says, else 1."
)


def given(prefix: str) -> tuple[int, int]:
    """(worker, workers), from the flags, else from ``<prefix>_WORKER`` and ``<prefix>_WORKERS``.

    Raises:
        InputError: a variable is no whole number.
    """
    return (
        _number(_WORKER.value, f"{prefix}_WORKER", 0),
        _number(_WORKERS.value, f"{prefix}_WORKERS", 1),
    )


def _number(flag: int | None, variable: str, default: int) -> int:
    if flag is not None:
        return flag
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise InputError(f"{variable}={text!r} in the environment: expected a whole number")
    return int(text)
