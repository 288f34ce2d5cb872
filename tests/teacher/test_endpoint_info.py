"""What an endpoint says of itself, and what its refusals mean in the words of several servers."""

from __future__ import annotations

import dataclasses

import pytest
from teacher_server import TeacherServer

from stepdistill_jax.teacher import clients
from stepdistill_jax.teacher.clients import failures, protocol
from stepdistill_jax.teacher.clients.endpoint import Endpoint
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    ANSWER,
    Decoding,
    EndpointError,
    Message,
    Request,
    RequestError,
)

HERE = Endpoint("http://127.0.0.1:1/v1", "", "OPENAI_API_KEY")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(url: str, **fields) -> ExtractConfig:
    return ExtractConfig(extract_dir="x", teacher_model="teacher", teacher_url=url, **fields)


@pytest.mark.parametrize(
    ("fields", "props", "length"),
    [
        ({"max_model_len": 4096}, None, 4096),  # vLLM
        ({"meta": {"n_ctx_train": 8192}}, None, 8192),  # llama.cpp
        ({"meta": {"n_ctx": 2048, "n_ctx_train": 8192}}, None, 2048),
        (
            {"meta": {"n_ctx_train": 8192}},
            {"default_generation_settings": {"n_ctx": 1024}},
            1024,
        ),
        ({}, None, None),
        ({"max_model_len": "many"}, {"default_generation_settings": []}, None),
    ],
)
def test_context_length(fields, props, length):
    with TeacherServer(models=("other", "teacher")) as server:
        server.model_fields, server.props = fields, props
        assert clients.context_length(config(server.url)) == length


def test_context_length_of_the_only_model_under_another_name():
    with TeacherServer(models=("/models/teacher.gguf",)) as server:
        server.model_fields = {"max_model_len": 512}
        assert clients.context_length(config(server.url)) == 512


def test_context_length_is_none_where_nothing_answers():
    with TeacherServer() as server:
        url = server.url
    assert clients.context_length(config(url)) is None


@pytest.mark.parametrize(
    ("listed", "is_doubted"),
    [
        (("teacher", "other"), False),
        (("teacher:latest",), False),  # Ollama
        (("models/teacher",), False),  # Google, llama.cpp
        (("teecher", "other"), True),
        ((), False),
    ],
)
def test_a_model_that_is_not_listed_is_doubted(listed, is_doubted):
    with TeacherServer(models=listed) as server:
        found = clients.warnings(config(server.url))
    assert len(found) == is_doubted
    if is_doubted:
        assert "has no model 'teacher'; did you mean 'teecher'? It has other, teecher" in found[0]


def test_an_endpoint_that_does_not_list_its_models_is_not_doubted():
    with TeacherServer(key="secret") as server:
        assert clients.warnings(config(server.url)) == []
    (found,) = clients.warnings(config(server.url))
    assert f"nothing answers at {server.url}" in found


def test_token_counts_are_the_endpoints():
    with TeacherServer() as server:
        assert clients.token_counter(config(server.url)) is None
        server.tokenizes = True
        count = clients.token_counter(config(server.url))
        assert count("one two three") == 3
        server.tokenizes = False
        with pytest.raises(EndpointError, match="TEACHER_TOKENIZER"):
            count("one")


def test_replayed_answers_have_no_endpoint():
    extract = ExtractConfig(extract_dir="x", client="replay", replay="release")
    assert clients.context_length(extract) is None
    assert clients.token_counter(extract) is None


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        # vLLM
        (400, {"message": "This model's maximum context length is 512 tokens."}, failures.CONTEXT),
        # llama.cpp
        (
            400,
            {"message": "the request exceeds the available context size", "code": 400},
            failures.CONTEXT,
        ),
        # TGI: the error is a text
        (
            422,
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512",
            failures.CONTEXT,
        ),
        (413, "<html>Request Entity Too Large</html>", failures.CONTEXT),
        # Azure
        (
            400,
            {"message": "The response was filtered", "code": "content_filter"},
            failures.FILTERED,
        ),
        # About a number, not about the row's length.
        (400, {"message": "n must be <= 1"}, failures.REFUSED),
        (422, {"detail": [{"loc": ["body", "stop"]}]}, failures.REFUSED),
        (400, None, failures.REFUSED),
    ],
)
def test_refusals_of_a_row(status, body, reason):
    judged = failures.classify(status, body, {}, HERE)
    assert isinstance(judged, RequestError)
    assert judged.reason == reason
    assert judged.detail.startswith(f"HTTP {status}")
    assert "<html>" not in judged.detail


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_what_may_pass(status):
    judged = failures.classify(status, None, {"retry-after": "3"}, HERE)
    assert isinstance(judged, failures.Again)
    assert judged.wait == 3
    assert judged.busy == (status == 429)


@pytest.mark.parametrize(
    ("status", "body", "match"),
    [
        (401, {"message": "Bearer sk-abcdefgh12345 is wrong"}, r"\[key\] is wrong"),
        (402, {"message": "Payment required"}, "no quota left"),
        (404, {"message": "Not Found"}, "TEACHER_URL ends in the protocol's version"),
        (429, {"type": "insufficient_quota"}, "no quota left"),
        (400, {"param": "top_p", "message": "no"}, "Change TOP_P"),
    ],
)
def test_what_stops_all(status, body, match):
    judged = failures.classify(status, body, {}, HERE)
    assert isinstance(judged, EndpointError)
    with pytest.raises(EndpointError, match=match):
        raise judged


def test_others_words_are_short_and_on_one_line():
    line = failures.one_line("a\nb " + "x" * 1000)
    assert line.startswith("a b xxx")
    assert len(line) == 300


def test_openais_own_endpoint_has_another_name_for_the_longest_answer():
    turns = (Message("user", "Why?"),)
    chat = Request("0", ANSWER, 0, "m", turns, "", (), Decoding(max_new_tokens=9))
    plain = Request("0", ANSWER, 0, "m", (), "Why?", (), Decoding(max_new_tokens=9))
    extract = ExtractConfig(extract_dir="out", teacher_model="m")
    completion = dataclasses.replace(extract, prompt_form="completion")
    newer = protocol.Dialect(extract, is_openai=True)
    assert protocol.body(chat, newer)["max_completion_tokens"] == 9
    assert "max_tokens" not in protocol.body(chat, newer)
    for request, settings, is_openai in ((plain, completion, True), (chat, extract, False)):
        body = protocol.body(request, protocol.Dialect(settings, is_openai))
        assert body["max_tokens"] == 9


def test_text_in_parts_is_joined():
    parts = [{"type": "text", "text": "So "}, {"type": "image"}, {"type": "text", "text": "(a)."}]
    body = {"choices": [{"message": {"content": parts}}]}
    came = protocol.read(body, "asked", 1.5)
    assert (came.text, came.finish_reason, came.model) == ("So (a).", "unknown", "asked")
    assert (came.prompt_tokens, came.seconds) == (None, 1.5)


def test_a_refusal_is_the_filters():
    body = {"choices": [{"message": {"content": None, "refusal": "I cannot."}}], "usage": None}
    with pytest.raises(RequestError, match="content filter: I cannot"):
        protocol.read(body, "asked", 0.0)
