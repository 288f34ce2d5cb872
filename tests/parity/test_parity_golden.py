"""What PyTorch computed, committed: logits, losses, gradients and generated tokens without torch.

`tests/golden/make_parity.py` writes the numbers; `test_parity_forward.py` and
`test_parity_generate.py` make the same comparisons, and more, live.
"""

import jax
import numpy as np
import parity_cases as cases
import pytest

MODELS = pytest.mark.parametrize("name", list(cases.MODELS))


@MODELS
def test_logits(name):
    config, golden = cases.MODELS[name], cases.GOLDENS[name]["logits"]
    batch = cases.synthetic(config)
    logits = np.asarray(cases.our_logits(config, cases.weights(config), *batch))[batch[3] > 0]
    for key, value in cases.sample(logits).items():
        np.testing.assert_allclose(
            value, golden[key], rtol=0, atol=cases.TOLERANCE * golden["max"], err_msg=key
        )


@pytest.mark.parametrize(
    "groups", [cases.PACKED_ROWS, cases.UNPACKED_ROWS], ids=["packed", "unpacked"]
)
@MODELS
def test_losses_and_the_gradient_of_every_parameter(name, groups):
    config = cases.MODELS[name]
    golden = cases.GOLDENS[name]
    batch = cases.batch_of_rows(cases.synthetic_pairs(config), groups)
    metrics, gradient = jax.device_get(cases.our_losses(config, cases.weights(config), batch))
    for key, loss in golden["losses"].items():
        assert metrics[key] == pytest.approx(loss, rel=cases.TOLERANCE), key
    actual = cases.state_dict(gradient)
    assert actual.keys() == golden["gradients"].keys()
    for parameter, expected in golden["gradients"].items():
        for key, value in cases.sample(actual[parameter]).items():
            np.testing.assert_allclose(
                value,
                expected[key],
                # A norm is a sum over all elements, held against itself.
                rtol=cases.TOLERANCE if key == "norm" else 0,
                atol=cases.TOLERANCE * expected["max"],
                err_msg=f"{parameter}: {key}",
            )


@MODELS
def test_generated_tokens_of_synthetic_inputs(name):
    config = cases.MODELS[name]
    rows = cases.synthetic_rows(config)
    assert (
        cases.our_generation(config, cases.weights(config), rows)
        == cases.GOLDENS[name]["synthetic"]
    )


@MODELS
def test_generated_tokens_of_real_inputs(name, shared, spiece):
    config, golden = cases.with_t5_vocabulary(cases.MODELS[name]), cases.GOLDENS[name]["real"]
    inputs = cases.real_inputs(shared, spiece)
    for dataset, rows in inputs.items():
        assert cases.fingerprint(rows) == golden[dataset]["inputs"], (
            f"the token ids of {dataset} are not those that the golden was made of: its files, or "
            "the vocabulary, or the tokenisation differ"
        )
    rows = [row for rows in inputs.values() for row in rows]
    actual = cases.our_generation(config, cases.weights(config), rows)
    assert actual == [tokens for dataset in inputs for tokens in golden[dataset]["tokens"]]
