"""Each fault of an endpoint: what is raised, and how many requests the endpoint saw."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import email.utils
import logging
import socket
import traceback

import pytest
import teacher_server
from teacher_server import Fault, TeacherServer, too_many

from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import clients
from stepdistill_jax.teacher.clients import failures, openai_client
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    ANSWER,
    Completion,
    Decoding,
    EndpointError,
    Message,
    Request,
    RequestError,
)

KEY = "sk-proj-a1B2c3D4e5F6g7H8"
DATA = DataConfig(dataset="demo")


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr(openai_client, "BACKOFF", 0.001)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def config(server, **fields) -> ExtractConfig:
    defaults = {"extract_dir": "x", "teacher_model": "teacher", "teacher_url": server.url}
    return ExtractConfig(**{**defaults, "retries": 3, "timeout": 5.0, **fields})


def question(number: int = 0, **fields) -> Request:
    defaults = {
        "example_id": str(number),
        "purpose": ANSWER,
        "sample": 0,
        "model": "teacher",
        "messages": (Message("system", "Be short."), Message("user", f"What is row {number}?")),
        "prompt": "",
        "stop": ("\nQ:",),
        "decoding": Decoding(max_new_tokens=32),
    }
    return Request(**{**defaults, **fields})


def ask(extract: ExtractConfig, *requests: Request) -> list[Completion | Exception]:
    """What comes of requests that are asked one after the other."""

    async def run():
        client = clients.open(extract, DATA)
        outcomes = []
        for request in requests:
            outcomes += await asyncio.gather(client.complete(request), return_exceptions=True)
        await client.close()
        return outcomes

    return asyncio.run(run())


def ask_at_once(extract: ExtractConfig, *requests: Request) -> list[Completion | Exception]:
    async def run():
        client = clients.open(extract, DATA)
        asked = (client.complete(request) for request in requests)
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        await client.close()
        return outcomes

    return asyncio.run(run())


def test_chat_form_sends_the_turns_and_reads_text_reason_and_counts():
    with TeacherServer(lambda asked: "Because. So the answer is (a).") as server:
        request = question()
        (came,) = ask(config(server), request)
        (asked,) = server.asked
    assert came.text == "Because. So the answer is (a)."
    assert (came.finish_reason, came.model) == ("stop", "teacher")
    assert (came.prompt_tokens, came.completion_tokens) == (6, 6)
    assert 0 < came.seconds < 5
    assert asked.path == "/v1/chat/completions"
    assert asked.key == request.key
    assert asked.body == {
        "model": "teacher",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "What is row 0?"},
        ],
        "temperature": 0.0,
        "max_tokens": 32,
        "stop": ["\nQ:"],
    }


def test_plain_completion_sends_the_prompt_and_what_sampling_needs():
    decoding = Decoding(temperature=0.7, top_p=0.9, max_new_tokens=8, seed=5)
    plain = {"messages": (), "prompt": "Q: why?\nA:", "stop": (), "decoding": decoding}
    with TeacherServer(usage=False) as server:
        (came,) = ask(config(server), question(**plain))
    assert came.prompt_tokens is None
    assert came.completion_tokens is None
    assert server.asked[0].path == "/v1/completions"
    assert server.asked[0].body == {
        "model": "teacher",
        "prompt": "Q: why?\nA:",
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 8,
        "seed": 5,
    }


@pytest.mark.parametrize(
    "fault",
    [
        too_many(""),
        too_many("0"),
        teacher_server.BROKEN,
        teacher_server.OVERLOADED,
        teacher_server.DROPPED,
        teacher_server.MALFORMED,
        teacher_server.HTML,
        teacher_server.NO_CHOICES,
        teacher_server.NO_FIELDS,
        teacher_server.EMPTY,
        teacher_server.NULL,
    ],
)
def test_a_fault_that_passes_is_tried_again(fault):
    with TeacherServer() as server:
        server.plan(fault)
        request = question()
        (came,) = ask(config(server), request)
        assert came.text == server.answer(server.asked[0])
        assert server.received == 2
        assert server.by_key == {request.key: 2}


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        (teacher_server.BROKEN, failures.UNAVAILABLE, "4 tries, .* HTTP 500: The server had"),
        (teacher_server.OVERLOADED, failures.UNAVAILABLE, "4 tries, the last: HTTP 503$"),
        (teacher_server.DROPPED, failures.UNAVAILABLE, "4 tries, .*disconnected"),
        (teacher_server.MALFORMED, failures.MALFORMED, "not JSON, or was cut off"),
        (teacher_server.HTML, failures.MALFORMED, "the response is str, expected a JSON object"),
        (teacher_server.NO_CHOICES, failures.MALFORMED, "no choices"),
        (teacher_server.NO_FIELDS, failures.MALFORMED, "no choices"),
    ],
)
def test_a_row_that_never_gets_through_fails_alone(fault, reason, detail):
    with TeacherServer() as server:
        server.faults = lambda asked: fault if "row 1?" in asked.last else None
        good, bad, after = ask(config(server), *map(question, range(3)))
    assert isinstance(good, Completion)
    assert isinstance(after, Completion)
    with pytest.raises(RequestError, match=detail) as caught:
        raise bad
    assert caught.value.reason == reason
    assert reason in failures.TRANSIENT
    assert server.received == 1 + 4 + 1


def test_an_endpoint_that_fails_every_request_is_given_up_at_the_third():
    with TeacherServer() as server:
        server.faults = lambda asked: teacher_server.BROKEN
        outcomes = ask(config(server, retries=1), *map(question, range(5)))
    assert [type(outcome) for outcome in outcomes] == [
        RequestError,
        RequestError,
        *[EndpointError] * 3,
    ]
    assert server.received == 3 * 2  # nothing is sent after it is given up
    with pytest.raises(EndpointError, match=r"3 consecutive requests failed, .* HTTP 500"):
        raise outcomes[2]


def test_refusals_of_an_unknown_kind_are_rows_until_there_are_three_in_a_row():
    with TeacherServer() as server:
        server.plan(teacher_server.REFUSED, teacher_server.REFUSED, None)
        server.faults = lambda asked: teacher_server.REFUSED
        outcomes = ask(config(server), *map(question, range(6)))
    kinds = [RequestError, RequestError, Completion, RequestError, RequestError, EndpointError]
    assert [type(outcome) for outcome in outcomes] == kinds
    assert outcomes[0].reason == failures.REFUSED
    assert server.received == 6


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        (teacher_server.TOO_LONG, failures.CONTEXT, 1),
        (teacher_server.FILTERED, failures.FILTERED, 1),
        (teacher_server.REFUSED_BY_FILTER, failures.FILTERED, 1),
        (teacher_server.EMPTY, failures.EMPTY, 2),
        (teacher_server.NULL, failures.EMPTY, 2),
    ],
)
def test_what_is_about_the_row_fails_the_row(fault, reason, requests):
    with TeacherServer() as server:
        server.faults = lambda asked: fault
        outcomes = ask(config(server), *map(question, range(4)))
    assert [outcome.reason for outcome in outcomes] == [reason] * 4
    assert reason not in failures.TRANSIENT
    assert server.received == 4 * requests


def test_an_empty_answer_is_paid_for_and_never_asked_again_under_a_cap():
    priced = {"price_input": 1.0, "price_output": 1.0}
    with TeacherServer() as server:
        server.faults = lambda asked: teacher_server.EMPTY
        (twice,) = ask(config(server), question())
        (once,) = ask(config(server, **priced, max_cost=1.0), question())
    assert server.received == 2 + 1
    assert (once.prompt_tokens, once.completion_tokens) == (6, 2)
    assert (twice.prompt_tokens, twice.completion_tokens) == (12, 4)


@pytest.mark.parametrize(
    "fault", [teacher_server.slow(9), teacher_server.DROPPED, teacher_server.MALFORMED]
)
def test_what_may_have_been_paid_for_is_not_asked_again_under_a_cap(fault):
    priced = {"price_input": 1.0, "price_output": 1.0, "max_cost": 1.0, "timeout": 0.3}
    with TeacherServer() as server:
        server.faults = lambda asked: fault
        *rows, endpoint = ask(config(server, **priced), *map(question, range(3)))
    assert server.received == 3
    for row in rows:
        assert isinstance(row, RequestError)
        assert row.reason in failures.TRANSIENT
        # Charged at the bound.
        assert (row.prompt_tokens, row.completion_tokens) == (None, None)
        assert "charged in full, as MAX_COST is set" in row.detail
    assert isinstance(endpoint, EndpointError)
    assert endpoint.may_be_paid


def test_a_busy_or_broken_endpoint_is_asked_again_under_a_cap():
    priced = {"price_input": 1.0, "price_output": 1.0, "max_cost": 1.0}
    with TeacherServer() as server:
        server.plan(teacher_server.BROKEN, too_many("0"))
        (came,) = ask(config(server, **priced), question())
    assert isinstance(came, Completion)
    assert server.received == 3


@pytest.mark.parametrize("fault", [teacher_server.EMPTY, teacher_server.FILTERED])
def test_what_an_answer_cost_is_not_known_without_counts(fault):
    with TeacherServer(usage=False) as server:
        server.plan(fault, fault)
        (came,) = ask(config(server), question())
    assert (came.prompt_tokens, came.completion_tokens) == (None, None)


def test_an_answer_after_an_empty_one_counts_both():
    with TeacherServer() as server:
        server.plan(teacher_server.EMPTY)
        (came,) = ask(config(server), question())
    assert (came.prompt_tokens, came.completion_tokens) == (12, 4)


def test_an_answer_cut_at_its_longest_is_an_answer():
    with TeacherServer() as server:
        server.plan(teacher_server.CUT)
        (came,) = ask(config(server), question())
    assert (came.text, came.finish_reason) == ("cut sho", "length")


def test_half_a_character_is_replaced():
    with TeacherServer(lambda asked: "so \ud83d") as server:
        (came,) = ask(config(server), question())
    assert came.text == "so \ufffd"


@pytest.mark.parametrize("fault", [teacher_server.slow(9), teacher_server.dribble(9)])
def test_a_slow_answer_is_given_up_and_asked_again(fault):
    with TeacherServer() as server:
        server.plan(fault)
        (came,) = ask(config(server, timeout=0.3), question())
    assert isinstance(came, Completion)
    assert server.received == 2


def test_an_endpoint_that_is_always_slow_is_named_with_its_limit():
    with TeacherServer() as server:
        server.faults = lambda asked: teacher_server.slow(9)
        outcomes = ask(config(server, timeout=0.2, retries=0), *map(question, range(3)))
    with pytest.raises(EndpointError, match=r"no response within TIMEOUT=0.2 s"):
        raise outcomes[-1]


def test_wrong_model_names_those_there_are_and_the_nearest():
    with TeacherServer(models=("llama-3-8b", "qwen-2-7b")) as server:
        wrong = question(model="lama-3-8b")
        first, second = ask(config(server), wrong, wrong)
    text = "has no model 'lama-3-8b'; did you mean 'llama-3-8b'? It has llama-3-8b, qwen-2-7b"
    assert isinstance(first, EndpointError)
    assert text in str(first)
    assert str(second) == str(first)
    assert server.paths.count("POST /v1/chat/completions") == 1


def test_an_address_without_the_version_says_so():
    with TeacherServer() as server:
        (came,) = ask(config(server, teacher_url=server.root), question())
    assert isinstance(came, EndpointError)
    assert "TEACHER_URL ends in the protocol's version" in str(came)


@pytest.mark.parametrize("key", [KEY, "expired-key-of-no-known-form"])
def test_a_refused_key_is_named_by_its_variable_and_never_shown(key, monkeypatch, caplog, capfd):
    monkeypatch.setenv("MY_TEACHER", key)
    caplog.set_level(logging.DEBUG)
    with TeacherServer(key="another") as server:
        (came,) = ask(config(server, teacher_key="MY_TEACHER"), question())
    assert isinstance(came, EndpointError)
    assert "environment variable 'MY_TEACHER'" in str(came)
    assert server.received == 0
    assert server.paths == ["POST /v1/chat/completions"]
    assert came.__cause__ is None
    assert came.__context__ is None
    shown = "".join(traceback.format_exception(came)) + repr(came) + caplog.text
    shown += "".join(capfd.readouterr())
    assert key not in shown
    assert "[key]" in shown


def test_no_permission_stops_all():
    with TeacherServer() as server:
        server.plan(teacher_server.NO_PERMISSION)
        (came,) = ask(config(server), question())
    assert isinstance(came, EndpointError)
    assert "'OPENAI_API_KEY'" in str(came)
    assert server.received == 1


def test_a_spent_quota_is_not_tried_again():
    with TeacherServer() as server:
        server.faults = lambda asked: teacher_server.QUOTA
        (came,) = ask(config(server), question())
    assert isinstance(came, EndpointError)
    assert "has no quota left" in str(came)
    assert server.received == 1


def test_a_value_that_is_refused_names_the_macro():
    error = {"message": "2.5 is greater than 2", "code": "decimal_above_max_value"}
    with TeacherServer() as server:
        server.plan(Fault(400, {**error, "param": "temperature"}))
        (came,) = ask(config(server), question())
    assert isinstance(came, EndpointError)
    assert "Change TEMPERATURE" in str(came)


def test_the_first_retry_says_what_is_waited_for_and_the_next_do_not(monkeypatch):
    async def run(server, lines):
        client = clients.open(config(server, retries=5), DATA, lines.append)
        for number in range(2):
            await client.complete(question(number))
        await client.close()

    with TeacherServer() as server:
        server.plan(*[teacher_server.BROKEN] * 3, None, too_many("0"), None)
        lines: list[str] = []
        asyncio.run(run(server, lines))
        assert len(server.answered) == 2
        (line,) = lines
        assert line.startswith(f"waiting for {server.url}: HTTP 500")
        assert line.endswith("; try 1 of 6 failed")
        # Where it goes on it is said again.
        monkeypatch.setattr(openai_client, "NOTIFY_SECONDS", 0.0)
        server.plan(teacher_server.BROKEN, teacher_server.BROKEN)
        asyncio.run(run(server, lines))
        assert len(lines) == 3


def test_nothing_listens(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    fields = {"extract_dir": "x", "teacher_model": "teacher", "retries": 2}
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:secret@{address}/v1")
    (came,) = ask(ExtractConfig(**fields), question())
    assert isinstance(came, EndpointError)
    assert f"http://{address}/v1: no connection in 3 tries" in str(came)
    assert "or correct TEACHER_URL" in str(came)
    assert "secret" not in str(came)
    assert came.__context__ is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert failures.retry_after(headers) == seconds


def test_retry_after_as_a_date():
    now = datetime.datetime.now(datetime.UTC)
    later = email.utils.format_datetime(now + datetime.timedelta(seconds=90), usegmt=True)
    assert 85 < failures.retry_after({"retry-after": later}) <= 90
    earlier = email.utils.format_datetime(now - datetime.timedelta(seconds=90), usegmt=True)
    assert failures.retry_after({"retry-after": earlier}) == 0


def test_retry_after_holds_back_every_request():
    with TeacherServer() as server:
        server.plan(too_many("400", header="retry-after-ms"))
        waits = []

        async def run():
            client = clients.open(config(server), DATA)
            start = asyncio.get_running_loop().time()
            first = asyncio.create_task(client.complete(question(0)))
            await asyncio.sleep(0.2)
            await client.complete(question(1))
            await first
            waits.append(asyncio.get_running_loop().time() - start)
            await client.close()

        asyncio.run(run())
    assert waits[0] > 0.4
    assert server.received == 3


def test_a_wait_of_an_hour_is_left_to_the_user():
    with TeacherServer() as server:
        server.plan(too_many("3600"))
        (came,) = ask(config(server), question())
    assert isinstance(came, EndpointError)
    assert "asks for a wait of 3600 s" in str(came)
    assert server.received == 1


def test_a_busy_endpoint_fails_no_row_while_it_answers_others():
    """One request is turned away six times with RETRIES=3, and is answered since others are."""
    turned_away = {}

    def busy(asked):
        turned_away[asked.last] = turned_away.get(asked.last, 0) + 1
        last = "row 9?" in asked.last
        return too_many("") if last and turned_away[asked.last] <= 6 else None

    with TeacherServer(latency=0.02) as server:
        server.faults = busy

        async def run():
            client = clients.open(config(server), DATA)
            hard = asyncio.create_task(client.complete(question(9)))
            number = 10
            while not hard.done():
                await client.complete(question(number))
                number += 1
            await client.close()
            return hard.result()

        came = asyncio.run(run())
    assert isinstance(came, Completion)


def test_an_endpoint_that_is_only_busy_stops_all():
    with TeacherServer() as server:
        server.faults = lambda asked: too_many("")
        (came,) = ask(config(server), question())
    assert isinstance(came, EndpointError)
    assert "no completion in 4 tries" in str(came)
    assert "REQUESTS_PER_MINUTE" in str(came)


def test_sixteen_at_once_through_every_fault():
    """Faults fall on requests by chance of arrival; every row is answered all the same."""
    faults = (
        teacher_server.BROKEN,
        teacher_server.DROPPED,
        too_many("0"),
        teacher_server.MALFORMED,
        teacher_server.HTML,
    )
    with TeacherServer(latency=0.01) as server:
        server.plan(*[fault for fault in faults for _ in range(4)])
        outcomes = ask_at_once(config(server, retries=20), *map(question, range(48)))
    assert {type(outcome) for outcome in outcomes} == {Completion}
    assert server.received == 48 + 20
    assert set(server.answered_by_key.values()) == {1}


def test_openais_own_endpoint_needs_a_key(monkeypatch):
    fields = {"extract_dir": "x", "teacher_model": "m", "teacher_key": "TEACHER_SECRET"}
    with pytest.raises(InputError, match=r"api\.openai\.com.*'TEACHER_SECRET' \(TEACHER_KEY\)"):
        clients.open(ExtractConfig(**fields), DATA)
    monkeypatch.setenv("TEACHER_SECRET", KEY)
    client = clients.open(ExtractConfig(**fields), DATA)
    assert KEY not in repr(client) + repr(vars(client))
    asyncio.run(client.close())


def test_the_address_is_the_environments_where_none_is_given(monkeypatch):
    with TeacherServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        extract = dataclasses.replace(config(server), teacher_url="")
        (came,) = ask(extract, question())
    assert isinstance(came, Completion)
    assert server.asked[0].headers["authorization"] == "Bearer none"


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://somewhere/v1", "http://", "http://[1"])
def test_what_is_no_address_is_refused(url, monkeypatch):
    with pytest.raises(InputError, match=r"TEACHER_URL.*not a URL"):
        clients.open(ExtractConfig(extract_dir="x", teacher_model="m", teacher_url=url), DATA)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(InputError, match=r"OPENAI_BASE_URL=.*not a URL"):
        clients.open(ExtractConfig(extract_dir="x", teacher_model="m"), DATA)


@pytest.mark.parametrize(
    ("macro", "value"),
    [
        ("teacher_key", KEY),
        ("teacher_key", "hf_AbCdEfGh"),
        ("teacher_url", f"http://me:{KEY}@host/v1"),
        ("teacher_url", f"http://host/v1?api-key={KEY}"),
    ],
)
def test_a_key_in_the_configuration_is_refused_unseen(macro, value):
    with pytest.raises(InputError, match=f"^{macro.upper()} .* environment variable") as caught:
        ExtractConfig(**{"extract_dir": "x", "teacher_model": "m", macro: value})
    assert value not in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_requests_a_minute_are_kept_to():
    with TeacherServer() as server:

        async def run():
            client = clients.open(config(server, requests_per_minute=2), DATA)
            tasks = [asyncio.create_task(client.complete(question(i))) for i in range(4)]
            done, waiting = await asyncio.wait(tasks, timeout=0.5)
            for task in waiting:
                task.cancel()
            await client.close()
            return len(done)

        assert asyncio.run(run()) == 2
    assert server.received == 2
