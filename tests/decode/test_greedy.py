import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params, unstack_layers

from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import Transformer
from stepdistill_jax.spec import EOS_ID

V1_1 = T5Config(
    vocab_size=23,
    emb_dim=16,
    num_heads=2,
    head_dim=4,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
V1_0 = dataclasses.replace(V1_1, mlp_activations=("relu",), logits_via_embedding=True)
VARIANTS = pytest.mark.parametrize("config", [V1_0, V1_1], ids=["v1_0", "v1_1"])
SCAN = pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unrolled"])

INPUTS = jnp.array([[5, 9, 3, 1, 0, 0], [12, 20, 21, 4, 22, 1], [1, 0, 0, 0, 0, 0]], jnp.int32)
SEGMENTS = (INPUTS > 0).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("config", "length", "method"))
def apply(config, params, *args, length=None, method=None):
    args = args if length is None else (*args, length)
    return Transformer(config).apply({"params": params}, *args, method=method)


def teacher_forced(config, params, decoder_inputs):
    """float32 [B, T, V] of a whole pass without a cache."""
    ones = jnp.ones_like(decoder_inputs)
    return apply(config, params, INPUTS, SEGMENTS, decoder_inputs, ones)


@SCAN
@VARIANTS
def test_cached_decode_equals_teacher_forcing_at_every_position(config, scan_layers):
    config = dataclasses.replace(config, scan_layers=scan_layers)
    params = random_params(config)
    # More positions than exact buckets of the relative-position bias.
    fed = jax.random.randint(jax.random.key(1), (3, 18), 2, 23).at[:, 0].set(0)
    expected = teacher_forced(config, params, fed)

    encoded = apply(config, params, INPUTS, SEGMENTS, method="encode")
    # A cache may be longer than what is fed.
    cache = apply(config, params, encoded, SEGMENTS, length=20, method="start_cache")
    for position in range(18):
        logits, cache = apply(config, params, fed[:, position], cache, method="decode_step")
        np.testing.assert_allclose(logits, expected[:, position], atol=1e-5, rtol=0)


@SCAN
@VARIANTS
def test_greedy_takes_the_best_token_of_a_whole_pass(config, scan_layers):
    # With which several tokens are written, and some rows end.
    params = random_params(config, seed=75)
    config = dataclasses.replace(config, scan_layers=scan_layers)
    params = params if scan_layers else unstack_layers(params)
    found = np.asarray(greedy(config, params, INPUTS, SEGMENTS, max_length=9))
    assert len(np.unique(found)) > 4
    assert (found == EOS_ID).any()

    expected = np.zeros((3, 9), np.int32)
    ended = np.zeros(3, bool)
    for position in range(9):
        fed = jnp.asarray(np.pad(expected, ((0, 0), (1, 0)))[:, :9])
        best = np.argmax(teacher_forced(config, params, fed)[:, position], axis=-1)
        expected[:, position] = np.where(ended, 0, best)
        ended |= best == 1
    assert found.dtype == np.int32
    assert found.tolist() == expected.tolist()


# Rows: EOS second; EOS fourth; EOS at once, and other tokens that must not be written after it.
SCRIPT = np.array([[7, 1, 9, 9, 9, 9], [5, 6, 7, 1, 9, 9], [1, 4, 4, 4, 4, 4]])


@pytest.fixture
def scripted(monkeypatch):
    """Decode steps that say `SCRIPT` whatever they are fed; counts the steps that ran."""
    steps = []

    def decode_step(self, tokens, cache):
        # The real step too: its parameters and cache stay in use.
        logits, after = Transformer.real_decode_step(self, tokens, cache)
        jax.debug.callback(lambda _: steps.append(1), cache.index)
        said = jnp.asarray(SCRIPT)[: tokens.shape[0], cache.index]
        return jax.nn.one_hot(said, logits.shape[-1]) + 0 * logits, after

    monkeypatch.setattr(Transformer, "real_decode_step", Transformer.decode_step, raising=False)
    monkeypatch.setattr(Transformer, "decode_step", decode_step)
    # What was compiled without the script must not serve here, nor the other way round.
    greedy.clear_cache()
    yield steps
    greedy.clear_cache()


def test_stops_when_the_last_row_ends_and_pads_after_eos(scripted):
    params = random_params(V1_1)
    found = greedy(V1_1, params, INPUTS, SEGMENTS, max_length=6)
    assert found.tolist() == [[7, 1, 0, 0, 0, 0], [5, 6, 7, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    jax.effects_barrier()
    assert len(scripted) == 4


def test_rows_of_padding_count_as_ended(scripted):
    params = random_params(V1_1)
    segments = SEGMENTS.at[1].set(0)
    found = greedy(V1_1, params, INPUTS, segments, max_length=6)
    assert found.tolist() == [[7, 1, 0, 0, 0, 0], [0] * 6, [1, 0, 0, 0, 0, 0]]
    jax.effects_barrier()
    assert len(scripted) == 2


def test_stops_at_the_longest_length(scripted):
    params = random_params(V1_1)
    found = greedy(V1_1, params, INPUTS, SEGMENTS, max_length=3)
    assert found.tolist() == [[7, 1, 0], [5, 6, 7], [1, 0, 0]]


def test_a_batch_of_padding_decodes_nothing():
    params = random_params(V1_1)
    found = greedy(V1_1, params, INPUTS, jnp.zeros_like(SEGMENTS), max_length=4)
    assert found.tolist() == [[0] * 4] * 3


def test_compiled_once_per_shape():
    config = dataclasses.replace(V1_1, num_encoder_layers=1)
    params = random_params(config)
    greedy(config, params, INPUTS, SEGMENTS, max_length=4)
    compiled = greedy._cache_size()
    for shift in range(3):
        greedy(config, params, (INPUTS + shift) % 23, SEGMENTS, max_length=4)
    assert greedy._cache_size() == compiled
    greedy(config, params, INPUTS[:, :5], SEGMENTS[:, :5], max_length=4)
    assert greedy._cache_size() == compiled + 1


@SCAN
def test_the_loop_never_projects_the_encoder_output(scan_layers):
    config = dataclasses.replace(V1_1, scan_layers=scan_layers)
    params = random_params(config)
    jaxpr = jax.make_jaxpr(greedy, static_argnums=(0, 4))(config, params, INPUTS, SEGMENTS, 7)
    outer = jaxpr.jaxpr.eqns[0].params["jaxpr"].jaxpr
    (loop,) = [e for e in outer.eqns if e.primitive.name == "while"]
    encoded = "float32[3,6,16]"
    shapes = [v.aval.str_short() for e in outer.eqns for v in e.outvars]
    assert encoded in shapes
    assert encoded not in [v.aval.str_short() for v in loop.invars]


def test_bfloat16_cache_decodes():
    config = dataclasses.replace(V1_1, dtype="bfloat16")
    params = random_params(config)
    encoded = apply(config, params, INPUTS, SEGMENTS, method="encode")
    cache = apply(config, params, encoded, SEGMENTS, length=5, method="start_cache")
    assert {cache.self_key.dtype, cache.cross_value.dtype} == {jnp.dtype(jnp.bfloat16)}
    fed = jnp.zeros(3, jnp.int32)
    logits, _ = apply(config, params, fed, cache, method="decode_step")
    expected = teacher_forced(config, params, fed[:, None])[:, 0]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.05)
    assert greedy(config, params, INPUTS, SEGMENTS, max_length=5).shape == (3, 5)
