"""The search for a batch, over plans whose memory and time are known functions."""

import dataclasses
import math

import pytest

from stepdistill_jax.chips import CHIPS, GIB
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.parallel.mesh import MeshConfig
from stepdistill_jax.plan.program import Memory, Program
from stepdistill_jax.plan.search import Candidate, candidates, search
from stepdistill_jax.plan.tables import Planned, largest
from stepdistill_jax.plan.work import Work

ROWS = 64
CHIP = CHIPS["v5e"]
PAIRS_PER_ROW = 2.0


def planner(memory, seconds=lambda rows, mesh: rows * 1e-3, shards=1):
    """Plans whose bytes are ``memory(rows)`` and whose bound is ``seconds(rows, mesh)``."""

    def plan(candidate, rows):
        rows = -(-rows // shards) * shards
        total = memory(rows)
        fits = total <= CHIP.hbm_bytes
        flops = seconds(rows, candidate.mesh) * CHIP.flops
        work = Work(flops, 0.0, (), 0) if fits else None
        return Planned(
            topology="v5e:2x2",
            chip=CHIP,
            slices=1,
            devices=4,
            mesh=dict(zip(("replica", "fsdp", "tensor"), (1, 4, 1), strict=True)),
            remat=candidate.remat,
            scan_layers=True,
            rows=rows,
            pairs=rows * PAIRS_PER_ROW,
            parameters=1,
            model_flops=None,
            program=Program("train step", fits, Memory(0, 0, 0, total), work, 0.0, 0.0),
        )

    return plan


ONE = [Candidate(MeshConfig(1, 4, 1), "full")]


def most(memory):
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
    (found,) = largest(plans)
    assert found.rows == most(memory)
    assert len(plans) <= compiled
    assert len({plan.rows for plan in plans}) == len(plans)


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    plans = list(search(planner(lambda rows: rows * GIB), iter(ONE), ROWS))
    assert [plan.rows for plan in plans] == [64, 32, 16]
    assert [plan.rows for plan in largest(plans)] == [16]


def test_halving_ends_where_each_device_has_one_row():
    plans = list(search(planner(lambda _: 17 * GIB, shards=4), iter(ONE), ROWS))
    assert [plan.rows for plan in plans] == [64, 32, 16, 8, 4]
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


def test_policies_are_ordered_by_pairs_a_second():
    plan = planner(lambda rows: rows * 100e6)
    fast = dataclasses.replace(plan(Candidate(ONE[0].mesh, "none"), 64), pairs=1000.0)
    slow = plan(ONE[0], 128)
    assert largest([slow, plan(ONE[0], 64), fast]) == [fast, slow]


def test_candidates_divide_the_model():
    model = T5Config(
        8, 8, num_heads=6, head_dim=4, mlp_dim=64, num_encoder_layers=1, num_decoder_layers=1
    )
    meshes = {candidate.mesh for candidate in candidates(model, 16, 2)}
    # Six heads fall in two parts and not in four.
    assert meshes == {MeshConfig(2, 8, 1), MeshConfig(2, 4, 2)}
