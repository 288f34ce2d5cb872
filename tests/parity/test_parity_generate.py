"""Greedy decoding writes what Hugging Face's `generate` writes, token by token, on real inputs."""

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
    real = [row for rows in cases.real_inputs(shared, spiece).values() for row in rows]
    assert len(real) == 200
    extreme = cases.extreme_inputs(shared, spiece)
    assert sorted(map(len, extreme)) == [1, 3, 100, cases.MAX_INPUT_LENGTH]
    distinct = set()
    for rows in (real, extreme):
        expected, leads = torch_models.hf_generation(model, rows)
        # No choice is so close that rounding could decide it: the comparison has no exceptions.
        assert min(leads) > cases.LEAST_LEAD
        assert cases.our_generation(config, params, rows) == expected
        distinct |= set(map(tuple, expected))
    # The comparison says something: outputs vary, some end early, some do not end.
    assert len(distinct) > 100
    assert len({tokens[-1] == EOS_ID for tokens in distinct}) == 2
