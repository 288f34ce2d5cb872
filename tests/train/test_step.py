import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_cases as cases
from step_cases import compile_quickly  # noqa: F401

from stepdistill_jax.model.network import Transformer
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.optim import optimizer
from stepdistill_jax.parallel.place import place_batch
from stepdistill_jax.spec import STREAMS, batch_keys

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "one_step.json"
PAIRS = 15
ROWS = 16


@pytest.fixture(scope="module")
def unpacked():
    return cases.with_rows(cases.unpacked(PAIRS), ROWS)


@pytest.fixture(scope="module")
def reference(unpacked):
    """(state, metrics) of one step over unpacked pairs."""
    return cases.run_step(unpacked)


def pair_losses(stream):
    """Summed token loss and token weight of each pair on its own, from the model's logits."""
    module = Transformer(cases.MODEL)
    params = cases.initial_params(cases.MODEL)
    batch = cases.unpacked(PAIRS)
    inputs, targets = batch[f"{stream}_inputs"], batch[f"{stream}_targets"]
    decoder_inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    logits = jax.jit(module.apply)(
        {"params": params}, inputs, np.sign(inputs), decoder_inputs, np.sign(targets)
    )
    for row, pair in zip(np.asarray(logits, np.float64), cases.pairs(PAIRS), strict=True):
        ids = pair[f"{stream}_targets"]
        loss = sum(math.log(np.exp(row[t]).sum()) - row[t][i] for t, i in enumerate(ids))
        weight = pair[f"{stream}_weight"]
        yield weight * loss, weight * len(ids)


def test_loss_is_the_weighted_token_mean_of_every_pair_on_its_own(reference):
    means = {}
    for stream in STREAMS:
        losses, weights = zip(*pair_losses(stream), strict=True)
        means[stream] = sum(losses) / sum(weights)
        assert reference[1][f"{stream}_loss"] == pytest.approx(means[stream], rel=1e-5)
        assert reference[1][f"{stream}_tokens"] == sum(weights)
    expected = 0.5 * means["label"] + 0.5 * means["rationale"]
    assert reference[1]["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_batch_has_the_keys_of_the_contract(unpacked):
    assert sorted(unpacked) == sorted(batch_keys(STREAMS))


def test_packed_equals_unpacked(reference):
    packed = cases.with_rows(cases.packed(PAIRS), ROWS)
    assert (packed["label_inputs_segment_ids"] == 2).any()
    state, metrics = cases.run_step(packed)
    assert metrics == pytest.approx(reference[1], rel=1e-5)
    cases.assert_trees_close(
        cases.gradient_of(state), cases.gradient_of(reference[0]), tolerance=1e-5
    )


def test_pair_of_weight_zero_is_as_if_it_were_not_there(unpacked):
    silenced = {name: array.copy() for name, array in unpacked.items()}
    removed = {name: array.copy() for name, array in unpacked.items()}
    for name in unpacked:
        removed[name][3] = 0
        if name.endswith("weights"):
            silenced[name][3] = 0
    ours, metrics = cases.run_step(silenced)
    expected, expected_metrics = cases.run_step(removed)
    assert metrics == pytest.approx(expected_metrics, rel=1e-6)
    cases.assert_trees_close(cases.gradient_of(ours), cases.gradient_of(expected), tolerance=1e-6)


def test_common_factor_of_all_weights_changes_nothing(unpacked, reference):
    doubled = {k: v * 2 if k.endswith("weights") else v for k, v in unpacked.items()}
    _, metrics = cases.run_step(doubled)
    for name in ("loss", "label_loss", "rationale_loss", "label_accuracy", "grad_norm"):
        assert metrics[name] == pytest.approx(reference[1][name], rel=1e-6)


def test_batch_without_any_weight_has_loss_and_gradient_zero(unpacked):
    empty = {name: np.zeros_like(array) for name, array in unpacked.items()}
    state, metrics = cases.run_step(empty)
    assert metrics["loss"] == metrics["grad_norm"] == metrics["label_tokens"] == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(cases.gradient_of(state)))


def test_batch_without_rationales_trains_the_label_stream_alone(unpacked, reference):
    batch = dict(unpacked, rationale_weights=np.zeros_like(unpacked["rationale_weights"]))
    _, metrics = cases.run_step(batch)
    assert metrics["rationale_loss"] == 0.0
    assert metrics["loss"] == pytest.approx(0.5 * reference[1]["label_loss"], rel=1e-6)


def test_alpha_one_is_standard_finetuning(unpacked, reference):
    both, metrics = cases.run_step(unpacked, objective=ObjectiveConfig(alpha=1.0))
    label_only = {name: unpacked[name] for name in batch_keys(("label",))}
    # ALPHA_END has no effect on one stream.
    unused = ObjectiveConfig(alpha_end=0.1)
    standard, standard_metrics = cases.run_step(label_only, method="standard", objective=unused)
    assert "rationale_loss" not in standard_metrics
    assert standard_metrics["loss"] == standard_metrics["label_loss"]
    for name, value in standard_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    cases.assert_trees_close(cases.gradient_of(both), cases.gradient_of(standard), tolerance=1e-5)
    assert metrics["rationale_loss"] == pytest.approx(reference[1]["rationale_loss"], rel=1e-6)


def test_norms_are_of_the_unclipped_gradient_and_the_new_parameters(reference):
    state, metrics = reference
    leaves = jax.tree.leaves(cases.gradient_of(state))
    norm = math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in leaves))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    leaves = jax.tree.leaves(state.params)
    norm = math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in leaves))
    assert metrics["param_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.fixture(scope="module")
def adamw():
    return optimizer(cases.ADAMW, train_steps=10)


def test_two_steps_equal_the_golden_numbers(unpacked, adamw):
    golden = json.loads(GOLDEN.read_text())
    state, metrics = cases.run_step(unpacked, rule=adamw, steps=2)
    message = (
        "The train step's numbers changed. If the change is meant (another initialiser, loss, "
        "dropout or update rule), say so in the commit and run tests/golden/make_one_step.py; if "
        "not (a refactoring, another sharding), it is a bug."
    )
    assert int(state.step) == 2
    assert metrics == pytest.approx(golden, rel=1e-5), message


def test_learning_rate_is_the_one_of_this_update(unpacked, adamw):
    # Linear decay over 10 steps, no warm-up: the first update has the full rate.
    for steps, rate in ((1, 1e-2), (2, 0.9e-2)):
        _, metrics = cases.run_step(unpacked, rule=adamw, steps=steps)
        assert metrics["learning_rate"] == pytest.approx(rate, rel=1e-6)


def test_state_is_donated_and_nothing_is_copied_between_host_and_device(unpacked, adamw):
    mesh = cases.mesh_of()
    step = cases.compiled_step(cases.run_config(), adamw, mesh)
    state = cases.fresh_state(cases.MODEL, adamw, mesh)
    old = jax.tree.leaves(state)
    batch = place_batch(unpacked, mesh)
    with jax.transfer_guard("disallow"):
        state, _ = step(state, batch)
        state, metrics = step(state, batch)
    assert all(leaf.is_deleted() for leaf in old)
    assert int(state.step) == 2
    assert math.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize("prng_impl", ["threefry2x32", "rbg"])
def test_dropout_follows_from_the_step_alone(unpacked, prng_impl):
    model = dataclasses.replace(cases.MODEL, dropout_rate=0.3)
    mesh = cases.mesh_of()
    step = cases.compiled_step(
        cases.run_config(model=model, prng_impl=prng_impl), cases.KEEP_GRADIENT, mesh
    )
    batch = place_batch(unpacked, mesh)

    def loss(updates):
        state = cases.fresh_state(model, cases.KEEP_GRADIENT, mesh)
        state = state.replace(step=jax.device_put(jnp.int32(updates), state.step.sharding))
        return float(step(state, batch)[1]["loss"])

    first = loss(updates=5)
    assert loss(updates=5) == first
    assert loss(updates=6) != first
