"""Parses the text of a compiled program (HLO): computations, instructions, shapes, attributes."""

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
    """An array type: element type, dimensions, and whether it is in HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        """Number of elements of the array."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Size without padding."""
        return self.elements * _BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without ``%``.
        opcode: as ``all-gather-start``.
        arrays: of the result; the elements of a tuple in order.
        operands: their names.
        attributes: the text after the operands.
        root: whether it is the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of called computations."""
        names = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return tuple(names)

    def attribute(self, name: str) -> str:
        """Value of an attribute without blanks or braces; "" = the attribute is missing."""
        match = re.search(rf"\b{name}=%?([^,\s]+)", self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass
class Computation:
    """Named instructions; all operands belong to the same computation."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction that computes the result."""
        return next(i for i in self.instructions.values() if i.root)

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read `name`."""
        return [i for i in self.instructions.values() if name in i.operands]

    def operand_arrays(self, instruction: Instruction) -> list[tuple[Array, ...]]:
        """The arrays of each operand."""
        return [self.instructions[name].arrays for name in instruction.operands]

    def original(self, name: str, through: tuple[str, ...] = ("copy", "bitcast")) -> Instruction:
        """The instruction that computes `name`, skipping the opcodes of `through`."""
        instruction = self.instructions[name]
        while instruction.opcode in through:
            instruction = self.instructions[instruction.operands[0]]
        return instruction


@dataclasses.dataclass(frozen=True)
class Module:
    """A program; `entry` names its first computation."""

    entry: str
    computations: dict[str, Computation]


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays in a type such as ``(f32[2,3]{1,0:T(8,128)}, u32[])``."""
    return tuple(
        # S(n) is a memory space other than HBM.
        Array(dtype, tuple(map(int, dims.split(","))) if dims else (), "S(" not in layout)
        for dtype, dims, layout in _ARRAY.findall(text)
        if dtype in _BYTES
    )


def parse(text: str) -> Module:
    """Parses the text that XLA prints."""
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
    # A layout may follow a tuple type; the opcode precedes the next parenthesis.
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
