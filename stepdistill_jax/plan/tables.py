"""Plans as text for readers and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from stepdistill_jax.chips import GIB, Chip
from stepdistill_jax.plan.program import TRAIN, Program
from stepdistill_jax.plan.roofline import Bound, bound


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
        rows: of a train batch, or decoded at once, over all devices.
        pairs: that those rows hold, in the mean.
        parameters: of the model, in all.
        model_flops: what the method needs of all devices (`model.flops`); None of decoding.
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
    pairs: float
    parameters: int
    model_flops: float | None
    program: Program

    @property
    def fits(self) -> bool:
        """It compiled, and needs no more than the chip has."""
        return self.program.fits and self.program.memory.total <= self.chip.hbm_bytes

    @property
    def bound(self) -> Bound | None:
        """The roofline's; None where the program does not fit."""
        work = self.program.work
        return None if work is None else bound(work, self.chip, self.slices)


def text(planned: Planned) -> str:
    """A block of lines on one program."""
    program, memory, chip = planned.program, planned.program.memory, planned.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in planned.mesh.items())
    lines = [
        f"{program.name} on {planned.topology}: {planned.devices} devices, mesh {mesh}, "
        f"{planned.rows} rows ({planned.pairs:.0f} pairs), remat {planned.remat}, layers "
        f"{'scanned' if planned.scan_layers else 'unrolled'}",
        f"  parameters          {planned.parameters:,}",
        f"  state a device      {_gib(memory.parameters)} parameters, "
        f"{_gib(memory.optimizer)} optimizer",
    ]
    if memory.told:
        lines.append(
            f"  activations         {_gib(memory.activations)}, with gradients and buffers"
        )
    verdict = "fits" if planned.fits else "DOES NOT FIT"
    if program.crashed:
        lines.append(
            "  THE COMPILER CRASHED, so nothing more is known; try another mesh, REMAT or PRNG_IMPL"
        )
        return "\n".join(lines)
    lines.append(f"  HBM a device        {_gib(memory.total)} of {_gib(chip.hbm_bytes)}: {verdict}")
    work, limit = program.work, planned.bound
    if work is not None and limit is not None:
        lines += _work_lines(planned, limit)
    lines.append(
        f"  compiled in         {program.lower_seconds:.1f} s + {program.compile_seconds:.1f} s"
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
        lines.append(f"  of it the model's   {share:.1%} (the rest is recomputed)")
    if work.open_loops and planned.program.name == TRAIN:
        lines.append(
            f"  {work.open_loops} loops whose rounds the program does not tell are counted once: "
            f"the figures are too low"
        )
    for collective in work.collectives:
        lines.append(
            f"  {collective.kind:<19} {collective.axis}: {collective.count:,} times, "
            f"{collective.sent / 1e9:.3f} GB sent, largest array {_mib(collective.largest)}"
        )
    dcn = "no public figure" if limit.dcn is None else f"{1e3 * limit.dcn:.2f}"
    lines.append(
        f"  at its peak (ms)    compute {1e3 * limit.compute:.2f}, HBM {1e3 * limit.memory:.2f}, "
        f"ICI {1e3 * limit.ici:.2f}, DCN {dcn}"
    )
    lines.append(
        f"  lower bound         {1e3 * limit.seconds:.2f} ms, by {limit.limit}; at most "
        f"{_rate(planned):,.0f} pairs/s"
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
    "HBM GB", "sent GB", "bound ms", "by", "pairs/s", "compile s",
)  # fmt: skip


def summary(plans: Sequence[Planned]) -> str:
    """One line a plan, in columns; HBM, work and traffic are of one device."""
    rows = [_HEADINGS, *map(_cells, plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def largest(plans: Sequence[Planned]) -> list[Planned]:
    """Of each topology and remat policy the plan of most rows that fits, the fastest of several.

    Most pairs a second first, by the bound.
    """
    found: dict[tuple[str, str], Planned] = {}
    for planned in plans:
        key = planned.topology, planned.remat
        if planned.fits and (key not in found or _better(planned, found[key])):
            found[key] = planned
    return sorted(found.values(), key=lambda planned: -_rate(planned))


def _better(planned: Planned, known: Planned) -> bool:
    return (planned.rows, _rate(planned)) > (known.rows, _rate(known))


def _rate(planned: Planned) -> float:
    """Pairs a second at most; 0 where nothing is known."""
    return 0.0 if planned.bound is None else planned.pairs / planned.bound.seconds


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
            f"{_rate(planned):,.0f}",
        )
    return (
        program.name,
        planned.topology,
        "x".join(map(str, planned.mesh.values())),
        str(planned.rows),
        planned.remat,
        "scanned" if planned.scan_layers else "unrolled",
        "-" if program.crashed else f"{program.memory.total / GIB:.2f}",
        "crashed" if program.crashed else "yes" if planned.fits else "NO",
        *work,
        f"{program.compile_seconds:.1f}",
    )


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2f} GiB"


def _mib(amount: float) -> str:
    return f"{amount / 2**20:.1f} MiB"
