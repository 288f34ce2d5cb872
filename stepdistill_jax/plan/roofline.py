"""The roofline: what a program's work takes at the chip's peak figures."""

from __future__ import annotations

import dataclasses

from stepdistill_jax.parallel.chips import Chip
from stepdistill_jax.plan.work import Work


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that a device needs at least for each part, were it alone and at its peak.

    Attributes:
        compute: matrix products.
        memory: HBM.
        ici: what it sends within its slice.
        dcn: what it sends to other slices; None = no public figure.
        seconds: the longest of them, as if all overlapped.
        limit: its name.
        intensity: FLOPs for each byte of HBM.
    """

    compute: float
    memory: float
    ici: float
    dcn: float | None
    seconds: float
    limit: str
    intensity: float


def bound(work: Work, chip: Chip) -> Bound:
    """The roofline's bound: this work takes no less on this chip.

    A compiler that looks longer may find a program of less HBM traffic, and so of a lower bound.
    """
    outside = sum(c.sent for c in work.collectives if c.between_slices)
    inside = sum(c.sent for c in work.collectives if not c.between_slices)
    parts: dict[str, float | None] = {
        "compute": work.flops / chip.flops,
        "memory": work.hbm_bytes / chip.hbm_bandwidth,
        "ici": inside / chip.ici_bandwidth,
        "dcn": 0.0 if not outside else chip.dcn_bandwidth and outside / chip.dcn_bandwidth,
    }
    known = {name: seconds for name, seconds in parts.items() if seconds is not None}
    limit = max(known, key=known.__getitem__)
    return Bound(
        compute=known["compute"],
        memory=known["memory"],
        ici=known["ici"],
        dcn=parts["dcn"],
        seconds=known[limit],
        limit=limit,
        intensity=work.flops / max(work.hbm_bytes, 1.0),
    )
