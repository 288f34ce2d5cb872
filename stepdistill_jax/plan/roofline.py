"""The roofline: the minimum time of a program's work at the chip's peak figures."""

from __future__ import annotations

import dataclasses

from stepdistill_jax.parallel.chips import Chip
from stepdistill_jax.plan.work import Work


@dataclasses.dataclass(frozen=True)
class Bound:
    """Minimum seconds of each part of a device's work, at peak rate.

    Attributes:
        compute: matrix products.
        memory: HBM traffic.
        ici: bytes sent within the slice.
        dcn: bytes sent to other slices; None = the chip's rate is not public.
        seconds: maximum of the above, as if they overlap completely.
        limit: name of the maximum.
        intensity: FLOPs per byte of HBM traffic.
    """

    compute: float
    memory: float
    ici: float
    dcn: float | None
    seconds: float
    limit: str
    intensity: float


def bound(work: Work, chip: Chip) -> Bound:
    """The roofline bound of `work` on `chip`.

    A longer compilation may find a program with less HBM traffic, and so a lower bound.
    """
    outside = sum(c.sent for c in work.collectives if c.between_slices)
    inside = sum(c.sent for c in work.collectives if not c.between_slices)
    parts: dict[str, float | None] = {
        "compute": work.flops / chip.flops,
        "memory": work.hbm_bytes / chip.hbm_bandwidth,
        "ici": inside / chip.ici_bandwidth,
        "dcn": 0.0 if not outside else chip.dcn_bandwidth and outside / chip.dcn_bandwidth,
    }
    seconds = {name: value for name, value in parts.items() if value is not None}
    limit = max(seconds, key=seconds.__getitem__)
    return Bound(
        compute=seconds["compute"],
        memory=seconds["memory"],
        ici=seconds["ici"],
        dcn=parts["dcn"],
        seconds=seconds[limit],
        limit=limit,
        intensity=work.flops / max(work.hbm_bytes, 1.0),
    )
