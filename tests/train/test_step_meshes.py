"""The same step on every mesh and with microbatches: how it is spread never changes it."""

import dataclasses
import re

import jax
import pytest
import step_cases as cases
from step_cases import compile_quickly  # noqa: F401

from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.parallel.place import place_batch
from stepdistill_jax.spec import batch_keys
from stepdistill_jax.train.state import abstract_state

# Rows of unequal token counts, and a number of rows that no mesh divides.
BATCH = cases.packed(37)
LABELS = {name: BATCH[name] for name in batch_keys(("label",))}
MESHES = {
    "1x1x1": {},
    "8x1x1": {"replica": 8},
    "1x8x1": {"fsdp": 8},
    "1x4x2": {"fsdp": 4, "tensor": 2},
    "1x2x4": {"fsdp": 2, "tensor": 4},
    "2x2x2": {"replica": 2, "fsdp": 2, "tensor": 2},
}


@pytest.fixture(scope="module")
def reference():
    return cases.run_step(BATCH)


# Every axis, alone and together, with and without microbatches.
EVERYWHERE = (("1x1x1", 4), ("1x8x1", 1), ("1x4x2", 4), ("1x2x4", 1), ("2x2x2", 1))
# The rest of the table is of one stream, whose program is half as large.
KNOWN = {("1x1x1", 1), *EVERYWHERE}
ELSEWHERE = [(mesh, m) for mesh in MESHES for m in (1, 4) if (mesh, m) not in KNOWN]


@pytest.mark.parametrize(("mesh", "microbatches"), EVERYWHERE)
def test_loss_and_gradients_agree(reference, mesh, microbatches):
    state, metrics = cases.run_step(
        BATCH, mesh=cases.mesh_of(**MESHES[mesh]), microbatches=microbatches
    )
    assert metrics == pytest.approx(reference[1], rel=1e-5)
    cases.assert_trees_close(
        cases.gradient_of(state), cases.gradient_of(reference[0]), tolerance=1e-5
    )


@pytest.fixture(scope="module")
def reference_of_labels():
    return cases.run_step(LABELS, method="standard")


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "microbatches"), ELSEWHERE)
def test_loss_and_gradients_of_one_stream_agree(reference_of_labels, mesh, microbatches):
    state, metrics = cases.run_step(
        LABELS,
        mesh=cases.mesh_of(**MESHES[mesh]),
        microbatches=microbatches,
        method="standard",
    )
    assert metrics == pytest.approx(reference_of_labels[1], rel=1e-5)
    cases.assert_trees_close(
        cases.gradient_of(state), cases.gradient_of(reference_of_labels[0]), tolerance=1e-5
    )


@pytest.mark.slow
def test_logits_in_chunks_agree_on_a_mesh(reference):
    state, metrics = cases.run_step(
        BATCH,
        mesh=cases.mesh_of(**MESHES["1x4x2"]),
        objective=ObjectiveConfig(logits_chunk=3),
        microbatches=2,
    )
    assert metrics == pytest.approx(reference[1], rel=1e-5)
    cases.assert_trees_close(
        cases.gradient_of(state), cases.gradient_of(reference[0]), tolerance=1e-5
    )


@pytest.mark.slow
def test_dropout_masks_do_not_depend_on_the_mesh():
    model = dataclasses.replace(cases.MODEL, dropout_rate=0.3)
    _, one = cases.run_step(BATCH, model=model)
    _, eight = cases.run_step(BATCH, model=model, mesh=cases.mesh_of(**MESHES["1x4x2"]))
    assert eight == pytest.approx(one, rel=1e-5)


def test_rows_stay_on_their_devices():
    """Devices exchange parameters and sums; rows of the batch are never gathered or moved.

    But for the gradient of the embedding: each device adds up its columns of it for all rows, which
    sends a column of each token's gradient and no gradient of a whole table.
    """
    mesh, microbatches = cases.mesh_of(fsdp=8), 4
    step = cases.compiled_step(
        cases.run_config(microbatches=microbatches), cases.KEEP_GRADIENT, mesh
    )
    state = abstract_state(cases.MODEL, cases.KEEP_GRADIENT, mesh)
    batch = place_batch(BATCH, mesh, microbatches)
    program = step.lower(state, batch).compile().as_text()
    parameters = {leaf.shape for leaf in jax.tree.leaves(abstract_params(cases.MODEL))}
    one_layer = {shape[1:] for shape in parameters}
    moves = re.findall(
        r"= (\(?)\w+\[([\d,]*)\].* (all-gather|all-to-all|collective-permute)\(.*op_name=\"(.*?)\"",
        program,
    )
    assert any(kind == "all-gather" for _, _, kind, _ in moves)
    for several, dimensions, kind, operation in moves:
        if operation.endswith("token_embedder/jit(_take)/scatter-add"):
            continue
        shape = tuple(map(int, dimensions.split(",")))
        assert kind == "all-gather", operation
        assert not several, operation
        assert shape in parameters | one_layer, operation
