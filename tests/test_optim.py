import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepdistill_jax.optim import OptimizerConfig, decay_mask, optimizer, schedule
from stepdistill_jax.spec import InputError


def rates(steps, train_steps, **settings):
    rate = schedule(OptimizerConfig(learning_rate=1.0, **settings), train_steps)
    return [float(rate(step)) for step in steps]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Updates made:                    0    1    2     4     8     10
        ({"schedule": "linear"}, [1.0, 0.9, 0.8, 0.6, 0.2, 0.0]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.0, 0.5, 1.0, 0.75, 0.25, 0.0]),
        ({"schedule": "constant"}, [1.0] * 6),
        ({"schedule": "constant", "warmup_steps": 4}, [0.0, 0.25, 0.5, 1.0, 1.0, 1.0]),
        (
            {"schedule": "cosine", "warmup_steps": 2},
            [0.0, 0.5, 1.0, (1 + math.sqrt(0.5)) / 2, (1 - math.sqrt(0.5)) / 2, 0.0],
        ),
        (
            {"schedule": "rsqrt", "warmup_steps": 2},
            [0.0, 0.5, 1.0, math.sqrt(2 / 4), math.sqrt(2 / 8), math.sqrt(2 / 10)],
        ),
        (
            {"schedule": "rsqrt"},
            [1 / math.sqrt(1 + step / 10_000) for step in (0, 1, 2, 4, 8, 10)],
        ),
    ],
)
def test_schedule_by_hand(settings, expected):
    assert rates((0, 1, 2, 4, 8, 10), 10, **settings) == pytest.approx(expected, abs=1e-6)


def adamw_by_hand(parameter, gradients, rates, weight_decay):
    """PyTorch's documented rule, in float64."""
    m = v = 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        parameter = parameter * (1 - rate * weight_decay)
        step = (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        parameter = parameter - rate * step
    return parameter


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_with_linear_decay_by_hand(weight_decay):
    config = OptimizerConfig(learning_rate=0.1, weight_decay=weight_decay, clip_norm=0.0)
    rule = optimizer(config, train_steps=4)
    params = {"kernel": jnp.float32(2.0)}
    state = rule.init(params)
    gradients = [0.5, -0.25, 3.0]
    for gradient in gradients:
        updates, state = rule.update({"kernel": jnp.float32(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    expected = adamw_by_hand(2.0, gradients, [0.1, 0.075, 0.05], weight_decay)
    assert float(params["kernel"]) == pytest.approx(expected, rel=1e-5)


def test_gradient_is_clipped_by_its_global_norm_before_the_update():
    # With beta1 = beta2 = 0 and a huge epsilon the update is -lr * clipped / epsilon.
    config = OptimizerConfig(
        learning_rate=1.0, schedule="constant", beta1=0.0, beta2=0.0, epsilon=1e6, clip_norm=1.0
    )
    rule = optimizer(config, train_steps=1)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = rule.update(gradients, rule.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6e-6], rtol=1e-4)
    np.testing.assert_allclose(updates["b"], [-0.8e-6], rtol=1e-4)


def test_decay_spares_norms_and_relative_position_bias():
    params = {
        "token_embedder": {"embedding": 0},
        "encoder": {
            "layers": {
                "attention": {"query": {"kernel": 0}},
                "pre_attention_layer_norm": {"scale": 0},
            },
            "relpos_bias": {"rel_embedding": 0},
            "encoder_norm": {"scale": 0},
        },
    }
    assert decay_mask(params) == {
        "token_embedder": {"embedding": True},
        "encoder": {
            "layers": {
                "attention": {"query": {"kernel": True}},
                "pre_attention_layer_norm": {"scale": False},
            },
            "relpos_bias": {"rel_embedding": False},
            "encoder_norm": {"scale": False},
        },
    }


def test_adafactor_first_step_by_hand():
    # At the first step the second moment is the squared gradient itself, so the update is its
    # sign (root mean square 1, not clipped), times the parameter's root mean square.
    config = OptimizerConfig(name="adafactor", learning_rate=0.5, schedule="constant")
    rule = optimizer(config, train_steps=10)
    params = {"kernel": jnp.array([3.0, 4.0])}
    gradients = {"kernel": jnp.array([0.1, -0.2])}
    updates, _ = rule.update(gradients, rule.init(params), params)
    step = 0.5 * math.sqrt(12.5)
    np.testing.assert_allclose(updates["kernel"], [-step, step], rtol=1e-5)


def test_adafactor_stores_two_vectors_for_a_large_kernel():
    rule = optimizer(OptimizerConfig(name="adafactor"), train_steps=10)
    params = {"kernel": jnp.ones((256, 128))}
    size = sum(leaf.size for leaf in jax.tree.leaves(rule.init(params)))
    assert size < 256 + 128 + 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sgd"}, "OPTIMIZER: got 'sgd', expected one of 'adamw', 'adafactor'"),
        ({"schedule": "step"}, "SCHEDULE: got 'step', expected one of 'linear', 'constant'"),
        ({"learning_rate": math.nan}, "LEARNING_RATE: got nan"),
        ({"clip_norm": -1.0}, "CLIP_NORM: got -1.0"),
        ({"beta2": 1.0}, "BETA2: got 1.0"),
        ({"epsilon": 0.0}, "EPSILON: got 0.0"),
        ({"name": "adafactor", "weight_decay": 0.1}, "WEIGHT_DECAY=0.1 has no effect"),
    ],
)
def test_illegal_settings_name_the_macro(settings, message):
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)


def test_warmup_as_long_as_training_is_refused():
    with pytest.raises(InputError, match="WARMUP_STEPS=10: expected less than TRAIN_STEPS=10"):
        schedule(OptimizerConfig(warmup_steps=10), train_steps=10)
