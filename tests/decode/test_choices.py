import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params, unstack_layers

from stepdistill_jax.decode.choices import choice_log_probs, choice_probabilities
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import Transformer

V1_1 = T5Config(
    vocab_size=23,
    emb_dim=16,
    num_heads=2,
    head_dim=4,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
V1_0 = dataclasses.replace(V1_1, mlp_activations=("relu",), logits_via_embedding=True)
VARIANTS = pytest.mark.parametrize("config", [V1_0, V1_1], ids=["v1_0", "v1_1"])

INPUTS = jnp.array([[5, 9, 3, 1, 0], [12, 20, 21, 4, 1]], jnp.int32)
SEGMENTS = (INPUTS > 0).astype(jnp.int32)
# Row 0 has three choices of 1 to 3 tokens and an absent one, row 1 four.
CHOICES = [
    [[7, 8, 1], [4, 1, 0], [1, 0, 0], [0, 0, 0]],
    [[9, 1, 0], [4, 5, 1], [4, 6, 1], [22, 1, 0]],
]


@functools.partial(jax.jit, static_argnums=0)
def whole_pass(config, params, *args):
    return jax.nn.log_softmax(Transformer(config).apply({"params": params}, *args))


def alone(config, params, row, choice):
    """Log-probabilities of one choice's tokens, from a pass with nothing else in it."""
    targets = jnp.array([choice], jnp.int32)
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    logs = whole_pass(
        config, params, INPUTS[row][None], SEGMENTS[row][None], shifted, jnp.sign(targets)
    )
    return [float(logs[0, position, token]) for position, token in enumerate(choice) if token]


@VARIANTS
def test_a_choice_scores_as_it_does_alone(config):
    params = random_params(config)
    found = choice_log_probs(config, params, INPUTS, SEGMENTS, jnp.array(CHOICES))
    for row, choices in enumerate(CHOICES):
        for column, choice in enumerate(choices):
            if any(choice):
                expected = sum(alone(config, params, row, choice))
                assert float(found[row, column]) == pytest.approx(expected, abs=1e-5)
    assert found[0, 3] == -np.inf


def test_scanned_equals_unrolled():
    params = random_params(V1_1)
    unrolled = dataclasses.replace(V1_1, scan_layers=False)
    args = (INPUTS, SEGMENTS, jnp.array(CHOICES))
    np.testing.assert_allclose(
        choice_log_probs(unrolled, unstack_layers(params), *args),
        choice_log_probs(V1_1, params, *args),
        atol=1e-5,
    )


def test_order_of_the_choices_and_padding_of_the_inputs_do_not_matter():
    params = random_params(V1_1)
    choices = jnp.array(CHOICES)
    found = choice_log_probs(V1_1, params, INPUTS, SEGMENTS, choices)
    wider = [jnp.pad(x, ((0, 0), (0, 3))) for x in (INPUTS, SEGMENTS)]
    reversed_ = choice_log_probs(V1_1, params, *wider, choices[:, ::-1])
    np.testing.assert_allclose(reversed_[:, ::-1], found, atol=1e-5)


def test_the_encoder_runs_once_for_all_choices():
    params = random_params(V1_1)
    jaxpr = jax.make_jaxpr(choice_log_probs, static_argnums=0)(
        V1_1, params, INPUTS, SEGMENTS, jnp.array(CHOICES)
    )
    text = str(jaxpr)
    # Activations of the inputs exist for the 2 rows alone, not for rows x choices.
    assert "f32[2,5,16]" in text
    assert "f32[8,5,16]" not in text


def test_probabilities_are_over_what_exists():
    inf = np.inf
    log_probs = jnp.log(jnp.array([[0.1, 0.3, 0.0], [0.2, 0.2, 0.4], [0.0, 0.0, 0.0]]))
    assert log_probs[0, 2] == -inf
    np.testing.assert_allclose(
        choice_probabilities(log_probs),
        [[0.25, 0.75, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 0.0]],
        atol=1e-6,
    )
