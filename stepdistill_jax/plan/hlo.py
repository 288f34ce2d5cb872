"""Reads a compiled program's text (HLO): computations, instructions, shapes, attributes."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1,
    "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a type: element type, dimensions, and whether it lies in the device's HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        return self.elements * _BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without ``%``.
        opcode: as ``all-gather-start``.
        arrays: of its result, a tuple's in order.
        operands: names.
        attributes: the text behind the operands.
        root: the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        names = _CALLED.findall(self.attributes)
        for listed in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in listed.split(",")]
        return tuple(names)

    def attribute(self, name: str) -> str:
        """Value of an attribute without blanks or braces, "" where it is not given."""
        match = re.search(rf"\b{name}=%?([^,\s]+)", self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass
class Computation:
    """A named list of instructions; operands are of the same computation."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """Its result."""
        return next(i for i in self.instructions.values() if i.root)

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read `name`."""
        return [i for i in self.instructions.values() if name in i.operands]

    def operand_arrays(self, instruction: Instruction) -> list[tuple[Array, ...]]:
        """The arrays of each operand of one of its instructions."""
        return [self.instructions[name].arrays for name in instruction.operands]

    def original(self, name: str, through: tuple[str, ...] = ("copy", "bitcast")) -> Instruction:
        """The instruction whose result `name` is, seen through those opcodes."""
        found = self.instructions[name]
        while found.opcode in through:
            found = self.instructions[found.operands[0]]
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A program."""

    entry: str
    computations: dict[str, Computation]


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, as ``(f32[2,3]{1,0:T(8,128)}, u32[])``."""
    return tuple(
        # S(n) names another memory than the first one, HBM.
        Array(dtype, tuple(map(int, dims.split(","))) if dims else (), "S(" not in layout)
        for dtype, dims, layout in _ARRAY.findall(text)
        if dtype in _BYTES
    )


def parse(text: str) -> Module:
    """A program's text as XLA prints it."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match and current is not None:
            instruction = _instruction(match, line[match.end() :])
            current.instructions[instruction.name] = instruction
        elif line.endswith("{") and not line.startswith(("HloModule", " ")):
            is_entry = line.startswith("ENTRY ")
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            current = computations[name] = Computation(name, {})
            entry = name if is_entry else entry
    return Module(entry, computations)


def _instruction(head: re.Match[str], rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    # A tuple's layout may follow it; the opcode stands before the next parenthesis.
    opening = rest.index("(", end)
    opcode = rest[end:opening].split()[-1]
    closing = _closing(rest, opening)
    return Instruction(
        name=head[2],
        opcode=opcode,
        arrays=arrays(rest[:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", rest[opening:closing])),
        attributes=rest[opening + 1 :] if opcode in ("constant", "parameter") else rest[closing:],
        root=bool(head[1]),
    )


def _closing(text: str, opening: int) -> int:
    """Position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[:200]}")
