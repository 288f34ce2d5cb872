"""Endpoints that do not take a field: OpenAI's reasoning models, Azure, servers of one's own."""

import dataclasses

import pytest
from extract_cases import KEY, drink, logged
from teacher_server import Fault

from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.clients import endpoint, failures, protocol
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Completion


def unsupported(name, text=""):
    """OpenAI's error for a field that a model does not take."""
    text = text or f"Unsupported parameter: '{name}' is not supported with this model."
    kind = {"type": "invalid_request_error", "code": "unsupported_parameter"}
    return Fault(400, {"message": text, "param": name, **kind})


def reasoning_model(asked):
    """Takes neither of OpenAI's older fields; the first that it finds is named."""
    for name in ("max_tokens", "stop", "temperature"):
        if name in asked.body:
            return unsupported(name)
    return None


def more_questions(asked):
    """What a model without `stop` writes: the answer, and the next question."""
    return drink(asked) + "\n\nQ: Who is next?\nA: Nobody. So the answer is tea."


def test_fields_that_a_reasoning_model_does_not_take_are_left_out(run, server, place):
    server.faults = reasoning_model
    server.answer = more_questions
    code, stdout, stderr = run("CONCURRENCY=1", "MAX_ROWS=5", "PROMPT_FORM=completion")
    assert code == 4  # MAX_ROWS is reached.
    # Three refusals, none of which is paid for or counted as a try, for the first request alone.
    assert server.received == 3 + 5
    assert server.asked[-1].body.keys() == {"model", "prompt", "max_completion_tokens"}
    for line in (
        "takes no 'max_tokens': MAX_NEW_TOKENS is sent as 'max_completion_tokens'",
        "takes no 'stop': no further request has it, and completions are cut at the prompt's stop",
        "takes no 'temperature': no further request has it, and the model samples at its own",
    ):
        assert stderr.count(line) == 1
    assert "train: 5 requests without stop, temperature, which the endpoint does not" in stdout
    rows = logged(place / "out")
    assert {row["omitted"] for row in rows} == {"stop, temperature"}
    # The next question, which `stop` would have prevented, is no part of the text.
    assert all(row["text"].strip().endswith((" tea.", " coffee.", " cocoa.")) for row in rows)
    assert not any("Who is next" in row["text"] for row in rows)


def test_many_requests_at_once_learn_it_together(run, server):
    server.faults = reasoning_model
    server.latency = 0.05
    _, _, stderr = run("CONCURRENCY=16", "MAX_ROWS=40")
    assert len(server.answered) == 40
    assert stderr.count("takes no 'stop'") == 1


def test_an_older_server_that_knows_no_newer_limit_gets_the_older_one(run, server):
    server.faults = lambda asked: (
        unsupported("max_completion_tokens", "Unrecognized request argument supplied: "
                    "max_completion_tokens") if "max_completion_tokens" in asked.body else None
    )  # fmt: skip
    _, _, stderr = run("MAX_ROWS=3", "OMIT_FIELDS=max_tokens", "CONCURRENCY=1")
    assert "does not take 'max_completion_tokens', which every request has" in stderr
    # Without the setting the older field is sent.
    _, _, stderr = run("MAX_ROWS=3", "CONCURRENCY=1")
    assert len(server.answered) == 3
    assert "takes no" not in stderr


@pytest.mark.parametrize(
    ("status", "body", "field"),
    [
        # vLLM and FastAPI; LiteLLM; Mistral; a value of the right kind that is too great.
        (422, {"detail": [{"loc": ["seed"], "msg": "Extra inputs are not permitted"}]}, "seed"),
        (400, {"message": "m does not support parameters: {'stop': ['Q']}"}, "stop"),
        (400, {"message": "Unknown field: top_p"}, "top_p"),
        (400, {"message": "max_tokens is too large: 9, at most 8", "param": "max_tokens"}, ""),
        (400, {"message": "this feature is not supported"}, ""),
        (500, {"message": "unsupported: stop"}, ""),
    ],
)  # fmt: skip
def test_the_field_is_found_in_what_servers_say(status, body, field):
    assert failures.unsupported_field(status, body) == field


def test_a_batch_names_the_setting_and_its_requests_are_sent_again(run, server):
    server.faults = reasoning_model
    batch = ("CLIENT=batch", "BATCH_POLL=0.01", "MAX_ROWS=4", "RETRIES=0")
    _, stdout, _ = run(*batch)
    assert "4 of 4 examples have no label: 4 request refused" in stdout
    omitted = "OMIT_FIELDS=('stop','temperature','max_tokens')"
    _, stdout, _ = run(*batch, omitted)
    assert "4 requests failed for now: they are sent again" in stdout
    assert "4 requests without stop, temperature, which" in stdout
    assert len(server.answered) == 4


def test_more_fields_of_the_body_by_macro(run, server, place):
    extra = """EXTRA_BODY='{"top_k": 20, "chat_template_kwargs": {"enable_thinking": false}}'"""
    assert run("MAX_ROWS=2", "REASONING_EFFORT=low", extra)[0] == 4
    body = server.asked[0].body
    assert (body["reasoning_effort"], body["top_k"]) == ("low", 20)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    # They decide the completions, so a folder has one value of them.
    code, _, _ = run("MAX_ROWS=2", "REASONING_EFFORT=high", extra)
    assert "REASONING_EFFORT='low' (now 'high')" in code
    # Without them, the key of a request is that of earlier versions.
    run("MAX_ROWS=2", folder="plain")
    keys = {row["key"] for row in logged(place / "plain")}
    assert not keys & {row["key"] for row in logged(place / "out")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"EXTRA_BODY: got '\[1\]', expected a JSON object"),
        ("{", r"EXTRA_BODY: got '\{', expected a JSON object"),
        ('{"temperature": 1}', r"EXTRA_BODY sets 'temperature'\. Set TEMPERATURE instead"),
        ('{"reasoning_effort": "low"}', r"Set REASONING_EFFORT instead"),
    ],
)
def test_fields_with_a_macro_of_their_own_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        ExtractConfig(extract_dir="out", teacher_model="m", extra_body=text)


@pytest.mark.parametrize(
    ("url", "base", "query", "header"),
    [
        ("https://n.openai.azure.com/openai/v1", None, {}, KEY),
        (
            "https://n.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
            "https://n.openai.azure.com/openai/deployments/d",
            {"api-version": "2024-10-21"},
            KEY,
        ),
        ("http://127.0.0.1:8000/v1", None, {}, None),
        ("https://azure.com.example/v1", None, {}, None),
    ],
)
def test_azure_gets_its_version_and_its_header(monkeypatch, url, base, query, header):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    extract = ExtractConfig(extract_dir="out", teacher_model="m", teacher_url=url)
    options = endpoint.find(extract).options(1.0, 0)
    assert options["base_url"] == (base or url)
    assert options["default_query"] == query
    assert options["default_headers"].get("api-key") == header


def test_a_completion_ends_at_its_first_stop_text():
    whole = Completion("a\n\nQ: b", "length", 1, 2, "m", 0.0)
    assert protocol.cut(whole, ("\nX", "\n\nQ:")).text == "a"
    assert protocol.cut(whole, ("\n\nQ:",)).finish_reason == "stop"
    assert protocol.cut(whole, ("none",)) is whole
    # Not within thoughts, whether they end or not.
    thinking = dataclasses.replace(whole, text="<think>a\n\nQ: b</think>c\n\nQ: d")
    assert protocol.cut(thinking, ("\n\nQ:",)).text == "<think>a\n\nQ: b</think>c"
    thinking = dataclasses.replace(whole, text="<think>a\n\nQ: b")
    assert protocol.cut(thinking, ("\n\nQ:",)) is thinking
