"""T5X's own network under our model class against our network and our train step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("t5x.models", reason="t5x is not importable; see stepdistill_jax/t5x/README.md")

from t5x import train_state as train_state_lib
from t5x import trainer
from t5x_cases import (
    PAIR,
    ROW,
    convert,
    our_batch,
    our_config,
    parameters,
    t5x_model,
    t5x_s_jax,  # noqa: F401 (a fixture)
    without_some_rationales,
)

from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.objective import ObjectiveConfig, combine
from stepdistill_jax.spec import EOS_ID, LABEL, METHOD_STREAMS, STREAMS, InputError
from stepdistill_jax.t5x.features import stream_features
from stepdistill_jax.train.step import batch_sums

TOLERANCE = 1e-5


def our_loss(variant, streams=STREAMS, **objective):
    config = ObjectiveConfig(**objective)

    def loss(params, batch):
        sums = batch_sums(our_config(variant), config, streams, params, batch, None)
        return combine(sums, config.alpha)

    return loss


@functools.cache
def batch(packed):
    made = convert(True, ROW, 6) if packed else convert(False, PAIR, 16)
    if packed:
        assert made["decoder_segment_ids"].max() == 3
    return without_some_rationales(made)


def t5x_loss(model, params, features, rng=None):
    return jax.jit(model.loss_fn)(params, features, rng)


def close(ours, theirs):
    np.testing.assert_allclose(theirs, ours, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("variant", "packed"),
    [("1.0", True), ("1.1", False), ("1.1", True)],
    ids=["1.0 packed", "1.1 unpacked", "1.1 packed"],
)
def test_loss_and_gradients_equal_ours(variant, packed):
    objective = {"alpha": 0.3, "z_loss": 1e-3, "label_smoothing": 0.1}
    params, features = parameters(variant), batch(packed)
    grad = jax.jit(jax.value_and_grad(our_loss(variant, **objective), has_aux=True))
    (ours, metrics), our_gradients = grad(params, our_batch(features))
    model = t5x_model(variant, **objective)
    grad = jax.jit(jax.value_and_grad(lambda p, b: model.loss_fn(p, b, None), has_aux=True))
    (theirs, their_metrics), their_gradients = grad(params, features)
    print(f"T5 {variant} {packed=}: ours {float(ours):.7f}, T5X {float(theirs):.7f}")
    close(ours, theirs)
    for stream in STREAMS:
        close(metrics[f"{stream}_loss"], their_metrics[f"{stream}_loss"].compute())
        close(metrics[f"{stream}_accuracy"], their_metrics[f"{stream}_accuracy"].compute())
    close(ours, their_metrics["loss"].compute())
    both = zip(jax.tree.leaves(our_gradients), jax.tree.leaves(their_gradients), strict=True)
    largest = max(float(jnp.max(jnp.abs(a - b))) for a, b in both)
    print(f"largest difference of a gradient: {largest:.1e}")
    jax.tree.map(close, our_gradients, their_gradients)


def test_parameters_are_t5x_s_by_name_and_shape():
    model, features = t5x_model(), batch(packed=True)
    shapes = {name: value.shape for name, value in features.items()}
    types = {name: value.dtype for name, value in features.items()}
    variables = jax.eval_shape(
        lambda rng: model.get_initial_variables(rng, shapes, types), jax.random.key(0)
    )
    theirs = jax.tree.map(lambda x: x.shape, dict(variables["params"]))
    assert theirs == jax.tree.map(lambda x: x.shape, parameters())


def test_streams_of_unequal_input_lengths_give_the_same_loss():
    features = convert(False, PAIR, 16)
    longer = convert(False, PAIR | {"rationale_inputs": 24}, 16)
    assert longer["rationale_encoder_input_tokens"].shape == (16, 24)
    model = t5x_model()
    equal, _ = t5x_loss(model, parameters(), features)
    unequal, _ = t5x_loss(model, parameters(), longer)
    close(equal, unequal)


def test_alpha_one_is_standard_finetuning():
    features = batch(packed=True)
    model = t5x_model(alpha=1.0)
    theirs, metrics = t5x_loss(model, parameters(), features)
    ours, _ = our_loss("1.1", METHOD_STREAMS["standard"])(parameters(), our_batch(features))
    close(ours, theirs)
    assert "rationale_loss" not in metrics


def test_dropout_is_drawn_from_the_rng_alone():
    model, features = t5x_model(dropout_rate=0.3), convert(False, PAIR, 16)
    loss = jax.jit(model.loss_fn)
    losses = [float(loss(parameters(), features, jax.random.key(seed))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def train_state(model):
    return train_state_lib.FlaxOptimTrainState.create(model.optimizer_def, {"params": parameters()})


def gradients(model, features, microbatches):
    accumulated, metrics, _ = jax.jit(
        lambda state, features: trainer.accumulate_grads_microbatched(
            model, state, features, jax.random.PRNGKey(0), microbatches, None
        )
    )(train_state(model), features)
    return accumulated, metrics


@pytest.fixture
def no_mesh(monkeypatch):
    """Sharding annotations need a partitioner's mesh, which these tests do without."""
    monkeypatch.setattr(trainer.partitioning, "with_sharding_constraint", lambda x, spec: x)


def test_microbatches_with_loss_factors_give_the_whole_batch_s_gradient(no_mesh):
    model, features = t5x_model(), batch(packed=True)
    whole, whole_metrics = gradients(model, features, None)
    parts, metrics = gradients(model, model.with_loss_factors(features), 3)
    jax.tree.map(close, whole, parts)
    close(whole_metrics["label_loss"].compute(), metrics["label_loss"].compute())
    close(whole_metrics["loss"].total, metrics["loss"].total)


def test_microbatches_of_t5x_s_own_trainer_are_refused(no_mesh):
    model, features = t5x_model(), batch(packed=True)
    shapes = {name: value.shape for name, value in features.items()}
    jax.eval_shape(lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes))
    gradients(model, features, 1)
    with pytest.raises(InputError, match=r"2 of a batch's 6 rows.*@StepByStepTrainer"):
        gradients(model, features, 3)


def test_prediction_reads_the_label_stream_alone_and_equals_our_greedy_decode():
    features = convert(False, PAIR, 16)
    label = stream_features(features, LABEL)
    # Room for more tokens than a label has, so that some rows end and others do not.
    label |= {
        name: np.zeros((16, 6), np.int32)
        for name in ("decoder_input_tokens", "decoder_target_tokens")
    }
    params = jax.tree.map(jnp.copy, parameters())
    kernel = params["decoder"]["logits_dense"]["kernel"]
    params["decoder"]["logits_dense"]["kernel"] = kernel.at[:, EOS_ID].multiply(1.5)
    model = t5x_model()
    predicted, aux = jax.jit(model.predict_batch_with_aux)(params, label)
    inputs = jnp.asarray(label["encoder_input_tokens"])
    ours = np.asarray(greedy(our_config(), params, inputs, (inputs > 0).astype(jnp.int32), 6))
    np.testing.assert_array_equal(predicted, ours)
    assert len(np.unique(ours)) > 8
    assert 0 < (ours == EOS_ID).any(axis=1).sum() < 16
    assert aux["scores"].shape == (16,)


def test_scores_are_label_log_likelihoods():
    features = convert(False, PAIR, 16)
    model = t5x_model(z_loss=0.1)
    scores = jax.jit(model.score_batch)(parameters(), stream_features(features, LABEL))
    sums, _ = our_loss("1.1", METHOD_STREAMS["standard"])(parameters(), our_batch(features))
    tokens = features["decoder_loss_weights"].sum()
    np.testing.assert_allclose(-scores.sum() / tokens, sums, rtol=TOLERANCE)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"ALPHA: got 1\.5, expected a number in \[0, 1\]"):
        t5x_model(alpha=1.5)
