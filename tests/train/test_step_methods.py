"""The train step on what each method's view gives it: losses by hand, packed, spread, scheduled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_cases as cases
from step_cases import compile_quickly  # noqa: F401

from stepdistill_jax.data.views import Pinto, RationaleAsInput, SingleTask, ViewConfig
from stepdistill_jax.model.network import Transformer
from stepdistill_jax.objective import ObjectiveConfig, alpha_schedule
from stepdistill_jax.parallel.place import place_batch
from stepdistill_jax.spec import METHOD_STREAMS, batch_keys

PAIRS, ROWS = 15, 16
# Two pairs fit a row: inputs with their rationales, and rationale, marker and label.
INPUTS, TARGETS = 24, 20
MARKER = [40, 41]


class Pairs:
    """The pairs of `step_cases` as a cache; every third has a rationale of EOS alone."""

    def __init__(self):
        self.pairs = cases.pairs(PAIRS)
        for pair in self.pairs:
            if pair["rationale_weight"] == 0.0:
                pair["rationale_targets"] = pair["rationale_targets"][-1:]
            else:
                pair["rationale_weight"] = 0.5
        self.lengths = {}

    def __len__(self):
        return PAIRS

    def __getitem__(self, index):
        return self.pairs[index]


VIEWS = {
    "single_task": SingleTask(Pairs(), MARKER),
    "rationale_as_input": RationaleAsInput(Pairs()),
    "pinto": Pinto(Pairs(), ViewConfig(), cases.MODEL.vocab_size, seed=0),
}


def batch_of(method, pairs_a_row):
    view = VIEWS[method]
    members = [view[i] for i in range(PAIRS)]
    groups = [members[i : i + pairs_a_row] for i in range(0, PAIRS, pairs_a_row)]
    slots = dict.fromkeys(METHOD_STREAMS[method], (INPUTS, TARGETS))
    return cases.with_rows(cases.rows(groups, slots), ROWS)


def step_of(method, batch, **settings):
    return cases.run_step(batch, method=method, **settings)


@pytest.mark.parametrize("method", VIEWS)
def test_packed_equals_unpacked(method):
    alone, together = batch_of(method, 1), batch_of(method, 2)
    assert together["label_targets_segment_ids"].max() == 2
    expected, expected_metrics = step_of(method, alone)
    state, metrics = step_of(method, together)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)
    cases.assert_trees_close(cases.gradient_of(state), cases.gradient_of(expected), tolerance=1e-5)


def test_single_task_loss_is_the_mean_over_tokens_with_a_weight_each():
    batch = batch_of("single_task", 1)
    targets, segments = batch["label_targets"], batch["label_targets_segment_ids"]
    decoder_inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    logits = jax.jit(Transformer(cases.MODEL).apply)(
        {"params": cases.initial_params(cases.MODEL)},
        batch["label_inputs"],
        batch["label_inputs_segment_ids"],
        decoder_inputs,
        segments,
    )
    log_probs = np.asarray(logits, np.float64)
    log_probs -= np.logaddexp.reduce(log_probs, axis=-1, keepdims=True)
    losses = -np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    weights = batch["label_weights"]
    assert set(np.unique(weights)) == {0.0, 0.5, 1.0, 2.0}
    _, metrics = step_of("single_task", batch)
    assert metrics["loss"] == pytest.approx((losses * weights).sum() / weights.sum(), rel=1e-5)
    assert metrics["label_tokens"] == weights.sum()


def test_pinto_is_two_standard_losses_of_which_the_second_is_smoothed():
    batch = batch_of("pinto", 1)
    objective = ObjectiveConfig(alpha=0.3, counterfactual_smoothing=0.1)
    state, metrics = step_of("pinto", batch, objective=objective)
    parts = {}
    for stream, smoothing in (("label", 0.0), ("counterfactual", 0.1)):
        renamed = {
            f"label{name.removeprefix(stream)}": batch[name] for name in batch_keys((stream,))
        }
        parts[stream] = cases.run_step(
            renamed, method="standard", objective=ObjectiveConfig(label_smoothing=smoothing)
        )
    first, second = (parts[stream][1]["loss"] for stream in ("label", "counterfactual"))
    assert metrics["label_loss"] == pytest.approx(first, rel=1e-5)
    assert metrics["counterfactual_loss"] == pytest.approx(second, rel=1e-5)
    assert metrics["loss"] == pytest.approx(0.3 * first + 0.7 * second, rel=1e-5)
    gradients = [cases.gradient_of(parts[stream][0]) for stream in ("label", "counterfactual")]
    expected = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, *gradients)
    cases.assert_trees_close(cases.gradient_of(state), expected, tolerance=1e-5)


@pytest.mark.parametrize(("mesh", "microbatches"), [({}, 4), ({"fsdp": 8}, 2)])
def test_pinto_is_the_same_however_it_is_spread(mesh, microbatches):
    batch = batch_of("pinto", 2)
    expected, expected_metrics = step_of("pinto", batch)
    state, metrics = step_of("pinto", batch, mesh=cases.mesh_of(**mesh), microbatches=microbatches)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)
    cases.assert_trees_close(cases.gradient_of(state), cases.gradient_of(expected), tolerance=1e-5)


def test_alpha_moves_from_its_value_to_its_end():
    config = cases.run_config(objective=ObjectiveConfig(alpha=0.9, alpha_end=0.1))
    mesh = cases.mesh_of()
    step = cases.compiled_step(config, cases.KEEP_GRADIENT, mesh)
    rows = cases.with_rows(cases.unpacked(PAIRS), ROWS)
    batch = place_batch(rows, mesh)
    for updates, alpha in ((0, 0.9), (5, 0.5), (10, 0.1), (12, 0.1)):
        state = cases.fresh_state(cases.MODEL, cases.KEEP_GRADIENT, mesh)
        state = state.replace(step=jax.device_put(jnp.int32(updates), state.step.sharding))
        state, metrics = step(state, batch)
        assert float(metrics["alpha"]) == pytest.approx(alpha, rel=1e-6)
        label, rationale = float(metrics["label_loss"]), float(metrics["rationale_loss"])
        assert abs(label - rationale) > 0.01
        expected = alpha * label + (1 - alpha) * rationale
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-6)
        if updates == 10:
            fixed, _ = cases.run_step(rows, objective=ObjectiveConfig(alpha=alpha))
            ours = cases.gradient_of(jax.device_get(state))
            cases.assert_trees_close(ours, cases.gradient_of(fixed), tolerance=1e-5)


def test_a_fixed_alpha_is_no_metric():
    assert alpha_schedule(ObjectiveConfig(alpha=0.9), train_steps=10) is None
