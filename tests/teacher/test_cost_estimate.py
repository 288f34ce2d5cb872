"""What an estimate says of prompts of which only some are counted."""

import types

from stepdistill_jax.teacher import cost_estimate
from stepdistill_jax.teacher.requests import ANSWER


def test_the_bound_is_of_the_longest_prompt_that_was_counted():
    requests = [types.SimpleNamespace(purpose=ANSWER, size=size) for size in (900, 1000, 1400)]
    prompts = cost_estimate._prompts(requests, [], None, lambda each: each.size, "counted")
    assert (prompts.mean, prompts.bound) == (1100, 1400)
    assert prompts.basis == "counted on 3 requests of up to 1,400"
