"""An endpoint that cuts prompts to its context is found by the tokens that it reports."""

import random

from teacher_server import Fault

from stepdistill_jax.teacher.cut_prompts import CutPrompts


def context_of(limit):
    """Reads at most `limit` tokens, and says so in `usage` alone."""

    def change(body):
        usage = body["usage"]
        usage["prompt_tokens"] = min(limit, usage["prompt_tokens"])
        return body

    return Fault(change=change)


def test_an_extraction_whose_prompts_are_cut_stops_and_says_so(run, server, place):
    longer = place / "more.jsonl"
    rows = [f'{{"id": "{i}", "input": "{"word " * (300 + 9 * i)}"}}' for i in range(40)]
    longer.write_text("\n".join(rows) + "\n")
    server.faults = lambda asked: context_of(256)
    inputs = ("EXTRACT_SPLITS=()", f"EXTRACT_INPUTS=file:{longer}", "CONCURRENCY=1")
    code, _, stderr = run(*inputs)
    assert code == 4
    assert server.received == 8
    assert "error: the endpoint cuts prompts: 8 prompts of " in stderr
    assert "all count 256 tokens. Raise its context (Ollama: OLLAMA_CONTEXT_LENGTH" in stderr
    code, _, stderr = run(*inputs, "STOP_AFTER_FAILURES=0")
    assert server.received == 40
    # With room for all of them nothing is said.
    server.faults = lambda asked: None
    code, _, stderr = run(*inputs, folder="whole")
    assert code == 0
    assert "cuts prompts" not in stderr


def told(pairs):
    watch = CutPrompts()
    return [message for text, tokens in pairs if (message := watch.add(text, tokens))]


def test_prompts_of_one_length_are_not_cut():
    assert not told([("x" * 500, 120)] * 100)


def test_prompts_that_fit_are_not_cut_although_some_count_alike():
    rng = random.Random(0)
    lengths = [rng.randint(400, 4000) for _ in range(5000)]
    # Between 3 and 5 characters a token, as English has.
    assert not told([("x" * n, int(n / rng.uniform(3, 5))) for n in lengths])


def test_a_few_short_prompts_do_not_hide_the_cut():
    pairs = [("x" * 300, 100)] * 3 + [("x" * (9000 + 50 * i), 2048) for i in range(12)]
    assert len(told(pairs)) >= 1


def test_an_endpoint_that_counts_nothing_is_not_judged():
    assert not told([("x" * i, None) for i in range(100, 4000, 10)])
