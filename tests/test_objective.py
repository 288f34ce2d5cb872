import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepdistill_jax import objective
from stepdistill_jax.objective import (
    ObjectiveConfig,
    StreamSums,
    alpha_schedule,
    coefficients,
    combine,
    cross_entropy_sums,
    shift_right,
    stream_sums,
)
from stepdistill_jax.spec import InputError

PLAIN = ObjectiveConfig()


def random_case(B=3, T=10, V=17, seed=0):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(B, T, V)) * 4, jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    weights = jnp.asarray(rng.choice([0.0, 1.0, 0.5], (B, T)), jnp.float32)
    return logits, targets, weights


def soft_cross_entropy(logits, targets, weights, z_loss, smoothing):
    """The textbook form with the [B, T, V] distribution written out, in float64."""
    logits = np.asarray(logits, np.float64)
    V = logits.shape[-1]
    soft = np.full(logits.shape, smoothing / (V - 1))
    np.put_along_axis(soft, np.asarray(targets)[..., None], 1 - smoothing, axis=-1)
    log_z = np.log(np.exp(logits).sum(-1))
    losses = -(soft * (logits - log_z[..., None])).sum(-1)
    losses += (soft * np.log(np.where(soft > 0, soft, 1.0))).sum(-1)
    losses += z_loss * log_z**2
    return (losses * np.asarray(weights)).sum()


def test_two_tokens_by_hand():
    # Token 1: logits (ln 3, 0), target 0 -> ln(4/3). Token 2: logits (0, 0), target 1 -> ln 2.
    logits = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0]]]))
    sums = cross_entropy_sums(logits, jnp.array([[0, 1]]), jnp.array([[1.0, 3.0]]), PLAIN)
    assert float(sums.loss) == pytest.approx(math.log(4 / 3) + 3 * math.log(2), rel=1e-6)
    assert float(sums.weight) == 4.0
    assert float(sums.correct) == 4.0  # the second token's tie counts


@pytest.mark.parametrize(
    ("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.1), (1e-2, 0.1)]
)
def test_value_and_gradient_equal_the_written_out_distribution(z_loss, smoothing):
    logits, targets, weights = random_case()
    config = ObjectiveConfig(z_loss=z_loss, label_smoothing=smoothing)

    def ours(logits):
        return cross_entropy_sums(logits, targets, weights, config).loss

    def written_out(logits):
        V = logits.shape[-1]
        one_hot = jax.nn.one_hot(targets, V)
        soft = one_hot * (1 - smoothing) + (1 - one_hot) * smoothing / (V - 1)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        losses = optax.softmax_cross_entropy(logits, soft) + z_loss * log_z**2
        return jnp.sum(losses * weights)

    value, slope = jax.value_and_grad(ours)(logits)
    expected = soft_cross_entropy(logits, targets, weights, z_loss, smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, jax.grad(written_out)(logits), rtol=1e-5, atol=1e-6)


def test_smoothed_loss_of_a_perfect_model_is_zero():
    V, s = 5, 0.2
    probabilities = jnp.full((1, 1, V), s / (V - 1)).at[0, 0, 2].set(1 - s)
    sums = cross_entropy_sums(
        jnp.log(probabilities),
        jnp.array([[2]]),
        jnp.ones((1, 1)),
        ObjectiveConfig(label_smoothing=s),
    )
    assert abs(float(sums.loss)) < 1e-6


def test_large_logits_stay_finite():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    loss, slope = jax.value_and_grad(
        lambda x: cross_entropy_sums(x, jnp.array([[1]]), jnp.ones((1, 1)), PLAIN).loss
    )(logits)
    assert float(loss) == 2e4
    np.testing.assert_array_equal(slope, [[[1.0, -1.0, 0.0]]])


def test_bfloat16_logits_are_summed_in_float32():
    logits, targets, weights = random_case()
    low = logits.astype(jnp.bfloat16)
    sums = cross_entropy_sums(low, targets, weights, PLAIN)
    same = cross_entropy_sums(low.astype(jnp.float32), targets, weights, PLAIN)
    assert sums.loss.dtype == jnp.float32
    assert float(sums.loss) == float(same.loss)


def test_weight_zero_hides_a_token_from_loss_and_gradient():
    logits, targets, weights = random_case()
    changed = logits.at[weights == 0].add(3.0)
    f = jax.value_and_grad(lambda x: cross_entropy_sums(x, targets, weights, PLAIN).loss)
    assert float(f(logits)[0]) == float(f(changed)[0])
    assert not np.any(np.asarray(f(logits)[1])[np.asarray(weights) == 0])


@pytest.mark.parametrize("chunk", [1, 3, 5, 9])
def test_chunked_equals_whole(chunk):
    _, targets, weights = random_case(T=10)
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(3, 10, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(8, 17)), jnp.float32)

    def loss(hidden, kernel, config):
        sums = stream_sums(lambda h: h @ kernel, hidden, targets, weights, config)
        return sums.loss, sums

    f = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, whole), whole_slopes = f(hidden, kernel, ObjectiveConfig(z_loss=1e-3))
    (_, chunked), slopes = f(hidden, kernel, ObjectiveConfig(z_loss=1e-3, logits_chunk=chunk))
    np.testing.assert_allclose(chunked, whole, rtol=1e-6)
    for ours, expected in zip(slopes, whole_slopes, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("budget", "row_shards", "held"), [(17, 1, 1), (17 * 12, 1, 4), (17, 12, 4)]
)
def test_automatic_chunk_keeps_to_the_budget(monkeypatch, budget, row_shards, held):
    monkeypatch.setattr(objective, "LOGITS_BUDGET", budget)
    kernel = jnp.ones((8, 17))
    shapes = []

    def logits_fn(h):
        shapes.append(h.shape[1])
        return h @ kernel

    _, targets, weights = random_case(T=10)
    stream_sums(logits_fn, jnp.ones((3, 10, 8)), targets, weights, PLAIN, row_shards=row_shards)
    assert shapes[0] == 10  # asked for the shape only
    assert set(shapes[1:]) == {held}


def test_combine_is_the_weighted_sum_of_token_means():
    sums = {
        "label": StreamSums(jnp.float32(6.0), jnp.float32(3.0), jnp.float32(2.0)),
        "rationale": StreamSums(jnp.float32(50.0), jnp.float32(10.0), jnp.float32(5.0)),
    }
    loss, metrics = combine(sums, alpha=0.25)
    assert float(loss) == pytest.approx(0.25 * 2.0 + 0.75 * 5.0)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "loss": 4.25,
            "label_loss": 2.0,
            "label_accuracy": 2 / 3,
            "label_tokens": 3.0,
            "rationale_loss": 5.0,
            "rationale_accuracy": 0.5,
            "rationale_tokens": 10.0,
        }
    )


def test_second_stream_has_what_alpha_leaves_whichever_it_is():
    weights = {"label": jnp.float32(2.0), "counterfactual": jnp.float32(5.0)}
    factors = coefficients(weights, jnp.float32(0.25))
    assert {name: float(factor) for name, factor in factors.items()} == pytest.approx(
        {"label": 0.25 / 2, "counterfactual": 0.75 / 5}
    )


def test_only_the_counterfactual_stream_has_its_own_smoothing():
    config = ObjectiveConfig(label_smoothing=0.02, counterfactual_smoothing=0.3, z_loss=1e-3)
    assert config.of_stream("label") == config.of_stream("rationale") == config
    own = config.of_stream("counterfactual")
    assert (own.label_smoothing, own.z_loss) == (0.3, 1e-3)


@pytest.mark.parametrize(("step", "alpha"), [(0, 0.8), (250, 0.65), (1000, 0.2), (2000, 0.2)])
def test_alpha_falls_linearly(step, alpha):
    schedule = alpha_schedule(ObjectiveConfig(alpha=0.8, alpha_end=0.2), train_steps=1000)
    assert schedule is not None
    assert float(schedule(step)) == pytest.approx(alpha, rel=1e-6)


def test_label_stream_alone_is_its_mean_whatever_alpha_is():
    sums = {"label": StreamSums(jnp.float32(6.0), jnp.float32(3.0), jnp.float32(2.0))}
    assert float(combine(sums, alpha=0.25)[0]) == 2.0


def test_stream_without_weight_counts_nothing_and_is_not_nan():
    def loss(scale):
        sums = {
            "label": StreamSums(6.0 * scale, jnp.float32(3.0), jnp.float32(2.0)),
            "rationale": StreamSums(0.0 * scale, jnp.float32(0.0), jnp.float32(0.0)),
        }
        return combine(sums, alpha=0.5)

    (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(jnp.float32(1.0))
    assert float(value) == 1.0
    assert float(slope) == 1.0
    assert float(metrics["rationale_loss"]) == 0.0
    assert float(metrics["rationale_accuracy"]) == 0.0


def test_shift_right_restarts_in_every_segment():
    targets = jnp.array([[5, 6, 1, 7, 1, 0], [8, 1, 0, 0, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]])
    expected = [[0, 5, 6, 0, 7, 0], [0, 8, 0, 0, 0, 0]]
    np.testing.assert_array_equal(shift_right(targets, segments), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"ALPHA: got 1.5, expected a number in \[0, 1\]"),
        ({"alpha": math.nan}, "ALPHA: got nan"),
        ({"alpha_end": -0.1}, r"ALPHA_END: got -0.1, expected a number in \[0, 1\]"),
        ({"counterfactual_smoothing": 1.0}, "COUNTERFACTUAL_SMOOTHING: got 1.0"),
        ({"z_loss": -1.0}, "Z_LOSS: got -1.0"),
        ({"label_smoothing": 1.0}, "LABEL_SMOOTHING: got 1.0"),
        ({"logits_chunk": -1}, "LOGITS_CHUNK: got -1"),
    ],
)
def test_illegal_settings_name_the_macro(settings, message):
    with pytest.raises(InputError, match=message):
        ObjectiveConfig(**settings)
