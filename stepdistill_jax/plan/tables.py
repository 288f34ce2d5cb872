"""Plans as text for readers and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from stepdistill_jax.parallel.chips import GIB, Chip
from stepdistill_jax.plan.program import DECODE, Program
from stepdistill_jax.plan.roofline import Bound, bound
from stepdistill_jax.text import columns


@dataclasses.dataclass(frozen=True)
class Planned:
    """One program on one mesh of one topology.

    Attributes:
        topology: its name.
        chip: of it.
        slices: of it.
        devices: of it.
        mesh: axis -> size.
        remat: policy of the model.
        scan_layers: whether layers are scanned.
        rows: of a train batch, or decoded at once, over all devices, with those that fill it up.
        pairs: that those rows hold, in the mean; None where it is not known.
        about: what else the program was compiled for.
        parameters: of the model, in all.
        model_flops: what the method needs of all devices (`model.flops`); None of decoding.
        held: bytes that a device of a training run holds beside this program.
        program: what was compiled.
    """

    topology: str
    chip: Chip
    slices: int
    devices: int
    mesh: dict[str, int]
    remat: str
    scan_layers: bool
    rows: int
    pairs: float | None
    about: str
    parameters: int
    model_flops: float | None
    held: float
    program: Program

    @property
    def fits(self) -> bool:
        """It compiled, and needs no more than the chip has."""
        return self.program.fits and self.program.memory.total <= self.chip.hbm_bytes

    @property
    def bound(self) -> Bound | None:
        """The roofline's; None where the program does not fit."""
        work = self.program.work
        return None if work is None else bound(work, self.chip)

    @property
    def rate(self) -> float:
        """Rows a second at the roofline's bound; 0 where nothing is known."""
        return 0.0 if self.bound is None else self.rows / self.bound.seconds


def text(planned: Planned) -> str:
    """A block of lines on one program."""
    program, memory, chip = planned.program, planned.program.memory, planned.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in planned.mesh.items())
    pairs = "" if planned.pairs is None else f" ({planned.pairs:.0f} pairs)"
    lines = [
        f"{program.name} on {planned.topology}: {planned.devices} devices, mesh {mesh}, "
        f"{planned.rows} rows{pairs} of {planned.about}, remat {planned.remat}, layers "
        f"{'scanned' if planned.scan_layers else 'unrolled'}",
        f"  parameters          {planned.parameters:,}",
        f"  state a device      {_gib(memory.parameters)} parameters, "
        f"{_gib(memory.optimizer)} optimizer",
    ]
    if memory.told:
        rest = memory.total - memory.parameters - memory.optimizer - memory.activations
        lines += [
            f"  activations         {_gib(memory.activations)}, with gradients and buffers",
            f"  batch and program   {_gib(rest)}",
        ]
    if program.failure:
        lines.append(f"  NOT COMPILED        {program.failure}")
        return "\n".join(lines)
    verdict = "fits" if planned.fits else "DOES NOT FIT"
    lines.append(f"  HBM a device        {_gib(memory.total)} of {_gib(chip.hbm_bytes)}: {verdict}")
    if planned.held:
        beside = memory.total + planned.held
        fits = "fits" if planned.fits and beside <= chip.hbm_bytes else "DOES NOT FIT"
        lines.append(f"  while training      {_gib(beside)}, with the optimizer's state: {fits}")
    work, limit = program.work, planned.bound
    if work is not None and limit is not None:
        lines += _work_lines(planned, limit)
    lines.append(
        f"  compiled in         {program.compile_seconds:.1f} s, traced and lowered before in "
        f"{program.lower_seconds:.1f} s"
    )
    return "\n".join(lines)


def _work_lines(planned: Planned, limit: Bound) -> list[str]:
    work = planned.program.work
    assert work is not None
    chip = planned.chip
    ridge = chip.flops / chip.hbm_bandwidth
    lines = [
        f"  work a device       {work.flops / 1e12:.3f} TFLOP, {work.hbm_bytes / 1e9:.1f} GB of "
        f"HBM traffic: {limit.intensity:.0f} FLOP/byte (the chip's ridge: {ridge:.0f})"
    ]
    if planned.model_flops is not None:
        share = planned.model_flops / planned.devices / work.flops
        lines.append(f"  of it the model's   {share:.1%} (the rest is recomputed, or filled up)")
    # That over the tokens of an answer ends with the data, and is counted to its longest.
    unread = work.open_loops - (planned.program.name == DECODE)
    if unread > 0:
        lines.append(f"  {unread} loops whose rounds the program does not tell: no figure holds")
    for collective in work.collectives:
        where = collective.axis + (" between slices" if collective.between_slices else "")
        lines.append(
            f"  {collective.kind:<19} {where}: {collective.count:,} times, "
            f"{collective.sent / 1e9:.3f} GB sent, largest array {_mib(collective.largest)}"
        )
    dcn = "no public figure" if limit.dcn is None else f"{1e3 * limit.dcn:.2f}"
    lines.append(
        f"  at its peak (ms)    compute {1e3 * limit.compute:.2f}, HBM {1e3 * limit.memory:.2f}, "
        f"ICI {1e3 * limit.ici:.2f}, DCN {dcn}"
    )
    known = planned.pairs is not None
    rate = planned.rate * (planned.pairs / planned.rows if planned.pairs is not None else 1)
    lines.append(
        f"  lower bound         {1e3 * limit.seconds:.2f} ms, by {limit.limit}: "
        f"{rate:,.0f} {'pairs' if known else 'rows'}/s"
    )
    return lines


def row(planned: Planned) -> dict[str, Any]:
    """A plan as plain data, without the program's text."""
    program = dataclasses.asdict(dataclasses.replace(planned.program, text=""))
    del program["text"]
    limit = planned.bound
    values = dataclasses.asdict(dataclasses.replace(planned, program=None))  # type: ignore[arg-type]
    return values | {
        "program": program,
        "fits": planned.fits,
        "bound": None if limit is None else dataclasses.asdict(limit),
    }


def as_json(about: dict[str, Any], plans: Sequence[Planned]) -> str:
    """All plans; an amount of HBM that the compiler did not name is null."""
    document = {**about, "plans": [row(planned) for planned in plans]}
    return json.dumps(_finite(document), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_HEADINGS = (
    "program", "topology", "mesh", "rows", "remat", "layers", "HBM GiB", "fits", "TFLOP",
    "HBM GB", "sent GB", "bound ms", "by", "rows/s", "compile s",
)  # fmt: skip


def summary(plans: Sequence[Planned]) -> str:
    """One line a plan, in columns; HBM, work and traffic are of one device."""
    return columns([_HEADINGS, *map(_cells, plans)])


def largest(plans: Sequence[Planned]) -> list[Planned]:
    """Of each topology and remat policy the plan of most rows that fits, the fastest of several.

    Most rows a second first, by the bound.
    """
    found: dict[tuple[str, str], Planned] = {}
    for planned in plans:
        key = planned.topology, planned.remat
        if planned.fits and (key not in found or _better(planned, found[key])):
            found[key] = planned
    return sorted(found.values(), key=lambda planned: -planned.rate)


def _better(planned: Planned, known: Planned) -> bool:
    return (planned.rows, planned.rate) > (known.rows, known.rate)


def _cells(planned: Planned) -> tuple[str, ...]:
    program, limit = planned.program, planned.bound
    work = ("-",) * 6
    if program.work is not None and limit is not None:
        sent = sum(collective.sent for collective in program.work.collectives)
        work = (
            f"{program.work.flops / 1e12:.2f}",
            f"{program.work.hbm_bytes / 1e9:.1f}",
            f"{sent / 1e9:.2f}",
            f"{1e3 * limit.seconds:.1f}",
            limit.limit,
            f"{planned.rate:,.0f}",
        )
    return (
        program.name,
        planned.topology,
        "x".join(map(str, planned.mesh.values())),
        str(planned.rows),
        planned.remat,
        "scanned" if planned.scan_layers else "unrolled",
        "-" if program.failure else f"{program.memory.total / GIB:.2f}",
        "failed" if program.failure else "yes" if planned.fits else "NO",
        *work,
        f"{program.compile_seconds:.1f}",
    )


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2f} GiB" if amount >= GIB / 10 or not amount else _mib(amount)


def _mib(amount: float) -> str:
    return f"{amount / 2**20:.1f} MiB"
