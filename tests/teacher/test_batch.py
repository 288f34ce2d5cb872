"""Offline batches: nothing is submitted twice, and every request has an outcome."""

from __future__ import annotations

import dataclasses
import json

import pytest
import teacher_server
from teacher_server import TeacherServer

from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.clients import batch as batches
from stepdistill_jax.teacher.clients import failures
from stepdistill_jax.teacher.clients.batch import Batch
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


def open_batch(server, folder, **fields) -> Batch:
    defaults = {"extract_dir": "x", "client": "batch", "teacher_model": "teacher", "retries": 0}
    return Batch(ExtractConfig(**defaults, teacher_url=server.url, **fields), folder)


def questions(count: int) -> list[Request]:
    return [
        Request(
            row_id=str(number),
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
    assert batch.submit([*asked, dataclasses.replace(asked[0], row_id="the same again")]) == 5
    assert batch.poll().over is False
    assert batch.poll() == batches.BatchStatus(1, 5, 5, 0, over=True)
    came = dict(batch.collect())
    batch.close()
    assert set(came) == {request.key for request in asked}
    by_key = {json.loads(line)["custom_id"]: json.loads(line) for line in uploads(server)}
    for request in asked:
        body = by_key[request.key]["body"]
        expected = server.answer(teacher_server.Asked("", body, {}))
        assert came[request.key].text == expected
        assert body["messages"] == [{"role": "user", "content": request.messages[0].content}]
        assert came[request.key].prompt_tokens == 4
    assert list(batch.collect()) == []
    assert batch.waiting() == frozenset()
    assert [path.name for path in tmp_path.iterdir()] == [batches.STATE_FILE]
    assert batch.poll() == batches.BatchStatus(0, 0, 0, 0, over=True)


def uploads(server) -> list[bytes]:
    inputs = {entry["input_file_id"] for entry in server.batches.values()}
    return [line for name in sorted(inputs) for line in server.files[name].splitlines()]


def test_limits_of_a_file_make_several_batches(server, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MOST_REQUESTS", 3)
    batch = open_batch(server, tmp_path)
    batch.submit(questions(7))
    assert submitted(server) == 3
    assert batch.poll().batches == 3
    assert len(dict(batch.collect())) == 7
    size = len(uploads(server)[0]) + 1
    monkeypatch.setattr(batches, "MOST_BYTES", 2 * size)
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
    assert all(isinstance(came, Completion) for _, came in batch.collect())


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
            patched.setattr(batch, "_note", kill)
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
    assert {key for key, _ in again.collect()} == {request.key for request in asked}
    assert len(server.asked) == 4


def test_another_process_collects(server, tmp_path):
    asked = questions(4)
    open_batch(server, tmp_path).submit(asked[:2])
    assert open_batch(server, tmp_path).submit(asked) == 2
    assert submitted(server) == 2
    open_batch(server, tmp_path).poll()
    half = open_batch(server, tmp_path).collect()
    first = [next(half)]  # killed before the second answer is written down
    came = dict(open_batch(server, tmp_path).collect())
    assert first[0][0] in came
    assert len(came) == 4
    assert list(open_batch(server, tmp_path).collect()) == []


def test_rows_of_an_expired_batch_are_typed_and_can_be_submitted_again(server, tmp_path):
    asked = questions(5)
    server.batch_ends = "expired"
    batch = open_batch(server, tmp_path)
    batch.submit(asked)
    batch.poll()
    came = dict(batch.collect())
    lost = [key for key, outcome in came.items() if isinstance(outcome, RequestError)]
    assert {came[key].reason for key in lost} == {failures.EXPIRED}
    assert lost == [asked[1].key, asked[3].key]
    server.batch_ends = "completed"
    assert batch.submit([request for request in asked if request.key in lost]) == 2
    batch.poll()
    assert all(isinstance(outcome, Completion) for _, outcome in batch.collect())


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
    assert batch.poll().failed == 3
    came = dict(batch.collect())
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
    assert batch.poll().over
    with pytest.raises(EndpointError, match="batch_0 was refused: model_not_found: The provided"):
        list(batch.collect())
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
    came = dict(batch.collect())
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
    with pytest.raises(InputError, match=r"batches\.json: not the state"):
        open_batch(server, tmp_path)
