import logging

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from stepdistill_jax.parallel import rules
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.spec import LOGICAL_AXES, MESH_AXES

AXES = {
    "embedding": ("vocab", "embed"),
    "wi": ("layers", "embed", "mlp"),
    "bias": ("heads", "relpos_buckets"),
    "scale": ("embed",),
}


def shapes(V=32, D=16, F=8, H=4):
    sizes = {"embedding": (V, D), "wi": (2, D, F), "bias": (H, 32), "scale": (D,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}


def test_every_logical_axis_has_one_rule_on_known_mesh_axes():
    assert sorted(name for name, _ in rules.RULES) == sorted(LOGICAL_AXES)
    assert {axis for _, axes in rules.RULES for axis in axes or ()} <= set(MESH_AXES)


def test_parameters_are_cut_by_fsdp_and_tensor():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    specs = jax.tree.map(lambda s: s.spec, rules.param_shardings(AXES, shapes(), mesh))
    assert specs == {
        "embedding": P("tensor", "fsdp"),
        "wi": P(None, "fsdp", "tensor"),
        "bias": P("tensor", "fsdp"),
        "scale": P("fsdp"),
    }


def test_axis_that_does_not_divide_is_kept_whole_and_logged_once(caplog):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    with caplog.at_level(logging.WARNING, logger="absl"):
        for _ in range(2):
            found = rules.param_shardings(AXES, shapes(H=6), mesh)
    assert found["bias"].spec == P(None, "fsdp")
    assert found["wi"].spec == P(None, "fsdp", "tensor")
    message = "Axis heads of size 6 does not divide into the 4 parts of mesh axis tensor"
    assert caplog.text.count(message) == 1


def test_activations_take_fsdp_for_their_rows():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))

    @jax.jit
    def constrain(x):
        with rules.activation_rules(rules.RULES, mesh):
            return nn.with_logical_constraint(x, ("batch", "length", "embed"))

    x = jax.device_put(jnp.ones((8, 4, 16)), NamedSharding(mesh, P()))
    spec = constrain(x).sharding.spec
    assert spec[0] == ("replica", "fsdp")
    assert set(spec[1:]) <= {None}


def test_shapes_and_axes_must_agree():
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ValueError, match="zip"):
        rules.param_shardings(
            {"scale": ("embed",)}, {"scale": jax.ShapeDtypeStruct((2, 8), jnp.float32)}, mesh
        )
