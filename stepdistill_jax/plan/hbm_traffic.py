"""Bytes of HBM that the instructions of a compiled program read and write."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stepdistill_jax.plan.hlo import Array, Computation, Instruction, Module

# A collective that several fusions execute together while they compute.
CHAIN = re.compile(r'chain_id="(\d+)"')
# Instructions that move nothing, or whose parts are counted separately.
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
# A buffer that other instructions write to.
_ALLOCATION = 'custom_call_target="AllocateBuffer"'


def traffic(
    module: Module, computation: Computation, instruction: Instruction, moved: set[str]
) -> float:
    """Bytes of HBM that an instruction outside fusions reads and writes.

    Args:
        module: the program.
        computation: of the instruction.
        instruction: the instruction.
        moved: chains whose bytes are already counted; updated in place.
    """
    opcode = instruction.opcode
    if opcode in _FREE or _ALLOCATION in instruction.attributes:
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
        # It reads and writes the elements that it updates.
        return sum(map(_hbm, operands[1:])) + 2 * _updated(instruction, operands[-1])
    if opcode == "send":
        return _hbm(operands[0])
    if opcode.endswith("-start") and opcode != "all-reduce-start":
        # Its type contains both operand and result.
        return _hbm(instruction.arrays)
    return _hbm(instruction.arrays) + sum(map(_hbm, operands))


def _updated(instruction: Instruction, update: Sequence[Array]) -> float:
    """Bytes that an in-place update writes to HBM."""
    return sum(array.bytes for array in update) * instruction.arrays[0].in_hbm


def _read_in_fusion(inside: Computation, moved: set[str]) -> float:
    """Bytes of the operands that a fusion uses, without those passed on or overwritten."""
    total = 0.0
    for parameter in inside.instructions.values():
        if parameter.opcode != "parameter" or not _hbm(parameter.arrays):
            continue
        users = [user for user in _users(inside, parameter.name) if not _passes_on(user)]
        users = [user for user in users if not _is_counted(user, moved)]
        if all(_slices(inside, user, parameter.name) for user in users):
            total += sum(user.arrays[0].bytes for user in users)
        elif any(not _overwrites(inside, user, parameter.name) for user in users):
            total += _hbm(parameter.arrays)
    return total


def _written_by_fusion(inside: Computation, moved: set[str]) -> float:
    """Bytes of a fusion's results: of an in-place update only the update, of a chain once."""
    results = inside.root.operands if inside.root.opcode == "tuple" else (inside.root.name,)
    total = 0.0
    for name in results:
        result = inside.original(name, through=("bitcast",))
        if result.opcode == "dynamic-update-slice":
            total += _updated(result, inside.operand_arrays(result)[1])
        elif result.opcode != "parameter" and not _is_counted(result, moved):
            total += _hbm(result.arrays)
    # Last, because the chain's first fusion reads the operand and writes the result.
    moved |= {
        chain[1] for i in inside.instructions.values() if (chain := CHAIN.search(i.attributes))
    }
    return total


def _users(computation: Computation, name: str) -> list[Instruction]:
    """Instructions that read `name`, directly or through a bitcast."""
    users: list[Instruction] = []
    for user in computation.users(name):
        users += _users(computation, user.name) if user.opcode == "bitcast" else [user]
        if user.opcode == "bitcast" and user.root:
            users.append(user)
    return users


def _passes_on(user: Instruction) -> bool:
    """Whether `user` returns a parameter unchanged."""
    return user.root and user.opcode == "tuple"


def _is_counted(instruction: Instruction, moved: set[str]) -> bool:
    """Whether an earlier fusion of its chain has moved the bytes of a collective."""
    chain = CHAIN.search(instruction.attributes)
    return chain is not None and chain[1] in moved


def _slices(inside: Computation, user: Instruction, name: str) -> bool:
    """Whether `user` reads only a slice of `name`."""
    if user.opcode not in _SLICES:
        return False
    return inside.original(user.operands[0], through=("bitcast",)).name == name


def _overwrites(inside: Computation, user: Instruction, name: str) -> bool:
    """Whether `user` overwrites a part of `name` without reading it."""
    if user.opcode != "dynamic-update-slice":
        return False
    buffer, update = (inside.original(x, through=("bitcast",)).name for x in user.operands[:2])
    return buffer == name != update


def _hbm(arrays: Sequence[Array]) -> float:
    return sum(array.bytes for array in arrays if array.in_hbm)
