"""Searches for the best mesh and remat policy by the roofline, and for the largest batch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

from stepdistill_jax.model.config import REMAT_POLICIES, T5Config
from stepdistill_jax.parallel.mesh import MeshConfig
from stepdistill_jax.plan.tables import Planned

# Larger tensor parallelism sends more than it saves on the slices that T5 needs.
_MAX_TENSOR = 8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The settings of a run that a search changes: its mesh and REMAT."""

    mesh: MeshConfig
    remat: str


# Compiles a candidate with a number of rows.
Plan = Callable[[Candidate, int], Planned]


def candidates(model: T5Config, devices: int, slices: int) -> Iterator[Candidate]:
    """Meshes with every remat policy: one replica a slice, powers of two for MESH_TENSOR.

    Leaves out meshes that split heads or the MLP unevenly.
    """
    within = devices // slices
    tensor = 1
    while tensor <= min(_MAX_TENSOR, within):
        even = all(size % tensor == 0 for size in (model.num_heads, model.mlp_dim))
        if within % tensor == 0 and even:
            for remat in REMAT_POLICIES:
                yield Candidate(MeshConfig(slices, within // tensor, tensor), remat)
        tensor *= 2


def search(plan: Plan, choices: Iterator[Candidate], rows: int) -> Iterator[Planned]:
    """Compiles every candidate with `rows`, then varies the batch on the best mesh of each policy.

    If `rows` fit, grows to the largest multiple that fits; otherwise halves until the batch fits.
    """
    tried: dict[str, list[tuple[Candidate, Planned]]] = {}
    for candidate in choices:
        planned = plan(candidate, rows)
        yield planned
        tried.setdefault(candidate.remat, []).append((candidate, planned))
    for plans in tried.values():
        fitting = [(candidate, planned) for candidate, planned in plans if planned.fits]
        if fitting:
            candidate, planned = min(fitting, key=lambda pair: _seconds(pair[1]))
            yield from _grown(functools.partial(plan, candidate), planned)
        else:
            candidate, planned = min(plans, key=lambda pair: pair[1].program.memory.total)
            yield from _halved(functools.partial(plan, candidate), planned)


def _seconds(planned: Planned) -> float:
    return math.inf if planned.bound is None else planned.bound.seconds


def _halved(plan: Callable[[int], Planned], planned: Planned) -> Iterator[Planned]:
    """Halves until the batch fits or every device has the fewest rows."""
    while not planned.fits and planned.rows > 1:
        smaller = plan(planned.rows // 2)
        if smaller.rows >= planned.rows:
            return
        yield smaller
        planned = smaller


def _grown(plan: Callable[[int], Planned], fitting: Planned) -> Iterator[Planned]:
    """Grows to the largest multiple of a fitting plan's rows that fits.

    Memory is nearly linear in rows: the next batch is where the line through the last two plans
    meets the chip's capacity. If that does not halve the interval, the next batch is its middle.
    """
    step = fitting.rows
    before, last = fitting, plan(2 * step)
    yield last
    low, high = (last, None) if last.fits else (fitting, last)
    halve = False
    while high is None or high.rows - low.rows > step:
        wide = None if high is None else high.rows - low.rows
        rows = None if halve else _meets_capacity(before, last)
        if rows is None:
            rows = 2 * low.rows if high is None else (low.rows + high.rows) // 2
        rows = max(rows // step * step, low.rows + step)
        if high is not None:
            rows = min(rows, high.rows - step)
        before, last = last, plan(rows)
        yield last
        low, high = (last, high) if last.fits else (low, last)
        halve = wide is not None and high is not None and high.rows - low.rows > wide // 2


def _meets_capacity(one: Planned, other: Planned) -> int | None:
    """Rows at which the line through two plans meets the chip's memory; None = it does not."""
    grown = other.program.memory.total - one.program.memory.total
    per_row = grown / (other.rows - one.rows)
    if not 0 < per_row < math.inf:
        return None
    return other.rows + int((other.chip.hbm_bytes - other.program.memory.total) / per_row)
