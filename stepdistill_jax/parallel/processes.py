"""The processes of one run: the lead, and what it does or decides for all.

The functions use JAX's coordination service. They need no device and wait without a deadline; a
process that dies ends the others (`parallel.cluster`). Every process must make the same calls in
the same order: one that catches an error and skips a call makes the others wait forever. With one
process, every call is free. What they tell each other is JSON: nothing that arrives over the
network is run.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# As Orbax does: the public functions of JAX need devices.
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepdistill_jax.spec import InputError, UnavailableError

T = TypeVar("T")

# Maximum wait for the slowest process at a barrier.
_BARRIER_MS = 1_800_000
# Timeout of one request to the service; the wait repeats it.
_REQUEST_MS = 60_000

# Errors that arrive as what they were, since their exit codes differ.
_ERRORS = {kind.__name__: kind for kind in (InputError, UnavailableError)}

_turns = itertools.count()


def count() -> int:
    """Processes of the run; starts no device."""
    return distributed.global_state.num_processes


def index() -> int:
    """This process, from 0; starts no device."""
    return distributed.global_state.process_id


def is_lead() -> bool:
    """Whether this process writes the files that a run writes once, and prints for all."""
    return index() == 0


def from_lead(do: Callable[[], T]) -> T:
    """Runs `do` in the lead alone; every process gets what it returned or raised.

    No process continues before the lead is done, so all see the files that it wrote.

    Args:
        do: returns what JSON can hold, without tuples.

    Raises:
        Exception: the lead's; the other processes raise a RuntimeError with its text, unless it is
            an InputError.
    """
    if count() == 1:
        return do()
    key = f"stepdistill/{next(_turns)}"
    client: Any = distributed.global_state.client
    if not is_lead():
        told = json.loads(_wait_for(client, key))
        if "error" in told:
            kind, text = told["error"]
            raise _ERRORS[kind](text) if kind in _ERRORS else RuntimeError(f"{kind}: {text}")
        value: T = told["value"]
        return value
    try:
        value = do()
        message = json.dumps({"value": value})
    except Exception as error:  # Whatever it is, the others wait for it.
        told = {"error": (type(error).__name__, str(error))}
        client.key_value_set_bytes(key, json.dumps(told).encode())
        raise
    client.key_value_set_bytes(key, message.encode())
    return value


def lead_first(do: Callable[[], T]) -> T:
    """Runs `do` in the lead, then in every other process, which can use what the lead made.

    Raises:
        Exception: the lead's, in every process (see `from_lead`); or that of the process itself.
    """
    done: list[T] = []
    if is_lead():
        from_lead(lambda: done.append(do()))
        return done[0]
    from_lead(lambda: None)
    return do()


def refuse_difference(what: str, value: str, remedy: str) -> None:
    """Raises InputError in the processes whose `value` differs from the lead's."""
    lead = from_lead(lambda: value)
    if lead != value:
        raise InputError(
            f"process {index()} of {count()} has the {what} {value}, process 0 has {lead}. {remedy}"
        )


def gather(key: str, value: T) -> list[T]:
    """The values of all processes, in their order; waits for every process.

    Afterwards the processes agree on the next call again, even if a failure made one of them skip
    calls before.

    Args:
        key: of this call; no key is used twice.
        value: this process's; JSON can hold it, and it contains no tuple.
    """
    global _turns
    if count() == 1:
        return [value]
    client: Any = distributed.global_state.client
    told = json.dumps([value, next(_turns)])
    client.key_value_set_bytes(f"{key}/{index()}", told.encode())
    gathered = [json.loads(_wait_for(client, f"{key}/{other}")) for other in range(count())]
    _turns = itertools.count(1 + max(turn for _, turn in gathered))
    return [value for value, _ in gathered]


def meet() -> None:
    """Waits until every process has called it."""
    if count() > 1:
        gather(f"stepdistill/meet/{next(_turns)}", None)


def connect(mesh: Mesh) -> None:
    """On CPUs, makes every group of devices along mesh axes compute its first sum now.

    Gloo, the CPU backend for sums over processes, waits only 30 s for a group's first sum. In the
    train step, a process that compiles longer than the others would miss it.
    """
    if count() == 1 or jax.default_backend() != "cpu":
        return
    client: Any = distributed.global_state.client
    client.wait_at_barrier(f"stepdistill/connect/{next(_turns)}", _BARRIER_MS)
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    for length in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, length):
            # One dimension, since XLA would split a sum over two into one for each axis.
            ones = np.ones(math.prod(mesh.shape[axis] for axis in chosen), np.float32)
            sharding = NamedSharding(mesh, PartitionSpec(chosen))
            total(jax.make_array_from_callback(ones.shape, sharding, ones.__getitem__))


def _wait_for(client: Any, key: str) -> bytes:
    while True:
        try:
            return client.blocking_key_value_get_bytes(key, _REQUEST_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
