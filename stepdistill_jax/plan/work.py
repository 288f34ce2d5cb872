"""FLOPs, HBM traffic and collectives of a compiled program, counting every loop iteration.

XLA's cost analysis counts the body of a loop once, but scanned layers are a loop.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from stepdistill_jax.plan.hbm_traffic import CHAIN, traffic
from stepdistill_jax.plan.hlo import Computation, Instruction, Module, parse

# Opcode -> bytes that a device sends per byte of operand, in a group of n devices (ring algorithms,
# which send the fewest bytes).
_SENT = {
    "all-gather": lambda n: n - 1.0,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
# Between slices the hosts send. The attribute that tells the runtime what to do -> the collective;
# for any other value a device sends its operand.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEGASCALE = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
}
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')
# The compiler's fusion of an all-reduce and a slice of its result.
_SCATTERING = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """All uses of one kind of collective over the same mesh axes.

    Attributes:
        kind: as ``all-gather``.
        axis: mesh axes, as ``fsdp`` or ``replica+fsdp``.
        between_slices: over DCN, by the hosts.
        count: executions in a step.
        sent: bytes that one device sends in a step.
        largest: bytes of the largest result on a device.
    """

    kind: str
    axis: str
    between_slices: bool
    count: int
    sent: float
    largest: float


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one device when the program runs once.

    Attributes:
        flops: of matrix products; a multiply-add counts as 2.
        hbm_bytes: read from and written to HBM; values that stay in on-chip memory do not count.
        collectives: by kind and axis.
        open_loops: loops whose number of iterations is not in the text.
    """

    flops: float
    hbm_bytes: float
    collectives: tuple[Collective, ...]
    open_loops: int


def work(text: str, mesh_shape: dict[str, int], open_loop_rounds: int = 1) -> Work:
    """Adds up the work of a program's text.

    Args:
        text: of the compiled program.
        mesh_shape: axis -> size; the program's devices are the mesh's, in order.
        open_loop_rounds: assumed iterations of loops that the data ends (decoding: the maximum
            number of output tokens).
    """
    module = parse(text)
    rounds, open_loops = _rounds(module, open_loop_rounds)
    fused = _fused_names(module)
    flops = hbm = 0.0
    chains: set[str] = set()
    moved: set[str] = set()
    totals: dict[tuple[str, str, bool], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
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
                    sizes = _operand_bytes(computation, instruction)
                    entry = totals[kind, axis, instruction.opcode == "send"]
                    entry[0] += times
                    entry[1] += times * sum(sizes) * _SENT[kind](size)
                    growth = {"all-gather": float(size), "reduce-scatter": 1 / size}.get(kind, 1.0)
                    entry[2] = max(entry[2], max(sizes, default=0.0) * growth)
    collectives = tuple(
        Collective(*key, int(count), sent, largest)
        for key, (count, sent, largest) in sorted(totals.items())
    )
    return Work(flops, hbm, collectives, open_loops)


def _rounds(module: Module, open_loop_rounds: int) -> tuple[Counter[str], int]:
    """Computation -> number of executions, and the number of loops without a fixed trip count."""
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
                visit(instruction.attribute("body"), times * (count or open_loop_rounds))
            elif instruction.opcode in ("fusion", "call", "conditional", "async-start"):
                for called in instruction.called:
                    visit(called, times)

    visit(module.entry, 1)
    return rounds, open_loops


def _trip_count(module: Module, around: Computation, loop: Instruction) -> int | None:
    """Iterations of a loop that counts between constants by a constant; None for other loops.

    A scan counts by one. The compiler's own loops, which overlap sending and multiplying, may be
    unrolled and count by two.
    """
    attribute = re.search(r'known_trip_count[^}]*"n":"?(\d+)', loop.attributes)
    if attribute:
        return int(attribute[1])
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
    """The constant that a loop's body adds to entry `index` of its state; None = not a constant."""
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
    """Computations inside fusions, which keep intermediate values on chip."""
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
    """FLOPs of a convolution, which a TPU uses for matrix products; padding does not count."""
    (left, *_), (right, *_) = computation.operand_arrays(instruction)[:2]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction.attributes
    inputs, kernel, output = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(instruction.attributes)))
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    # The kernel has the features of one group, so feature groups need no factor.
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
    """Pairs of kernel and output positions that read an element of the input."""
    low = int(window.get("pad", "0_0").split("_")[0])
    stride, dilation, hole = (
        int(window.get(name, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate")
    )
    inputs = np.arange(output)[:, None] * stride - low + np.arange(kernel)[None, :] * dilation
    return int(np.count_nonzero((inputs >= 0) & (inputs % hole == 0) & (inputs // hole < size)))


def _kind(computation: Computation, instruction: Instruction) -> str:
    """The collective that an instruction executes, "" if none."""
    if instruction.opcode == "send":
        between = _BETWEEN_SLICES.search(instruction.attributes)
        return _MEGASCALE.get(between[1], "collective-permute") if between else ""
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and computation.name.startswith(_SCATTERING):
        return "reduce-scatter"
    return kind if kind in _SENT else ""


def _continues(instruction: Instruction, chains: set[str]) -> bool:
    """Whether it continues a collective of several fusions; adds new ones to `chains`."""
    match = CHAIN.search(instruction.attributes)
    if not match or match[1] in chains:
        return bool(match)
    chains.add(match[1])
    return False


def _operand_bytes(computation: Computation, instruction: Instruction) -> list[float]:
    return [a.bytes for arrays in computation.operand_arrays(instruction) for a in arrays]


def _axes(instruction: Instruction, mesh_shape: dict[str, int]) -> tuple[str, int]:
    """The mesh axes of a collective, and the size of its groups.

    Slices differ in the first axis only; a group between slices has one device of each slice.
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
    """Count of the numbers in ``1,2`` or ``0:3``; a range includes both ends."""
    ends = [part.split(":") for part in ranges.split(",")]
    return sum(1 + int(part[-1]) - int(part[0]) for part in ends)


def _groups(attributes: str, devices: int) -> Iterator[tuple[int, ...]]:
    """Groups of device positions of a collective, in any of XLA's notations."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        for source, target in re.findall(r"\{(\d+),(\d+)\}", pairs[1]):
            yield int(source), int(target)
        return
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        yield from _mesh_groups(sizes, re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[2]))
        return
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, dims = ([int(x) for x in iota[i].split(",")] for i in (1, 2))
        order = [int(x) for x in iota[3].split(",")] if iota[3] else range(len(dims))
        ids = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
        yield from map(tuple, ids.tolist())
        return
    lists = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    groups = re.findall(r"\{([\d,]+)\}", lists[1]) if lists else []
    for group in groups:
        yield tuple(map(int, group.split(",")))
    if not groups:
        yield tuple(range(devices))


def _mesh_groups(
    sizes: dict[str, int], axes: list[tuple[str, str, str]]
) -> Iterator[tuple[int, ...]]:
    """Groups over (parts of) axes, each ``(name, size before the part, size of the part)``."""
    dims: list[int] = []
    grouped: list[int] = []
    for name, size in sizes.items():
        part = next((a for a in axes if a[0] == name), None)
        if part and part[1]:
            before, inside = int(part[1]), int(part[2])
            grouped.append(len(dims) + 1)
            dims += [before, inside, size // before // inside]
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
