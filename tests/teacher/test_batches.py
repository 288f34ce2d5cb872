"""Offline batches: nothing is submitted twice, and every request has an outcome."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest
import teacher_server
from teacher_server import TeacherServer

from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import clients
from stepdistill_jax.teacher.clients import batches, failures
from stepdistill_jax.teacher.clients.batches import Batches
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


@pytest.fixture
def server():
    with TeacherServer() as running:
        yield running


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def open_batch(server, folder, **fields) -> Batches:
    defaults = {"client": "batch", "teacher_model": "teacher", "retries": 0}
    return Batches(
        ExtractConfig(extract_dir=str(folder), **defaults, teacher_url=server.url, **fields)
    )


def collected(batch: Batches) -> dict:
    """All outcomes by key, which count as collected then."""
    outcomes = {}
    for part, of_part in batch.collect():
        outcomes |= of_part
        batch.mark_collected(part)
    return outcomes


def questions(count: int) -> list[Request]:
    return [
        Request(
            example_id=str(number),
            purpose=ANSWER,
            sample=0,
            model="teacher",
            messages=(Message("user", f"What is row {number}?"),),
            prompt="",
            stop=(),
            decoding=Decoding(max_new_tokens=16),
        )
        for number in range(count)
    ]


def submitted(server) -> int:
    return server.paths.count("POST /v1/batches")


def test_answers_come_by_key_whatever_their_order(server, tmp_path):
    asked = questions(5)
    batch = open_batch(server, tmp_path)
    server.batch_looks = 2
    assert batch.submit([*asked, dataclasses.replace(asked[0], example_id="the same again")]) == 5
    assert batch.poll().is_over is False
    assert batch.poll() == batches.BatchStatus(5, 5, is_over=True)
    came = collected(batch)
    batch.close()
    assert set(came) == {request.key for request in asked}
    by_key = {json.loads(line)["custom_id"]: json.loads(line) for line in uploads(server)}
    for request in asked:
        body = by_key[request.key]["body"]
        expected = server.answer(teacher_server.Asked("", body, {}))
        assert came[request.key].text == expected
        assert body["messages"] == [{"role": "user", "content": request.messages[0].content}]
        assert came[request.key].prompt_tokens == 4
    assert collected(batch) == {}
    assert batch.waiting() == frozenset()
    assert [path.name for path in tmp_path.iterdir()] == [batches.STATE_FILE]
    assert batch.poll() == batches.BatchStatus(0, 0, is_over=True)


def uploads(server) -> list[bytes]:
    inputs = {entry["input_file_id"] for entry in server.batches.values()}
    return [line for name in sorted(inputs) for line in server.files[name].splitlines()]


def test_limits_of_a_file_make_several_batches(server, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_REQUESTS", 3)
    batch = open_batch(server, tmp_path)
    batch.submit(questions(7))
    assert submitted(server) == 3
    assert batch.poll().is_over
    assert len(collected(batch)) == 7
    size = len(uploads(server)[0]) + 1
    monkeypatch.setattr(batches, "MAX_BYTES", 2 * size)
    batch.submit(questions(4))
    assert submitted(server) == 3 + 2
    inputs = [server.files[entry["input_file_id"]] for entry in server.batches.values()]
    assert [len(file.splitlines()) for file in inputs] == [3, 3, 1, 2, 2]


def test_chat_and_completion_are_batches_of_their_own(server, tmp_path):
    plain = [dataclasses.replace(r, messages=(), prompt="Q: why?") for r in questions(1)]
    batch = open_batch(server, tmp_path)
    batch.submit([*questions(2), *plain])
    addresses = sorted(entry["endpoint"] for entry in server.batches.values())
    assert addresses == ["/v1/chat/completions", "/v1/completions"]
    batch.poll()
    assert all(isinstance(came, Completion) for came in collected(batch).values())


class KilledError(BaseException):
    """Stands for the end of the process."""


KILLED_AT = ("upload", "create", "before the id is on record")


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_killed_process_submits_nothing_twice(server, tmp_path, monkeypatch, moment):
    """Two other batches stand before ours in the account's pages of two."""
    asked = questions(4)
    other = open_batch(server, tmp_path / "other")
    with monkeypatch.context() as patched:
        batch = open_batch(server, tmp_path / "ours")

        def kill(*args, **kwargs):
            raise KilledError

        if moment == "upload":
            patched.setattr(batch._client.files, "create", kill)
        elif moment == "create":
            patched.setattr(batch._client.batches, "create", kill)
        else:
            patched.setattr(batch, "_update", kill)
        with pytest.raises(KilledError):
            batch.submit(asked)
    for number in range(3):
        other.submit(questions(number + 1)[-1:])
    again = open_batch(server, tmp_path / "ours")
    assert again.waiting() == {request.key for request in asked}
    if moment == "create":
        again.poll()
    assert again.submit(asked) == 0
    assert submitted(server) == 3 + 1
    again.poll()
    assert collected(again).keys() == {request.key for request in asked}
    assert len(server.asked) == 4


def test_another_process_collects(server, tmp_path):
    asked = questions(4)
    open_batch(server, tmp_path).submit(asked[:2])
    assert open_batch(server, tmp_path).submit(asked) == 2
    assert submitted(server) == 2
    open_batch(server, tmp_path).poll()
    killed = dict(next(open_batch(server, tmp_path).collect())[1])  # before they are on disk
    came = collected(open_batch(server, tmp_path))
    assert killed.items() <= came.items()
    assert len(came) == 4
    assert collected(open_batch(server, tmp_path)) == {}


def test_rows_of_an_expired_batch_are_typed_and_can_be_submitted_again(server, tmp_path):
    asked = questions(5)
    server.batch_ends = "expired"
    batch = open_batch(server, tmp_path)
    batch.submit(asked)
    batch.poll()
    came = collected(batch)
    lost = [key for key, outcome in came.items() if isinstance(outcome, RequestError)]
    assert {came[key].reason for key in lost} == {failures.EXPIRED}
    assert lost == [asked[1].key, asked[3].key]
    server.batch_ends = "completed"
    assert batch.submit([request for request in asked if request.key in lost]) == 2
    batch.poll()
    assert all(isinstance(outcome, Completion) for outcome in collected(batch).values())


def test_faults_of_single_rows(server, tmp_path):
    faults = {
        "row 0?": teacher_server.TOO_LONG,
        "row 1?": teacher_server.BROKEN,
        "row 2?": teacher_server.EMPTY,
        "row 3?": teacher_server.NO_CHOICES,
        "row 4?": teacher_server.FILTERED,
        "row 5?": teacher_server.REFUSED,
    }
    server.faults = lambda asked: faults.get(asked.last[8:])
    asked = questions(7)
    batch = open_batch(server, tmp_path)
    batch.submit(asked)
    assert batch.poll().finished == 7
    came = collected(batch)
    reasons = [getattr(came[request.key], "reason", "") for request in asked]
    assert reasons == [
        failures.CONTEXT,
        failures.UNAVAILABLE,
        failures.EMPTY,
        failures.MALFORMED,
        failures.FILTERED,
        failures.REFUSED,
        "",
    ]
    assert came[asked[2].key].prompt_tokens == 4


def test_a_refused_batch_stops_and_is_submitted_anew(server, tmp_path):
    asked = questions(2)
    server.batch_ends = "failed"
    batch = open_batch(server, tmp_path)
    batch.submit(asked)
    assert batch.poll().is_over
    with pytest.raises(EndpointError, match="batch_0 was refused: model_not_found: The provided"):
        collected(batch)
    server.batch_ends = "completed"
    assert open_batch(server, tmp_path).submit(asked) == 2


def test_a_line_that_is_missing_is_a_row_without_an_answer(server, tmp_path):
    asked = questions(3)
    batch = open_batch(server, tmp_path)
    batch.submit(asked)
    batch.poll()
    (entry,) = server.batches.values()
    lines = server.files[entry["output_file_id"]].splitlines(keepends=True)
    server.files[entry["output_file_id"]] = b"".join(lines[:2])
    came = collected(batch)
    assert len(came) == 3
    assert [outcome.reason for outcome in came.values() if isinstance(outcome, RequestError)] == [
        failures.UNAVAILABLE
    ]


def test_an_expired_key_shows_its_variable_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "some-expired-key")
    with TeacherServer(key="another") as server:
        batch = open_batch(server, tmp_path)
        with pytest.raises(EndpointError, match="'OPENAI_API_KEY'") as caught:
            batch.submit(questions(1))
    assert caught.value.__context__ is None
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "some-expired-key" not in written + str(caught.value)


def test_damaged_state_is_refused(server, tmp_path):
    (tmp_path / batches.STATE_FILE).write_text('[{"name": 1}]')
    with pytest.raises(InputError, match=r"batches\.json: damaged state"):
        open_batch(server, tmp_path)


def test_the_client_fails_all_requests_that_may_still_be_completed(server, tmp_path):
    lines = []
    server.batch_ends = "failed"
    extract = ExtractConfig(
        extract_dir=str(tmp_path),
        client="batch",
        teacher_model="teacher",
        teacher_url=server.url,
        retries=0,
    )

    async def run():
        client = clients.open(extract, DataConfig(dataset="demo"), lines.append)
        tasks = [asyncio.create_task(client.complete(request)) for request in questions(3)]
        client.flush()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
        return outcomes

    for outcome in asyncio.run(run()):
        assert isinstance(outcome, EndpointError)
        assert outcome.may_be_paid
        assert "batch_0 was refused" in str(outcome)
    assert lines == ["0 of 3 requests in batches are finished"]
