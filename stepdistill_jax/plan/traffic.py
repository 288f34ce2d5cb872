"""Bytes that the instructions of a compiled program read from and write to HBM."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stepdistill_jax.plan.hlo import Array, Computation, Instruction, Module

# A collective that several fusions carry out between them, while they compute.
CHAIN = re.compile(r'chain_id="(\d+)"')
# Instructions that move nothing, or whose parts are counted where they stand.
_FREE = frozenset(
    {
        *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "iota", "after-all"),
        *("while", "conditional", "call", "async-start", "async-update", "async-done"),
        *("copy-done", "slice-done", "all-gather-done", "all-reduce-done", "recv-done"),
        *("collective-permute-done", "partition-id", "replica-id", "opt-barrier", "send-done"),
        *("add-dependency", "recv"),
    }
)
_SLICES = ("dynamic-slice", "slice", "gather")
# A buffer that others write into.
_NO_CALL = 'custom_call_target="AllocateBuffer"'


def traffic(
    module: Module, computation: Computation, instruction: Instruction, moved: set[str]
) -> float:
    """Bytes of HBM that an instruction outside fusions reads and writes.

    Args:
        module: the program.
        computation: that the instruction is of.
        instruction: it.
        moved: chains whose bytes are counted already; is added to.
    """
    opcode = instruction.opcode
    if opcode in _FREE or _NO_CALL in instruction.attributes:
        return 0.0
    operands = computation.operand_arrays(instruction)
    if opcode == "fusion":
        inside = module.computations[instruction.called[0]]
        return _read_in_fusion(inside, moved) + _written_by_fusion(inside, moved)
    if opcode in _SLICES:
        (result,) = instruction.arrays
        return result.bytes * (operands[0][0].in_hbm + result.in_hbm)
    if opcode == "slice-start":
        source, result = instruction.arrays[:2]
        return result.bytes * (source.in_hbm + result.in_hbm)
    if opcode == "dynamic-update-slice":
        return _hbm(operands[1]) + _updated(instruction, operands[1])
    if opcode == "scatter":
        # It adds to what it finds.
        return sum(map(_hbm, operands[1:])) + 2 * _updated(instruction, operands[-1])
    if opcode == "send":
        return _hbm(operands[0])
    if opcode.endswith("-start") and opcode != "all-reduce-start":
        # Operand and result are both of its type.
        return _hbm(instruction.arrays)
    return _hbm(instruction.arrays) + sum(map(_hbm, operands))


def _updated(instruction: Instruction, update: Sequence[Array]) -> float:
    """Bytes that an update in place writes into HBM."""
    return sum(array.bytes for array in update) * instruction.arrays[0].in_hbm


def _read_in_fusion(inside: Computation, moved: set[str]) -> float:
    """A fusion reads what it uses of its operands; what it hands on or overwrites, it does not."""
    total = 0.0
    for parameter in inside.instructions.values():
        if parameter.opcode != "parameter" or not _hbm(parameter.arrays):
            continue
        users = [user for user in _users(inside, parameter.name) if not _hands_on(user)]
        users = [user for user in users if not _goes_on(user, moved)]
        if all(_takes_of(inside, user, parameter.name) for user in users):
            total += sum(user.arrays[0].bytes for user in users)
        elif any(not _overwrites(inside, user, parameter.name) for user in users):
            total += _hbm(parameter.arrays)
    return total


def _written_by_fusion(inside: Computation, moved: set[str]) -> float:
    """A fusion writes its results: of an update in place the update, of a chain its end, once."""
    results = inside.root.operands if inside.root.opcode == "tuple" else (inside.root.name,)
    total = 0.0
    for name in results:
        made = inside.original(name, through=("bitcast",))
        if made.opcode == "dynamic-update-slice":
            total += _updated(made, inside.operand_arrays(made)[1])
        elif made.opcode != "parameter" and not _goes_on(made, moved):
            total += _hbm(made.arrays)
    # Only now: its first fusion reads the operand and writes the result.
    moved |= {
        found[1] for i in inside.instructions.values() if (found := CHAIN.search(i.attributes))
    }
    return total


def _users(computation: Computation, name: str) -> list[Instruction]:
    """What reads `name`, or the same bytes by another name."""
    found: list[Instruction] = []
    for user in computation.users(name):
        found += _users(computation, user.name) if user.opcode == "bitcast" else [user]
        if user.opcode == "bitcast" and user.root:
            found.append(user)
    return found


def _hands_on(user: Instruction) -> bool:
    """Whether a use of a parameter is that it is a result, as it came."""
    return user.root and user.opcode == "tuple"


def _goes_on(instruction: Instruction, moved: set[str]) -> bool:
    """Whether it is a collective whose bytes an earlier fusion of its chain has moved."""
    chain = CHAIN.search(instruction.attributes)
    return chain is not None and chain[1] in moved


def _takes_of(inside: Computation, user: Instruction, name: str) -> bool:
    """Whether `user` reads no more of `name` than its own result."""
    if user.opcode not in _SLICES:
        return False
    return inside.original(user.operands[0], through=("bitcast",)).name == name


def _overwrites(inside: Computation, user: Instruction, name: str) -> bool:
    """Whether `user` writes a part of `name` in place and reads nothing of it."""
    if user.opcode != "dynamic-update-slice":
        return False
    buffer, update = (inside.original(x, through=("bitcast",)).name for x in user.operands[:2])
    return buffer == name != update


def _hbm(arrays: Sequence[Array]) -> float:
    return sum(array.bytes for array in arrays if array.in_hbm)
