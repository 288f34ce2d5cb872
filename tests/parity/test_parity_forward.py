"""Logits, losses and gradients equal those of Hugging Face's T5 in PyTorch, from equal weights."""

import dataclasses

import jax
import numpy as np
import parity_cases as cases
import pytest

from stepdistill_jax.model.relpos import relative_position_bucket

REASON = "compares with PyTorch; the committed goldens stand in for it"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)

import torch_models  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

MODELS = pytest.mark.parametrize("name", list(cases.MODELS))


@pytest.mark.parametrize("bidirectional", [True, False], ids=["encoder", "decoder"])
def test_every_distance_has_the_same_bucket(bidirectional):
    distance = np.arange(-1200, 1201)
    expected = T5Attention._relative_position_bucket(torch.tensor(distance), bidirectional, 32, 128)
    actual = relative_position_bucket(distance, bidirectional, 32, 128)
    assert actual.tolist() == expected.tolist()


@MODELS
def test_logits(name):
    config = cases.MODELS[name]
    inputs, mask, decoder_inputs, decoder_mask = batch = cases.synthetic(config)
    expected = torch_models.hf_logits(
        torch_models.hf_model(config, cases.weights(config)), inputs, mask, decoder_inputs
    )
    for scan_layers in (True, False):
        config = dataclasses.replace(config, scan_layers=scan_layers)
        actual = np.asarray(cases.our_logits(config, cases.weights(config), *batch))
        real = decoder_mask > 0
        assert cases.difference(actual[real], expected[real]) < cases.TOLERANCE, scan_layers


@MODELS
def test_losses_and_every_gradient_on_a_real_batch_packed_and_not(name, shared, spiece):
    """One batch of the pipeline, its pairs unpacked, and PyTorch on each pair in its own row."""
    config = cases.with_t5_vocabulary(cases.MODELS[name])
    params = cases.weights(config)
    packed, members = cases.train_batch(cases.cqa_pairs(shared, spiece), pack=True)
    assert max(packed["label_inputs_segment_ids"].max(axis=1)) > 1
    assert 0.0 in {pair["rationale_weight"] for pair in members}
    unpacked, _ = cases.train_batch(cases.Pairs(members), pack=False)
    model = torch_models.hf_model(config, params)
    # Rounding decides no ReLU's gradient: the comparison has no exceptions.
    assert torch_models.least_relu_input(model, members) > cases.LEAST_RELU_INPUT
    expected, gradients = torch_models.hf_losses(model, members)
    for batch in (packed, unpacked):
        metrics, gradient = jax.device_get(cases.our_losses(config, params, batch))
        for key, loss in expected.items():
            assert metrics[key] == pytest.approx(loss, rel=cases.TOLERANCE), key
        differences = cases.gradient_differences(gradient, gradients)
        worst = max(differences, key=differences.__getitem__)
        assert differences[worst] < cases.TOLERANCE, worst
