"""A planned program, as text, as a row of a table and as JSON."""

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
        topology: name of the topology.
        chip: peak figures of a device.
        slices: number of slices.
        devices: number of devices.
        mesh: axis -> size.
        remat: remat policy of the model.
        scan_layers: whether layers are scanned.
        rows: rows of a batch over all devices, padding included.
        pairs: mean pairs in these rows; None = unknown.
        about: lengths of the rows, in words.
        parameters: number of parameters of the model.
        model_flops: FLOPs of the method on all devices (`model.flops`); None for decoding.
        held: bytes that training keeps on a device besides this program.
        program: the compiled program.
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
        """Whether it compiled and fits the chip's memory."""
        return self.program.fits and self.program.memory.total <= self.chip.hbm_bytes

    @property
    def bound(self) -> Bound | None:
        """The roofline bound; None if the program does not fit."""
        work = self.program.work
        return None if work is None else bound(work, self.chip)

    @property
    def rate(self) -> float:
        """Rows a second at the roofline bound; 0 without a bound."""
        return 0.0 if self.bound is None else self.rows / self.bound.seconds


def text(planned: Planned) -> str:
    """Several lines about one program."""
    program, memory, chip = planned.program, planned.program.memory, planned.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in planned.mesh.items())
    pairs = "" if planned.pairs is None else f" ({planned.pairs:.0f} pairs)"
    lines = [
        f"{program.name} on {planned.topology}: {planned.devices} devices, mesh {mesh}, "
        f"{planned.rows} rows{pairs} of {planned.about}, remat {planned.remat}, layers "
        f"{'scanned' if planned.scan_layers else 'unrolled'}",
        f"  parameters          {planned.parameters:,}",
        f"  state per device    {_gib(memory.parameters)} parameters, "
        f"{_gib(memory.optimizer)} optimizer",
    ]
    if memory.itemized:
        rest = memory.total - memory.parameters - memory.optimizer - memory.activations
        lines += [
            f"  activations         {_gib(memory.activations)}, including gradients and buffers",
            f"  batch and program   {_gib(rest)}",
        ]
    if program.failure:
        lines.append(f"  NOT COMPILED        {program.failure}")
        return "\n".join(lines)
    verdict = "fits" if planned.fits else "DOES NOT FIT"
    lines.append(f"  HBM per device      {_gib(memory.total)} of {_gib(chip.hbm_bytes)}: {verdict}")
    if planned.held:
        total = memory.total + planned.held
        fits = "fits" if planned.fits and total <= chip.hbm_bytes else "DOES NOT FIT"
        lines.append(f"  while training      {_gib(total)}, with the optimizer's state: {fits}")
    work, limit = program.work, planned.bound
    if work is not None and limit is not None:
        lines += _work_lines(planned, limit)
    lines.append(
        f"  compilation         {program.compile_seconds:.1f} s, after tracing and lowering for "
        f"{program.lower_seconds:.1f} s"
    )
    return "\n".join(lines)


def _work_lines(planned: Planned, limit: Bound) -> list[str]:
    work = planned.program.work
    assert work is not None
    chip = planned.chip
    ridge = chip.flops / chip.hbm_bandwidth
    lines = [
        f"  work per device     {work.flops / 1e12:.3f} TFLOP, {work.hbm_bytes / 1e9:.1f} GB of "
        f"HBM traffic: {limit.intensity:.0f} FLOP/byte (ridge point of the chip: {ridge:.0f})"
    ]
    if planned.model_flops is not None:
        share = planned.model_flops / planned.devices / work.flops
        lines.append(f"  model FLOPs         {share:.1%} (the rest: recomputation and padding)")
    # Decoding has one such loop, over output tokens; it is counted with the maximum.
    uncounted = work.open_loops - (planned.program.name == DECODE)
    if uncounted > 0:
        lines.append(f"  figures too low     {uncounted} loops of unknown length count once")
    for collective in work.collectives:
        where = collective.axis + (" between slices" if collective.between_slices else "")
        lines.append(
            f"  {collective.kind:<19} {where}: {collective.count:,} times, "
            f"{collective.sent / 1e9:.3f} GB sent, largest array {_mib(collective.largest)}"
        )
    dcn = "no public figure" if limit.dcn is None else f"{1e3 * limit.dcn:.2f}"
    lines.append(
        f"  at peak rate (ms)   compute {1e3 * limit.compute:.2f}, HBM {1e3 * limit.memory:.2f}, "
        f"ICI {1e3 * limit.ici:.2f}, DCN {dcn}"
    )
    rate, unit = planned.rate, "rows"
    if planned.pairs is not None:
        rate, unit = rate * planned.pairs / planned.rows, "pairs"
    lines.append(
        f"  lower bound         {1e3 * limit.seconds:.2f} ms, by {limit.limit}: "
        f"{rate:,.0f} {unit}/s"
    )
    return lines


def row(planned: Planned) -> dict[str, Any]:
    """A plan as JSON data, without the program's text."""
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
    """All plans; HBM that the compiler did not report is null."""
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
    """A table with one row a plan; HBM, work and traffic are per device."""
    return columns([_HEADINGS, *map(_cells, plans)])


def largest(plans: Sequence[Planned]) -> list[Planned]:
    """The largest batch that fits for each topology and remat policy, ordered by rows a second."""
    best: dict[tuple[str, str], Planned] = {}
    for planned in sorted(plans, key=lambda planned: (planned.rows, planned.rate), reverse=True):
        if planned.fits:
            best.setdefault((planned.topology, planned.remat), planned)
    return sorted(best.values(), key=lambda planned: -planned.rate)


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
