"""The processes of one run: which is the lead, and what it alone does or decides for all.

All of it goes through JAX's coordination service. It needs no device and waits without a deadline;
a process that dies ends the others (`parallel.cluster`). Every process has to make the same calls
in the same order. A process that swallows an error and skips a call keeps the others waiting
forever. In a run of one process every call is free.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# Orbax reaches the service in the same way; JAX has no public one that does without devices.
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepdistill_jax.spec import InputError

T = TypeVar("T")

# How long a process waits for the slowest at a place that all pass.
_PASSING_MS = 1_800_000
# One look at the service; the waiting goes on after it.
_LOOK_MS = 60_000

_turns = itertools.count()


def count() -> int:
    """Processes of the run; starts no device."""
    return distributed.global_state.num_processes


def index() -> int:
    """This process, from 0; starts no device."""
    return distributed.global_state.process_id


def is_lead() -> bool:
    """Whether this process writes what a run writes once, and speaks for all."""
    return index() == 0


def from_lead(do: Callable[[], T]) -> T:
    """Runs `do` in the lead alone; every process gets what it returned or raised.

    Nobody goes on before the lead is done: what it wrote is there.

    Args:
        do: returns what can be pickled.

    Raises:
        Exception: the lead's own, whatever it is; in the others a RuntimeError that says the same
            where it cannot be pickled.
    """
    if count() == 1:
        return do()
    key = f"stepdistill/{next(_turns)}"
    client: Any = distributed.global_state.client
    if not is_lead():
        value, error = pickle.loads(_wait_for(client, key))
        if error is not None:
            raise error
        return value
    try:
        value = do()
        said = pickle.dumps((value, None))
    except Exception as error:  # whatever it is: the others wait to hear of it
        client.key_value_set_bytes(key, pickle.dumps((None, _portable(error))))
        raise
    client.key_value_set_bytes(key, said)
    return value


def lead_first(do: Callable[[], T]) -> T:
    """Runs `do` in the lead, then in every other process: they find what the lead has made.

    Raises:
        Exception: the lead's own, in every process (see `from_lead`); or a process's own.
    """
    done: list[T] = []
    if is_lead():
        from_lead(lambda: done.append(do()))
        return done[0]
    from_lead(lambda: None)
    return do()


def refuse_difference(what: str, value: str, remedy: str) -> None:
    """Refuses to go on where `value` is not the lead's.

    Raises:
        InputError: in the processes whose value is another.
    """
    lead = from_lead(lambda: value)
    if lead != value:
        raise InputError(
            f"process {index()} of {count()} has the {what} {value}, process 0 has {lead}; {remedy}"
        )


def gather(key: str, value: T) -> list[T]:
    """What every process has, in their order; nobody goes on before all have come.

    Where a process left something out because it failed, as others did not, they are of one mind
    again about what comes next.

    Args:
        key: of this gathering, used once in the life of the processes.
        value: what this process has; it can be pickled.
    """
    global _turns
    if count() == 1:
        return [value]
    client: Any = distributed.global_state.client
    client.key_value_set_bytes(f"{key}/{index()}", pickle.dumps((value, next(_turns))))
    found = [pickle.loads(_wait_for(client, f"{key}/{other}")) for other in range(count())]
    _turns = itertools.count(1 + max(turn for _, turn in found))
    return [value for value, _ in found]


def meet() -> None:
    """Nobody goes on before all have come."""
    if count() > 1:
        gather(f"stepdistill/meet/{next(_turns)}", None)


def connect(mesh: Mesh) -> None:
    """Lets the devices of every group along axes of the mesh make their first sum together.

    Gloo, by which CPUs of several processes add, gives a group 30 s to come together at its first
    sum: that of the train step would be missed by a process that compiles so much longer.
    """
    if count() == 1 or jax.default_backend() != "cpu":
        return
    client: Any = distributed.global_state.client
    client.wait_at_barrier(f"stepdistill/connect/{next(_turns)}", _PASSING_MS)
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    for length in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, length):
            # One dimension: a sum over two would be made of one over each axis.
            ones = np.ones(math.prod(mesh.shape[axis] for axis in chosen), np.float32)
            sharding = NamedSharding(mesh, PartitionSpec(chosen))
            total(jax.make_array_from_callback(ones.shape, sharding, ones.__getitem__))


def _portable(error: Exception) -> Exception:
    """`error`, or its words where it does not come back from a pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # the constructors of errors take what they like
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _wait_for(client: Any, key: str) -> bytes:
    while True:
        try:
            return client.blocking_key_value_get_bytes(key, _LOOK_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
