import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_cases as cases
from jax.sharding import PartitionSpec as P

from stepdistill_jax.optim import OptimizerConfig, optimizer
from stepdistill_jax.train.state import abstract_state, create_state, state_shardings

ADAMW = optimizer(OptimizerConfig(), train_steps=10)
ADAFACTOR = optimizer(OptimizerConfig(name="adafactor"), train_steps=10)


@pytest.fixture(scope="module")
def on_eight():
    return create_state(cases.MODEL, ADAMW, cases.mesh_of(fsdp=4, tensor=2), seed=0)


def test_initial_parameters_do_not_depend_on_the_mesh(on_eight):
    on_one = create_state(cases.MODEL, ADAMW, cases.mesh_of(), seed=0)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(on_eight.params),
        jax.device_get(on_one.params),
    )
    assert int(on_eight.step) == 0


def test_abstract_state_is_what_create_state_makes(on_eight):
    abstract = abstract_state(cases.MODEL, ADAMW, cases.mesh_of(fsdp=4, tensor=2))
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), abstract)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), on_eight)


@pytest.mark.parametrize("rule", [ADAMW, ADAFACTOR], ids=["adamw", "adafactor"])
def test_no_parameter_or_moment_is_whole_on_a_device(rule):
    state = abstract_state(cases.MODEL, rule, cases.mesh_of(fsdp=8))
    checked = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        # Counts, and the placeholders where Adafactor stores the unfactored moment or the
        # factored vectors: one number each.
        if leaf.size <= 1:
            continue
        held = np.prod(leaf.sharding.shard_shape(leaf.shape))
        assert held * 8 == leaf.size, path
        checked += 1
    assert checked >= 2 * len(jax.tree.leaves(state.params))


def test_factored_moments_are_whole_and_small():
    model = dataclasses.replace(cases.MODEL, emb_dim=128, mlp_dim=256)
    mesh = cases.mesh_of(fsdp=8)
    rule = optimizer(OptimizerConfig(name="adafactor", clip_norm=0.0), train_steps=10)
    shardings = state_shardings(model, rule, mesh)
    wi = ("encoder", "layers", "mlp", "wi_0", "kernel")
    row, whole = shardings.opt_state[0].v_row, shardings.params
    for key in wi:
        row, whole = row[key], whole[key]
    assert row.spec == P()
    assert whole.spec == P(None, "fsdp", "tensor")


def test_given_parameters_are_kept():
    mesh = cases.mesh_of(fsdp=2)
    params = jax.tree.map(jnp.ones_like, cases.initial_params(cases.MODEL))
    params = jax.device_put(params, state_shardings(cases.MODEL, ADAMW, mesh).params)
    state = create_state(cases.MODEL, ADAMW, mesh, seed=0, params=params)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(state.params))
