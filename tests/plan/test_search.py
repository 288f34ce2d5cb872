"""The search for a batch, over plans whose memory and time are known functions."""

import math

import pytest
from plans import CHIP, planned

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.parallel.chips import GIB
from stepdistill_jax.parallel.mesh import MeshConfig
from stepdistill_jax.plan.search import Candidate, candidates, search
from stepdistill_jax.plan.tables import largest
from stepdistill_jax.plan.work import Work

ROWS = 64


def planner(memory, seconds=lambda rows, mesh: rows * 1e-3, shards=1):
    """Plans whose bytes are ``memory(rows)`` and whose bound is ``seconds(rows, mesh)``."""

    def plan(candidate, rows):
        rows = -(-rows // shards) * shards
        work = Work(seconds(rows, candidate.mesh) * CHIP.flops, 0.0, (), 0)
        return planned(rows, memory(rows), work, candidate.remat)

    return plan


ONE = [Candidate(MeshConfig(1, 4, 1), "full")]


def largest_fitting(memory):
    """The largest multiple of ROWS that fits, by trying them all."""
    return max(rows for rows in range(ROWS, 10**6, ROWS) if memory(rows) <= CHIP.hbm_bytes)


@pytest.mark.parametrize(
    ("memory", "compiled"),
    [
        (lambda rows: 2 * GIB + rows * 5e6, 6),  # a line
        (lambda rows: 8 * GIB + rows * 30e6, 6),  # a steep one
        (lambda rows: 15.9 * GIB + rows * 1e3, 6),  # hardly any growth
        (lambda rows: GIB + rows * 5e6 + (4 * GIB if rows > 1000 else 0), 12),  # a step
        (lambda rows: GIB + rows**1.3 * 1e5, 12),  # a curve
        (lambda rows: GIB + rows * 5e6 if rows < 1000 else math.inf, 12),  # an untold amount
    ],
)
def test_the_largest_batch_is_found_in_few_compilations(memory, compiled):
    plans = list(search(planner(memory), iter(ONE), ROWS))
    (best,) = largest(plans)
    assert best.rows == largest_fitting(memory)
    assert len(plans) <= compiled
    assert len({plan.rows for plan in plans}) == len(plans)


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    plans = list(search(planner(lambda rows: rows * GIB), iter(ONE), ROWS))
    assert [plan.rows for plan in plans] == [64, 32, 16]
    assert [plan.rows for plan in largest(plans)] == [16]


@pytest.mark.parametrize(("shards", "minimum"), [(1, 1), (4, 4)])
def test_halving_ends_where_each_device_has_one_row(shards, minimum):
    plans = list(search(planner(lambda _: 17 * GIB, shards=shards), iter(ONE), ROWS))
    assert [plan.rows for plan in plans] == [n for n in (64, 32, 16, 8, 4, 2, 1) if n >= minimum]
    assert largest(plans) == []


def test_the_batch_of_the_fastest_mesh_grows():
    meshes = [MeshConfig(1, 4, 1), MeshConfig(1, 2, 2), MeshConfig(1, 1, 4)]
    tried = []

    def seconds(rows, mesh):
        tried.append((rows, mesh))
        return rows * {1: 3e-3, 2: 1e-3, 4: 2e-3}[mesh.tensor]

    plan = planner(lambda rows: GIB + rows * 50e6, seconds)
    list(search(plan, iter([Candidate(mesh, "dots") for mesh in meshes]), ROWS))
    assert [mesh for _, mesh in tried[:3]] == meshes
    assert {mesh for _, mesh in tried[3:]} == {meshes[1]}


def test_policies_are_ordered_by_rows_a_second():
    slow, fast = Work(CHIP.flops, 0.0, (), 0), Work(CHIP.flops / 4, 0.0, (), 0)
    plans = [planned(128, work=slow), planned(64, work=slow), planned(64, work=fast, remat="none")]
    assert largest(plans) == [plans[2], plans[0]]


def test_candidates_divide_the_model():
    model = T5Config(
        8, 8, num_heads=6, head_dim=4, mlp_dim=64, num_encoder_layers=1, num_decoder_layers=1
    )
    meshes = {candidate.mesh for candidate in candidates(model, 16, 2)}
    # Six heads fall in two parts and not in four.
    assert meshes == {MeshConfig(2, 8, 1), MeshConfig(2, 4, 2)}
