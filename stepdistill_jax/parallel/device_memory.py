"""What XLA says where the devices' memory does not suffice, and what helps against it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax

from stepdistill_jax.spec import InputError

REMEDY = (
    "lower BATCH_SIZE (for the decode EVAL_BATCH_SIZE), raise MICROBATCHES, set REMAT='full', take "
    "more devices, or on a GPU let JAX have more of it (XLA_PYTHON_CLIENT_MEM_FRACTION=0.95)"
)
_UNITS: Mapping[str, int] = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def exceeded(message: str) -> float | None:
    """Bytes of HBM that a program would need, of the compiler's words that it does not fit.

    None of other words: of another memory, too, which no smaller batch need mend.
    """
    if "RESOURCE_EXHAUSTED" not in message or re.search("memory space (?!hbm)", message):
        return None
    # It has two ways of saying so, before and after it has placed every array.
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
    return float(used[1]) * _UNITS[used[2]] if used else math.inf


def failure(error: BaseException) -> InputError | None:
    """What compiling or running raised for want of device memory, in one line; else None."""
    said = str(error)
    # A full disk is exhausted too, but in other words.
    is_jax = (
        isinstance(error, jax.errors.JaxRuntimeError)
        and exceeded(said) is not None
        and re.search("out of memory|allocat|memory space hbm", said, re.IGNORECASE)
    )
    # Of a recipe that is measured.
    is_torch = f"{type(error).__module__}.{type(error).__name__}" == "torch.OutOfMemoryError"
    if not is_jax and not is_torch:
        return None
    first = next(iter(said.splitlines()), "")
    return InputError(f"out of device memory: {first}; {REMEDY}")
