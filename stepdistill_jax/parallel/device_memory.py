"""XLA's out-of-memory errors, as one line with a remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax

from stepdistill_jax.spec import InputError

REMEDY = (
    "Lower BATCH_SIZE (EVAL_BATCH_SIZE in evaluation), raise MICROBATCHES, set REMAT='full', use "
    "more devices, or on a GPU let JAX reserve more memory (XLA_PYTHON_CLIENT_MEM_FRACTION=0.95)."
)
_UNITS: Mapping[str, int] = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def exceeded(message: str) -> float | None:
    """Bytes of HBM that a program needs, from the compiler's message that it does not fit.

    None for other messages, also those about another kind of memory, which a smaller batch may
    not help. Infinite if the message names no size.
    """
    if "RESOURCE_EXHAUSTED" not in message or re.search("memory space (?!hbm)", message):
        return None
    # The message has two forms, before and after the compiler has placed every array.
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
    return float(used[1]) * _UNITS[used[2]] if used else math.inf


def failure(error: BaseException) -> InputError | None:
    """An out-of-memory error of a device as one line with a remedy; None for other errors."""
    message = str(error)
    # A full disk is RESOURCE_EXHAUSTED too, with another text.
    is_jax = (
        isinstance(error, jax.errors.JaxRuntimeError)
        and exceeded(message) is not None
        and re.search("out of memory|allocat|memory space hbm", message, re.IGNORECASE)
    )
    # Raised by the PyTorch recipe of the benchmark.
    is_torch = f"{type(error).__module__}.{type(error).__name__}" == "torch.OutOfMemoryError"
    if not is_jax and not is_torch:
        return None
    # One sentence, since the remedy begins with the second one.
    reason = re.sub(r"\.\s+(?=[A-Z])", "; ", next(iter(message.splitlines()), "")).rstrip(".")
    return InputError(f"out of device memory: {reason}. {REMEDY}")
