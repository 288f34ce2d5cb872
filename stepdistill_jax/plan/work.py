"""FLOPs, memory traffic and collectives of a compiled program, loops counted as often as they run.

XLA's own analysis counts the body of a loop once, and the layers are a loop.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from stepdistill_jax.plan.hlo import Computation, Instruction, Module, parse
from stepdistill_jax.plan.traffic import CHAIN, traffic

# Opcode -> bytes that a device sends, over bytes that it gives in, for a group of n (ring
# algorithms, which send the least).
_SENT = {
    "all-gather": lambda n: n - 1.0,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
# Between slices the host sends, as the runtime is told beside the instruction: what it carries out
# -> the collective that it is; of one that is not here a device sends what it gives in.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEGASCALE = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
}
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')
# The compiler's own fusion of an all-reduce and the cutting of its result.
_SCATTERING = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """All uses of one kind of collective over the same mesh axes.

    Attributes:
        kind: as ``all-gather``.
        axis: mesh axes that it crosses, as ``fsdp`` or ``replica+fsdp``.
        between_slices: over DCN, by the hosts.
        count: how often a step runs it.
        sent: bytes that one device sends in a step.
        largest: bytes of the largest array that one of them leaves on a device.
    """

    kind: str
    axis: str
    between_slices: bool
    count: int
    sent: float
    largest: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does when the program runs once.

    Attributes:
        flops: of matrix products; a multiply-add counts as 2.
        hbm_bytes: read from and written to HBM by each instruction; what stays in on-chip memory
            between two of them does not count.
        collectives: by kind and axis.
        open_loops: loops whose number of rounds the text does not tell, counted once each.
    """

    flops: float
    hbm_bytes: float
    collectives: tuple[Collective, ...]
    open_loops: int


def work(text: str, mesh_shape: dict[str, int], loop_rounds: int = 1) -> Work:
    """Adds up a program's text.

    Args:
        text: of the compiled program.
        mesh_shape: axis -> size; the program's devices are the mesh's, in order.
        loop_rounds: rounds of loops that end when the data says so (decoding: the longest output).
    """
    module = parse(text)
    rounds, open_loops = _rounds(module, loop_rounds)
    fused = _fused_names(module)
    flops = hbm = 0.0
    chains: set[str] = set()
    moved: set[str] = set()
    found: dict[tuple[str, str, bool], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for name, times in rounds.items():
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            flops += times * _flops(computation, instruction)
            if name not in fused:
                hbm += times * traffic(module, computation, instruction, moved)
            kind = _kind(computation, instruction)
            if kind and not _continues(instruction, chains):
                axis, size = _axes(instruction, mesh_shape)
                if size > 1:
                    given = _given_bytes(computation, instruction)
                    entry = found[kind, axis, instruction.opcode == "send"]
                    entry[0] += times
                    entry[1] += times * given * _SENT[kind](size)
                    entry[2] = max(entry[2], _left(computation, instruction, kind, size))
    collectives = tuple(
        Collective(*key, int(count), sent, largest)
        for key, (count, sent, largest) in sorted(found.items())
    )
    return Work(flops, hbm, collectives, open_loops)


def _rounds(module: Module, loop_rounds: int) -> tuple[Counter[str], int]:
    """Computation -> how often it runs, and how many loops have no fixed number of rounds."""
    rounds: Counter[str] = Counter()
    open_loops = 0

    def visit(name: str, times: int) -> None:
        nonlocal open_loops
        rounds[name] += times
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                count = _trip_count(module, computation, instruction)
                open_loops += count is None
                visit(instruction.attribute("body"), times * (count or loop_rounds))
            elif instruction.opcode in ("fusion", "call", "conditional", "async-start"):
                for called in instruction.called:
                    visit(called, times)

    visit(module.entry, 1)
    return rounds, open_loops


def _trip_count(module: Module, around: Computation, loop: Instruction) -> int | None:
    """Rounds of a loop that counts from a constant to a constant by a constant; None of others.

    A scan counts by one; the compiler's own loops, which send parts of an operand while they
    multiply others, may do two rounds in one and count by two.
    """
    known = re.search(r'known_trip_count[^}]*"n":"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.attribute("condition")]
    root = condition.root
    if root.opcode != "compare" or root.attribute("direction") != "LT":
        return None
    counter, end = (condition.original(name) for name in root.operands)
    body = module.computations[loop.attribute("body")]
    index = counter.attribute("index")
    if counter.opcode != "get-tuple-element" or body.root.opcode != "tuple":
        return None
    start = around.original(loop.operands[0])
    if start.opcode != "tuple":
        return None
    first = _constant(around.original(start.operands[int(index)]))
    last, step = _constant(end), _step(body, index)
    if first is None or last is None or not step:
        return None
    return max(0, -(-(last - first) // step))


def _step(body: Computation, index: str) -> int | None:
    """What the body of a loop adds to entry `index` of its state; None where it is no constant."""
    added = body.original(body.root.operands[int(index)])
    if added.opcode != "add":
        return None
    before, constant = (body.original(name) for name in added.operands)
    if before.opcode == "constant":
        before, constant = constant, before
    if before.opcode == "get-tuple-element" and before.attribute("index") == index:
        return _constant(constant)
    return None


def _constant(instruction: Instruction) -> int | None:
    value = re.match(r"(\d+)\)", instruction.attributes)
    return int(value[1]) if instruction.opcode == "constant" and value else None


def _fused_names(module: Module) -> frozenset[str]:
    """Computations that are the inside of a fusion, which keeps what it computes on chip."""
    return frozenset(
        called
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
        for called in instruction.called
    )


def _flops(computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode == "dot":
        (left, *_), _ = computation.operand_arrays(instruction)[:2]
        contracted = _dims(instruction.attributes, "lhs_contracting_dims")
        return 2.0 * instruction.arrays[0].elements * math.prod(left.dims[d] for d in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    return 0.0


def _dims(attributes: str, name: str) -> list[int]:
    match = re.search(rf"{name}={{([\d,]*)}}", attributes)
    return [int(d) for d in match[1].split(",") if d] if match else []


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """A TPU's matrix products are convolutions; products with padding or holes do not count."""
    (left, *_), (right, *_) = computation.operand_arrays(instruction)[:2]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction.attributes
    inputs, kernel, output = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(instruction.attributes)))
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    # The kernel has the features of one group alone, so feature groups need no factor.
    products = left.dims[inputs.index("b")] // batch_groups
    products *= right.dims[kernel.index("o")] * right.dims[kernel.index("i")]
    for dimension in range(len(inputs) - 2):
        label = str(dimension)
        products *= _positions(
            left.dims[inputs.index(label)],
            right.dims[kernel.index(label)],
            instruction.arrays[0].dims[output.index(label)],
            {name: value.split("x")[dimension] for name, value in window.items()},
        )
    return 2.0 * products


def _window(attributes: str) -> str:
    match = re.search(r"window=\{([^}]*)\}", attributes)
    return match[1] if match else ""


def _positions(size: int, kernel: int, output: int, window: dict[str, str]) -> int:
    """Pairs of kernel and output position whose product is with an element of the input."""
    low = int(window.get("pad", "0_0").split("_")[0])
    stride, dilation, hole = (
        int(window.get(name, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate")
    )
    at = np.arange(output)[:, None] * stride - low + np.arange(kernel)[None, :] * dilation
    real = (at >= 0) & (at % hole == 0) & (at // hole < size)
    return int(np.count_nonzero(real))


def _kind(computation: Computation, instruction: Instruction) -> str:
    """The collective that an instruction is, "" for all others."""
    if instruction.opcode == "send":
        between = _BETWEEN_SLICES.search(instruction.attributes)
        return _MEGASCALE.get(between[1], "collective-permute") if between else ""
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and computation.name.startswith(_SCATTERING):
        return "reduce-scatter"
    return kind if kind in _SENT else ""


def _continues(instruction: Instruction, chains: set[str]) -> bool:
    """Whether it is a further part of a collective that several fusions carry out between them."""
    match = CHAIN.search(instruction.attributes)
    if not match or match[1] in chains:
        return bool(match)
    chains.add(match[1])
    return False


def _given_bytes(computation: Computation, instruction: Instruction) -> float:
    return sum(
        array.bytes for arrays in computation.operand_arrays(instruction) for array in arrays
    )


def _left(computation: Computation, instruction: Instruction, kind: str, size: int) -> float:
    """Bytes of the largest array that a collective leaves on a device."""
    given = [a.bytes for arrays in computation.operand_arrays(instruction) for a in arrays]
    factor = {"all-gather": float(size), "reduce-scatter": 1 / size}.get(kind, 1.0)
    return max(given, default=0.0) * factor


def _axes(instruction: Instruction, mesh_shape: dict[str, int]) -> tuple[str, int]:
    """The mesh axes that a collective crosses, and the devices of one of its groups.

    Slices differ in the first axis alone; of a collective between them a group has one device each.
    """
    if instruction.opcode == "send":
        slices = _SLICES.search(instruction.attributes)
        return next(iter(mesh_shape)), _count(slices[1]) if slices else 1
    devices = math.prod(mesh_shape.values())
    groups = [group for group in _groups(instruction.attributes, devices) if len(group) > 1]
    if not groups:
        return "", 1
    crossed = set()
    coordinates = np.stack(np.unravel_index(np.arange(devices), tuple(mesh_shape.values())), axis=1)
    for group in groups:
        places = coordinates[list(group)]
        crossed |= {
            axis for axis, column in zip(mesh_shape, places.T, strict=True) if len(set(column)) > 1
        }
    axes = "+".join(axis for axis in mesh_shape if axis in crossed)
    return axes, max(map(len, groups))


def _count(ranges: str) -> int:
    """How many numbers ``1,2`` or ``0:3`` name, whose ends both count."""
    ends = [part.split(":") for part in ranges.split(",")]
    return sum(1 + int(part[-1]) - int(part[0]) for part in ends)


def _groups(attributes: str, devices: int) -> Iterator[tuple[int, ...]]:
    """Groups of device positions of a collective, in each of the ways that XLA writes them."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        for source, target in re.findall(r"\{(\d+),(\d+)\}", pairs[1]):
            yield int(source), int(target)
        return
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        yield from _of_mesh(sizes, re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[2]))
        return
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, dims = ([int(x) for x in iota[i].split(",")] for i in (1, 2))
        order = [int(x) for x in iota[3].split(",")] if iota[3] else range(len(dims))
        ids = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
        yield from map(tuple, ids.tolist())
        return
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    groups = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    for group in groups:
        yield tuple(map(int, group.split(",")))
    if not groups:
        yield tuple(range(devices))


def _of_mesh(sizes: dict[str, int], axes: list[tuple[str, str, str]]) -> Iterator[tuple[int, ...]]:
    """Groups over axes, or over parts of axes ``(name, size before the part, size of it)``."""
    dims: list[int] = []
    grouped: list[int] = []
    for name, size in sizes.items():
        part = next((a for a in axes if a[0] == name), None)
        if part and part[1]:
            before, own = int(part[1]), int(part[2])
            grouped.append(len(dims) + 1)
            dims += [before, own, size // before // own]
        else:
            if part:
                grouped.append(len(dims))
            dims.append(size)
    ids = np.arange(math.prod(dims)).reshape(dims)
    rest = [d for d in range(len(dims)) if d not in grouped]
    span = math.prod(dims[d] for d in grouped)
    yield from map(
        tuple, ids.transpose(list(itertools.chain(rest, grouped))).reshape(-1, span).tolist()
    )
