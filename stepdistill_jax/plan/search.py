"""The best mesh and remat policy by the roofline, and the largest batch that fits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

from stepdistill_jax.model.config import REMAT_POLICIES, T5Config
from stepdistill_jax.parallel.mesh import MeshConfig
from stepdistill_jax.plan.tables import Planned

# Tensor parallelism beyond this sends more than it saves on the slices that T5 needs.
_MOST_TENSOR = 8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What a search may change of a run.

    Attributes:
        mesh: MESH_REPLICA, MESH_FSDP, MESH_TENSOR.
        remat: REMAT.
    """

    mesh: MeshConfig
    remat: str


# Compiles a candidate with so many rows.
Plan = Callable[[Candidate, int], Planned]


def candidates(model: T5Config, devices: int, slices: int) -> Iterator[Candidate]:
    """Every mesh that divides the model evenly, with every remat policy."""
    within = devices // slices
    tensor = 1
    while tensor <= min(_MOST_TENSOR, within):
        even = all(size % tensor == 0 for size in (model.num_heads, model.mlp_dim))
        if within % tensor == 0 and even:
            for remat in REMAT_POLICIES:
                yield Candidate(MeshConfig(slices, within // tensor, tensor), remat)
        tensor *= 2


def search(plan: Plan, choices: Iterator[Candidate], rows: int) -> Iterator[Planned]:
    """Compiles every candidate at `rows`, then grows the batch of each policy's best mesh.

    A policy's largest batch is the largest multiple of `rows` that fits, found by doubling and
    halving; where not even `rows` fit, by halving alone. The last plan yielded of a policy is its
    largest batch.
    """
    best: dict[str, tuple[float, Candidate]] = {}
    smallest: dict[str, Candidate] = {}
    for candidate in choices:
        planned = plan(candidate, rows)
        yield planned
        smallest.setdefault(candidate.remat, candidate)
        limit = planned.bound
        if planned.fits and limit is not None:
            known = best.get(candidate.remat)
            if known is None or limit.seconds < known[0]:
                best[candidate.remat] = limit.seconds, candidate
    for remat, candidate in smallest.items():
        chosen = best[remat][1] if remat in best else candidate
        yield from _largest(functools.partial(plan, chosen), rows, remat in best)


def _largest(plan: Callable[[int], Planned], rows: int, fits: bool) -> Iterator[Planned]:
    low, high = (rows, None) if fits else (0, rows)
    largest: Planned | None = None
    step = 1 if not fits else rows
    while high is None or high - low > step:
        middle = 2 * low if high is None else (low + high) // 2 // step * step
        if middle in (low, 0):
            break
        planned = plan(middle)
        if planned.fits:
            low, largest = planned.rows, planned
        else:
            high = middle
    if largest is not None:
        yield largest
