import dataclasses
import importlib.util

import numpy as np
import pytest
from random_params import random_params

from stepdistill_jax.bench.official_recipe import IGNORED, OfficialRecipe, check_supported
from stepdistill_jax.checkpoint.fill import arrays
from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.optim import OptimizerConfig
from stepdistill_jax.run import load
from stepdistill_jax.spec import EOS_ID, InputError

MODEL = T5Config(
    vocab_size=16,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=8,
    num_encoder_layers=2,
    num_decoder_layers=1,
    dropout_rate=0.0,
)
TIED = dataclasses.replace(MODEL, logits_via_embedding=True, mlp_activations=("relu",))
CONFIG = dataclasses.replace(
    load.parse(["demo.gin"], ["MODEL_DIR=unused"]),
    model=MODEL,
    objective=ObjectiveConfig(alpha=0.25),
    optimizer=OptimizerConfig(),
    train_steps=10,
)


def recipe(**changes):
    pytest.importorskip("torch", reason="the released recipe runs on PyTorch")
    config = dataclasses.replace(CONFIG, **changes)
    return OfficialRecipe(config, random_params(config.model), threads=1)


def pair(label_inputs, label, rationale_inputs, rationale, rationale_weight=1.0):
    features = {
        "label_inputs": label_inputs,
        "label_targets": label,
        "rationale_inputs": rationale_inputs,
        "rationale_targets": rationale,
    }
    features = {name: np.array([*ids, EOS_ID], np.int32) for name, ids in features.items()}
    return features | {"label_weight": 1.0, "rationale_weight": rationale_weight}


PAIRS = [
    pair([3, 4, 5], [6], [7, 4, 5], [8, 9, 10]),
    pair([3, 11], [12, 13], [7, 11], [], rationale_weight=0.0),
]


def test_each_stream_is_padded_to_its_own_longest():
    batch = recipe().collate(PAIRS)
    label, rationale = batch["label"], batch["rationale"]
    assert label["input_ids"].tolist() == [[3, 4, 5, 1], [3, 11, 1, 0]]
    assert label["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert label["labels"].tolist() == [[6, 1, IGNORED], [12, 13, 1]]
    # A rationale that is missing does not count, not even its EOS.
    assert rationale["labels"].tolist() == [[8, 9, 10, 1], [IGNORED] * 4]


def test_loss_is_the_mean_of_each_stream_weighted_by_alpha():
    metrics = {name: float(value) for name, value in recipe().step(recipe().collate(PAIRS)).items()}
    expected = 0.25 * metrics["label_loss"] + 0.75 * metrics["rationale_loss"]
    assert metrics["loss"] == pytest.approx(expected)
    assert metrics["label_loss"] != pytest.approx(metrics["rationale_loss"])


def test_first_update_is_adams_of_the_full_rate_and_decay_spares_norms():
    rate, decay = 0.01, 0.5
    trained = recipe(optimizer=OptimizerConfig(learning_rate=rate, weight_decay=decay))
    before = trained.arrays()
    trained.step(trained.collate(PAIRS))
    after = trained.arrays()
    # Adam's first update is the rate times the gradient's sign, wherever it is not tiny.
    norm = "encoder.final_layer_norm.weight"
    assert np.abs(after[norm] - before[norm]) == pytest.approx(np.full(8, rate), rel=1e-3)
    # No token 15: without gradient there is decay alone.
    assert after["shared.weight"][15] == pytest.approx(before["shared.weight"][15] * (1 - 0.005))


@pytest.mark.parametrize("model", [MODEL, TIED])
def test_output_matrix_is_tied_only_where_ours_is(model):
    trained = recipe(model=model)
    expected = dict(arrays(random_params(model), "hf"))
    assert trained.arrays().keys() == expected.keys()
    assert all(np.array_equal(trained.arrays()[name], expected[name]) for name in expected)
    trained.step(trained.collate(PAIRS))
    network = trained.model
    assert (network.lm_head.weight is network.shared.weight) == model.logits_via_embedding
    assert network.encoder.embed_tokens.weight is network.shared.weight


def test_norm_by_which_it_clips_and_the_precise_one():
    trained = recipe()
    metrics = trained.step(trained.collate(PAIRS), precise=True)
    assert float(metrics["grad_norm"]) == pytest.approx(float(metrics["precise_grad_norm"]), 1e-5)


@pytest.mark.parametrize("model", [MODEL, TIED])
def test_writes_what_our_decoder_writes(model):
    params = random_params(model)
    written = recipe(model=model).generate([p["label_inputs"] for p in PAIRS], 6)
    inputs = np.array([[3, 4, 5, 1], [3, 11, 1, 0]], np.int32)
    ours = np.asarray(greedy(model, params, inputs, (inputs > 0).astype(np.int32), 6)).tolist()
    assert written == [ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids for ids in ours]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": OptimizerConfig("adafactor")}, "OPTIMIZER='adafactor': .* 'adamw'"),
        ({"optimizer": OptimizerConfig(schedule="cosine")}, "SCHEDULE='cosine'.* 'linear'"),
        ({"objective": ObjectiveConfig(z_loss=0.1)}, r"Z_LOSS=0.1: .* Set Z_LOSS=0.0"),
        ({"objective": ObjectiveConfig(label_smoothing=0.1)}, "LABEL_SMOOTHING=0.1"),
        ({"objective": ObjectiveConfig(alpha_end=0.0)}, r"ALPHA_END=0.0: .* Set ALPHA_END=None"),
        ({"model": dataclasses.replace(MODEL, mlp_activations=("linear",))}, "MLP_ACTIVATIONS="),
        ({"method": "standard"}, "METHOD='standard': .* Set METHOD='step_by_step'"),
        ({"method": "pinto"}, "METHOD='pinto': .* Set METHOD='step_by_step'"),
        (
            {"eval": dataclasses.replace(CONFIG.eval, mode="choices")},
            "EVAL_MODE='choices': .* Set EVAL_MODE='decode'",
        ),
    ],
)
def test_refuses_what_the_recipe_does_not_have(changes, message):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(InputError, match=message):
        check_supported(config)
    with pytest.raises(InputError, match=message):
        OfficialRecipe(config, params={})


def test_names_what_is_not_installed(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else there(name)
    )
    with pytest.raises(InputError, match=r"not installed: torch\. .*'stepdistill-jax\[test\]'"):
        OfficialRecipe(CONFIG, params={})
