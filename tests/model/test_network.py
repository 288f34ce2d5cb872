import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_t5
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from random_params import random_params, unstack_layers

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import (
    Transformer,
    abstract_params,
    init_params,
    logical_axes,
)
from stepdistill_jax.model.stack import stack_layers
from stepdistill_jax.spec import LOGICAL_AXES

V1_1 = T5Config(
    vocab_size=37,
    emb_dim=16,
    num_heads=2,
    head_dim=4,
    mlp_dim=24,
    num_encoder_layers=3,
    num_decoder_layers=2,
    dropout_rate=0.0,
)
V1_0 = dataclasses.replace(V1_1, mlp_activations=("relu",), logits_via_embedding=True)
VARIANTS = pytest.mark.parametrize("config", [V1_0, V1_1], ids=["v1_0", "v1_1"])
SCAN = pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unrolled"])

# (inputs, targets) of four examples, then two packed rows: examples 0 and 1, examples 2 and 3.
EXAMPLES = [
    ([5, 9, 3, 1], [7, 8, 1]),
    ([12, 30, 21, 4, 22, 6, 1], [2, 1]),
    ([36, 1], [11, 12, 13, 14, 1]),
    ([*range(3, 30), 1], [6, 1]),
]
ROWS = [(0, 1), (2, 3)]
L, T = 32, 8


def pack(rows, length, side):
    """Token and segment ids [rows, length] of one side (0 inputs, 1 targets), and shifted ids."""
    tokens, segments, shifted = np.zeros((3, len(rows), length), np.int32)
    for row, members in enumerate(rows):
        at = 0
        for number, member in enumerate(members, start=1):
            ids = EXAMPLES[member][side]
            span = slice(at, at + len(ids))
            tokens[row, span], segments[row, span] = ids, number
            shifted[row, span] = [0, *ids[:-1]]
            at += len(ids)
    return tokens, segments, shifted


def batch(rows=ROWS):
    inputs, input_segments, _ = pack(rows, L, 0)
    _, target_segments, decoder_inputs = pack(rows, T, 1)
    return tuple(map(jnp.asarray, (inputs, input_segments, decoder_inputs, target_segments)))


@functools.partial(jax.jit, static_argnames=("config", "deterministic", "method"))
def forward(config, params, *args, rngs=None, deterministic=True, method=None):
    kwargs = {"rngs": rngs, "deterministic": deterministic, "method": method}
    return Transformer(config).apply({"params": params}, *args, **kwargs)


def loss(config, params, rngs=None):
    """Mean cross-entropy of the real targets."""
    targets, segments, _ = pack(ROWS, T, 1)
    logits = forward(config, params, *batch(), deterministic=rngs is None, rngs=rngs)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
    return -jnp.sum(log_probs[..., 0] * (segments > 0)) / (segments > 0).sum()


@functools.partial(jax.jit, static_argnums=0)
def gradients(config, params, rngs=None):
    return jax.grad(lambda p: loss(config, p, rngs))(params)


def assert_trees_close(found, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), found, expected)


@SCAN
@VARIANTS
def test_packed_rows_equal_the_numpy_reference_of_each_example(config, scan_layers):
    config = dataclasses.replace(config, scan_layers=scan_layers)
    params = random_params(config)
    logits = np.asarray(forward(config, params, *batch()))
    reference_params = jax.tree.map(lambda x: np.asarray(x, np.float64), unstack_layers(params))
    for row, members in enumerate(ROWS):
        at = 0
        for member in members:
            inputs, targets = EXAMPLES[member]
            expected = reference_t5.logits(reference_params, inputs, targets, config.num_heads)
            found = logits[row, at : at + len(targets)]
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
            at += len(targets)


@VARIANTS
def test_packed_equals_unpacked(config):
    params = random_params(config)
    packed = np.asarray(forward(config, params, *batch()))
    apart = np.asarray(forward(config, params, *batch([(0,), (1,), (2,), (3,)])))
    for row, members in enumerate(ROWS):
        at = 0
        for member in members:
            length = len(EXAMPLES[member][1])
            np.testing.assert_allclose(
                packed[row, at : at + length], apart[member, :length], atol=1e-5, rtol=0
            )
            at += length


def test_what_lies_at_padding_changes_nothing():
    inputs, input_segments, decoder_inputs, target_segments = batch()
    params = random_params(V1_1)
    changed = (
        jnp.where(input_segments > 0, inputs, 17),
        input_segments,
        jnp.where(target_segments > 0, decoder_inputs, 17),
        target_segments,
    )
    real = np.asarray(target_segments) > 0
    np.testing.assert_array_equal(
        np.asarray(forward(V1_1, params, *changed))[real],
        np.asarray(forward(V1_1, params, *batch()))[real],
    )


@VARIANTS
def test_scanned_equals_unrolled_in_outputs_and_gradients(config):
    unrolled = dataclasses.replace(config, scan_layers=False)
    params = random_params(config)
    apart = unstack_layers(params)
    assert_trees_close(
        forward(unrolled, apart, *batch()), forward(config, params, *batch()), atol=1e-5
    )
    scanned_grads = gradients(config, params)
    unrolled_grads = gradients(unrolled, apart)
    assert_trees_close(stack_layers(unrolled_grads), scanned_grads, atol=1e-5)


def test_stacking_is_undone_by_unstacking():
    unrolled = dataclasses.replace(V1_1, scan_layers=False)
    params = random_params(unrolled)
    stacked = stack_layers(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, abstract_params(V1_1))
    assert_trees_close(unstack_layers(stacked), params, atol=0)
    # Either is the identity on what already has its form.
    assert_trees_close(stack_layers(stacked), stacked, atol=0)
    assert_trees_close(unstack_layers(params), params, atol=0)


@pytest.mark.parametrize(
    ("remat", "scan_layers"), [("dots", True), ("full", True), ("full", False)]
)
def test_recomputation_changes_no_gradient(remat, scan_layers):
    config = dataclasses.replace(V1_1, dropout_rate=0.2, scan_layers=scan_layers)
    recomputing = dataclasses.replace(config, remat=remat)
    params = random_params(config)
    rngs = {"dropout": jax.random.key(3)}
    expected = gradients(config, params, rngs)
    found = gradients(recomputing, params, rngs)
    assert_trees_close(found, expected, atol=1e-5)


@pytest.mark.parametrize(("remat", "fewer"), [("dots", "none"), ("full", "dots")])
def test_recomputation_stores_less(remat, fewer):
    def stored(policy):
        config = dataclasses.replace(V1_1, remat=policy, num_encoder_layers=8)
        pullback = jax.eval_shape(
            lambda p: jax.vjp(lambda p: loss(config, p), p)[1], abstract_params(config)
        )
        return sum(x.size for x in jax.tree.leaves(pullback))

    assert stored(remat) < stored(fewer)


@VARIANTS
def test_gradient_reaches_every_parameter(config):
    grads = gradients(config, random_params(config))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        # Of each layer too, where they are stacked; the bias only of buckets that occur.
        name = jax.tree_util.keystr(path)
        layers = grad if "['layers']" in name else grad[None]
        assert (jnp.max(jnp.abs(layers.reshape(layers.shape[0], -1)), axis=-1) > 1e-6).all(), name


def test_one_hot_embedding_equals_gather():
    one_hot = dataclasses.replace(V1_1, one_hot_embedding=True)
    params = random_params(V1_1)
    assert_trees_close(
        gradients(one_hot, params),
        gradients(V1_1, params),
        atol=1e-5,
    )


def test_dropout_follows_its_key_and_is_off_by_default():
    config = dataclasses.replace(V1_1, dropout_rate=0.3)
    params = random_params(config)

    def dropped(seed):
        return forward(
            config, params, *batch(), deterministic=False, rngs={"dropout": jax.random.key(seed)}
        )

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert jnp.max(jnp.abs(dropped(0) - dropped(1))) > 0.01
    off = dataclasses.replace(config, dropout_rate=0.0)
    np.testing.assert_array_equal(
        forward(config, params, *batch()), forward(off, params, *batch(), deterministic=False)
    )


@pytest.mark.parametrize(
    ("variant", "scan_layers"), [(V1_0, False), (V1_1, True)], ids=["v1_0", "v1_1"]
)
def test_bfloat16_activations_with_float32_parameters_and_logits(variant, scan_layers):
    variant = dataclasses.replace(variant, scan_layers=scan_layers)
    config = dataclasses.replace(variant, dtype="bfloat16")
    params = init_params(config, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    inputs, segments, *_ = batch()
    assert forward(config, params, inputs, segments, method="encode").dtype == jnp.bfloat16
    logits = forward(config, params, *batch())
    assert logits.dtype == jnp.float32
    expected = forward(variant, params, *batch())
    # 8 bits of mantissa through five layers.
    assert jnp.mean(jnp.abs(logits - expected)) < 0.05 * jnp.std(expected)


@pytest.mark.parametrize(("platform", "sums"), [("tpu", "bf16"), ("cpu", "f32")])
def test_every_product_of_the_bfloat16_model_is_of_bfloat16(platform, sums):
    """XLA for CPU has a fast product of bfloat16 only where it ends in float32."""
    config = dataclasses.replace(V1_1, dtype="bfloat16", scan_layers=False)
    traced = jax.jit(lambda p: forward(config, p, *batch())).trace(abstract_params(config))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [
        tuple(re.findall(r"x(\w+)>", line))
        for line in program.splitlines()
        if "dot_general" in line
    ]
    kinds = collections.Counter(tuple(t.rpartition("x")[2] for t in types) for types in products)
    # The only products of float32 are the tables of the relative-position bias, two of them.
    assert kinds.pop(("f32", "f32", "f32")) == 2
    # 3 encoder layers of 7 products with parameters, 2 decoder layers of 11; the products of
    # attention weights and values, 3 + 2 * 2; as many of queries and keys, and the logits, which
    # are float32.
    expected = collections.Counter({("bf16", "bf16", sums): 3 * 7 + 2 * 11})
    expected[("bf16", "bf16", "bf16")] += 3 + 2 * 2
    expected[("bf16", "bf16", "f32")] += 3 + 2 * 2 + 1
    assert kinds == expected


def test_masks_and_relative_positions_are_computed_outside_the_scanned_layer():
    jaxpr = jax.make_jaxpr(lambda p: forward(V1_1, p, *batch()))(abstract_params(V1_1))
    bodies = [
        e.params["jaxpr"].jaxpr for e in _equations(jaxpr.jaxpr) if e.primitive.name == "scan"
    ]
    assert len(bodies) == 2
    for body in bodies:
        names = {e.primitive.name for e in _equations(body)}
        assert not names & {"eq", "ge", "gather", "iota"}, names


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


# As T5X's minimal T5 spells them, kernels of rank 2.
ATTENTION = {f"{name}/kernel" for name in ("query", "key", "value", "out")}
ENCODER_LAYER = {
    "pre_attention_layer_norm/scale",
    *(f"attention/{name}" for name in ATTENTION),
    "pre_mlp_layer_norm/scale",
    "mlp/wi_0/kernel",
    "mlp/wi_1/kernel",
    "mlp/wo/kernel",
}
DECODER_LAYER = {
    "pre_self_attention_layer_norm/scale",
    *(f"self_attention/{name}" for name in ATTENTION),
    "pre_cross_attention_layer_norm/scale",
    *(f"encoder_decoder_attention/{name}" for name in ATTENTION),
    "pre_mlp_layer_norm/scale",
    "mlp/wi_0/kernel",
    "mlp/wi_1/kernel",
    "mlp/wo/kernel",
}
OUTSIDE = {
    "token_embedder/embedding",
    "encoder/relpos_bias/rel_embedding",
    "encoder/encoder_norm/scale",
    "decoder/relpos_bias/rel_embedding",
    "decoder/decoder_norm/scale",
}


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def test_parameter_names_are_t5x_s():
    unrolled = flat(abstract_params(dataclasses.replace(V1_1, scan_layers=False)))
    assert set(unrolled) == {
        *OUTSIDE,
        "decoder/logits_dense/kernel",
        *(f"encoder/layers_{i}/{name}" for i in range(3) for name in ENCODER_LAYER),
        *(f"decoder/layers_{i}/{name}" for i in range(2) for name in DECODER_LAYER),
    }
    assert unrolled["encoder/layers_0/attention/query/kernel"].shape == (16, 8)
    assert unrolled["encoder/layers_0/attention/out/kernel"].shape == (8, 16)
    assert unrolled["decoder/relpos_bias/rel_embedding"].shape == (2, 32)
    assert unrolled["decoder/logits_dense/kernel"].shape == (16, 37)

    tied = flat(abstract_params(dataclasses.replace(V1_0, scan_layers=False)))
    relu = {name.replace("wi_0", "wi") for name in unrolled if "wi_1" not in name}
    assert set(tied) == relu - {"decoder/logits_dense/kernel"}


def test_scanned_parameters_have_a_leading_axis_of_layers():
    scanned = flat(abstract_params(V1_1))
    assert set(scanned) == {
        *OUTSIDE,
        "decoder/logits_dense/kernel",
        *(f"encoder/layers/{name}" for name in ENCODER_LAYER),
        *(f"decoder/layers/{name}" for name in DECODER_LAYER),
    }
    assert scanned["encoder/layers/mlp/wo/kernel"].shape == (3, 24, 16)
    assert scanned["decoder/layers/mlp/wo/kernel"].shape == (2, 24, 16)


@SCAN
@VARIANTS
def test_every_parameter_names_each_of_its_axes(config, scan_layers):
    config = dataclasses.replace(config, scan_layers=scan_layers)
    shapes, axes = flat(abstract_params(config)), flat(logical_axes(config))
    assert set(axes) == set(shapes)
    for name, names in axes.items():
        assert len(names) == len(shapes[name].shape), name
        assert set(names) <= set(LOGICAL_AXES), name
        assert ("layers" in names) is ("/layers/" in name), name
        assert "layers" not in names[1:], name
    sizes = {"vocab": 37, "embed": 16, "mlp": 24, "joined_kv": 8, "heads": 2, "relpos_buckets": 32}
    for name, names in axes.items():
        rest = zip(names, shapes[name].shape, strict=True)
        assert all(sizes[axis] == size for axis, size in rest if axis != "layers"), name


def test_initial_standard_deviations_are_t5x_s():
    config = T5Config(
        vocab_size=400,
        emb_dim=64,
        num_heads=4,
        head_dim=32,
        mlp_dim=256,
        num_encoder_layers=4,
        num_decoder_layers=4,
        embedding_init_scale=0.5,
    )
    params = flat(init_params(config, jax.random.key(0)))
    std = {
        "token_embedder/embedding": 0.5,
        "encoder/layers/attention/query/kernel": (64 * 32) ** -0.5,
        "encoder/layers/attention/key/kernel": 64**-0.5,
        "decoder/layers/self_attention/value/kernel": 64**-0.5,
        "decoder/layers/encoder_decoder_attention/out/kernel": 128**-0.5,
        "decoder/layers/mlp/wi_0/kernel": 64**-0.5,
        "decoder/layers/mlp/wo/kernel": 256**-0.5,
        "decoder/logits_dense/kernel": 64**-0.5,
        # Uniform of variance 1 / mean(heads, buckets).
        "encoder/relpos_bias/rel_embedding": 18**-0.5,
    }
    for name, expected in std.items():
        tolerance = 0.2 if "relpos" in name else 0.03
        assert float(params[name].std()) == pytest.approx(expected, rel=tolerance), name
    assert (params["encoder/encoder_norm/scale"] == 1).all()
    # No layer of a stack starts as a copy of another.
    kernels = params["encoder/layers/mlp/wo/kernel"]
    assert float(jnp.max(jnp.abs(kernels[0] - kernels[1]))) > 0.1


def test_sharded_over_eight_devices_equals_one_device():
    config = dataclasses.replace(V1_1, vocab_size=40)
    params = random_params(config)
    args = batch([(0, 1), (2, 3)] * 2)
    alone = jax.jit(jax.value_and_grad(lambda p: _mean(config, p, args)))
    expected_loss, expected = alone(params)

    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("fsdp", "tensor"))
    rules = [
        ("batch", "fsdp"),
        ("vocab", "tensor"),
        ("mlp", "tensor"),
        ("heads", "tensor"),
        ("joined_kv", "tensor"),
        ("embed", "fsdp"),
    ]
    specs = jax.tree.map(
        lambda names: NamedSharding(mesh, nn.logical_to_mesh_axes(names, rules)),
        logical_axes(config),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        step = jax.jit(
            jax.value_and_grad(lambda p, *args: _mean(config, p, args)), out_shardings=(None, specs)
        )
        found_loss, found = step(jax.device_put(params, specs), *jax.device_put(args, rows))
    kernel = flat(found)["decoder/logits_dense/kernel"]
    assert kernel.addressable_shards[0].data.shape == (16 // 4, 40 // 2)
    assert float(found_loss) == pytest.approx(float(expected_loss), abs=1e-5)
    assert_trees_close(found, expected, atol=1e-5)


def _mean(config, params, args):
    return jnp.mean(jax.nn.log_softmax(forward(config, params, *args)) ** 2)
