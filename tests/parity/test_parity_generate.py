"""Greedy decoding writes what Hugging Face's `generate` writes, token by token, on real inputs.

The golden tokens stand between the two on real inputs: `test_parity_golden` shows that ours are
equal to them, and this file that Hugging Face's are.
"""

import parity_cases as cases
import pytest

from stepdistill_jax.spec import EOS_ID

REASON = "compares with PyTorch; the committed goldens stand in for it"
pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)

import torch_models  # noqa: E402


@pytest.mark.parametrize("name", list(cases.MODELS))
def test_greedy_equals_generate(name, shared, spiece):
    config = cases.with_t5_vocabulary(cases.MODELS[name])
    params = cases.weights(config)
    model = torch_models.hf_model(config, params)
    inputs = cases.real_inputs(shared, spiece)
    real = [row for rows in inputs.values() for row in rows]
    assert len(real) == 200
    goldens = cases.GOLDENS[name]["real"]
    assert all(goldens[key]["inputs"] == cases.fingerprint(rows) for key, rows in inputs.items())
    golden = [tokens for key in inputs for tokens in goldens[key]["tokens"]]
    extreme = cases.extreme_inputs(shared, spiece)
    assert sorted(map(len, extreme)) == [1, 3, 100, cases.MAX_INPUT_LENGTH]
    distinct = set()
    # The longest stands beside one short input, so that few positions are padding.
    others = [(rows, cases.our_generation(config, params, rows)) for rows in cases.halves(extreme)]
    for rows, ours in ((real, golden), *others):
        expected, leads = torch_models.hf_generation(model, rows)
        # No choice is so close that rounding could decide it: the comparison has no exceptions.
        assert min(leads) > cases.LEAST_LEAD
        assert ours == expected
        distinct |= set(map(tuple, expected))
    # The comparison says something: outputs vary, some end early, some do not end.
    assert len(distinct) > 100
    assert len({tokens[-1] == EOS_ID for tokens in distinct}) == 2
