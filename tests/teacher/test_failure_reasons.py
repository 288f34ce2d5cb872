"""Failures are named, stop an extraction early, and are asked again when their cause is gone."""

import dataclasses
import json

import pytest
import teacher_server
from extract_cases import drink, logged
from teacher_server import Fault, TeacherServer

from stepdistill_jax.records import Annotation, ParseFailure
from stepdistill_jax.teacher import failure_reasons, store
from stepdistill_jax.teacher.budget import Tokens
from stepdistill_jax.teacher.failure_reasons import EqualFailures
from stepdistill_jax.teacher.requests import Decoding, is_cut

# A model that reasons first and reaches the limit: null content.
NO_ROOM = Fault(change=teacher_server._with_text(None, "length"))
GOOD = Annotation("1", "R", "yes")


def failure(reason):
    return ParseFailure("1", reason, "", "")


def needs_room(room):
    """Answers only where MAX_NEW_TOKENS is at least `room`."""
    return lambda asked: NO_ROOM if asked.body["max_tokens"] < room else None


def test_an_extraction_whose_first_responses_all_fail_alike_stops_and_says_why(run, server, place):
    server.faults = needs_room(2000)
    code, stdout, stderr = run("CONCURRENCY=4")
    assert code == 4
    # 24 responses, and at most the other three that were in flight; none is paid for twice.
    assert 24 <= server.received <= 27
    assert max(server.by_key.values()) == 1
    assert (
        "error: the first 24 responses all failed: no text within MAX_NEW_TOKENS (finish_reason is "
        "length). Raise MAX_NEW_TOKENS and run the same command again: only the failed requests "
        "are sent again. Set STOP_AFTER_FAILURES=0 to go on regardless."
    ) in stderr
    count = server.received
    assert (
        f"train: {count} of {count} examples have no label: {count} no text within MAX_NEW_TOKENS\n"
        "  Raise MAX_NEW_TOKENS and run the same command again"
    ) in stdout
    # A greater limit in the same folder: those requests are sent again, and all others.
    code, stdout, _ = run("MAX_NEW_TOKENS=2000")
    assert code == 0
    assert f"{count} requests failed under other settings" in stdout
    assert server.received == count + 200
    assert "have no label" not in stdout
    lines = (place / "out" / "rationales_train.jsonl").read_text().splitlines()
    assert len(lines) == 200
    assert run("MAX_NEW_TOKENS=2000")[0] == 0
    assert server.received == count + 200


def test_it_goes_on_where_the_first_responses_do_not_all_fail_alike(run, server):
    server.plan(*[NO_ROOM] * 23, teacher_server.FILTERED)
    assert run("CONCURRENCY=1")[0] == 0
    assert server.received == 200


def test_stop_after_failures_0_goes_on_regardless(run, server):
    server.faults = needs_room(2000)
    code, stdout, _ = run("STOP_AFTER_FAILURES=0")
    assert (code, server.received) == (0, 200)
    assert "train: 200 of 200 examples have no label: 200 no text within" in stdout


def test_completions_that_were_cut_are_asked_again_under_a_greater_limit(run, server, place):
    cut = Fault(change=teacher_server._with_text("Most of them like it", "max_tokens"))
    server.faults = lambda asked: cut if asked.body["max_tokens"] < 300 else None
    server.plan(*[None] * 10)
    _, stdout, _ = run("MAX_ROWS=15", "CONCURRENCY=1")
    assert "train: 5 of 15 examples have no label: 5 cut off at MAX_NEW_TOKENS" in stdout
    kept = [row for row in logged(place / "out") if row["finish_reason"] == "stop"]
    _code, stdout, _ = run("MAX_ROWS=15", "MAX_NEW_TOKENS=300")
    assert "5 requests failed under other settings" in stdout
    assert server.received == 20
    assert logged(place / "out")[:10] == kept
    units = json.loads((place / "out" / "summary.json").read_text())["units"]
    assert units["train"]["quality"]["outcomes"] == {"parsed": 15}
    # A smaller limit takes nothing away that was paid for.
    run("MAX_ROWS=15", "MAX_NEW_TOKENS=20")
    assert server.received == 20
    # As with a merge, and a replay of the folder.
    run(f"EXTRACT_DIR={place / 'all'}", positional=(str(place / "out"),), files=(), merge=True)
    units = json.loads((place / "all" / "summary.json").read_text())["units"]
    assert units["train"]["quality"]["outcomes"] == {"parsed": 15}
    replay = ("CLIENT=replay", f"REPLAY=file:{place / 'all'}", "MAX_ROWS=15")
    run(*replay, folder="replayed")
    units = json.loads((place / "replayed" / "summary.json").read_text())["units"]
    assert units["train"]["quality"]["outcomes"] == {"parsed": 15}


def test_failed_requests_are_asked_again_at_another_address_or_on_request(run, server, place):
    server.faults = lambda asked: teacher_server.NULL
    code, _, stderr = run("MAX_ROWS=30", "CONCURRENCY=1", "RETRIES=0")
    assert code == 4
    assert "all failed: empty completion (finish_reason is stop). Check the endpoint's" in stderr
    assert "ASK_FAILED_AGAIN=True" in stderr
    assert server.received == 24
    server.faults = lambda asked: None
    # The same address: they may fail again, so the user decides.
    assert run("MAX_ROWS=24")[0] == 4
    assert server.received == 24
    code, stdout, _ = run("MAX_ROWS=10", "ASK_FAILED_AGAIN=True")
    assert "24 requests failed under other settings, or before ASK_FAILED_AGAIN" in stdout
    assert server.received == 34
    with TeacherServer(answer=drink, key=server.key) as other:
        code, stdout, _ = run("MAX_ROWS=24", f"TEACHER_URL={other.url}")
        assert "14 requests failed under other settings" in stdout
        assert other.received == 14
    units = json.loads((place / "out" / "summary.json").read_text())["units"]
    assert units["train"]["quality"]["outcomes"] == {"parsed": 24}


def test_a_folder_that_holds_failures_alone_takes_any_setting(run, server, place):
    server.faults = lambda asked: NO_ROOM
    run("MAX_ROWS=5")
    server.faults = lambda asked: None
    server.models = ("teacher", "other")
    _code, stdout, _ = run("MAX_ROWS=5", "TEACHER_MODEL=other", "PROMPT_FORM=completion")
    assert "5 requests failed under other settings" in stdout
    assert [row["model"] for row in logged(place / "out")] == ["teacher"] * 5 + ["other"] * 5


def test_a_log_without_addresses_continues(run, server, place):
    server.faults = lambda asked: NO_ROOM
    run("MAX_ROWS=5")
    path = place / "out" / "rows" / "train.jsonl"
    rows = [{k: v for k, v in row.items() if k != "source"} for row in logged(place / "out")]
    for row in rows:
        # As earlier versions wrote them.
        row["error"] = "empty completion"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.faults = lambda asked: None
    run("MAX_ROWS=5")
    assert server.received == 5
    _code, stdout, _ = run("MAX_ROWS=5", "MAX_NEW_TOKENS=300")
    assert server.received == 10
    assert "5 requests failed under other settings" in stdout


@pytest.mark.parametrize("outcomes", [[GOOD], [failure("other"), failure("cut")]])
def test_a_label_or_another_reason_ends_the_watch(outcomes):
    watch = EqualFailures(2)
    assert [watch.add(outcome, "") for outcome in outcomes] == [""] * len(outcomes)
    assert [watch.add(failure("cut"), "") for _ in range(5)] == [""] * 5


def test_reasons_are_alike_without_their_details():
    watch = EqualFailures(2)
    watch.add(failure("answer is not arithmetic: no value"), "")
    assert watch.add(failure("answer is not arithmetic: no number"), "").startswith(
        "the first 2 responses all failed: answer is not arithmetic. Read the responses in worst_"
    )


def test_the_lines_of_a_unit_count_its_reasons():
    outcomes = {"parsed": 5, "no answer marker": 3, "answer is not arithmetic: a": 1}
    outcomes |= {"answer is not arithmetic: b": 1}
    first, second = failure_reasons.describe("test", outcomes, frozenset({"parsed"}))
    assert first == (
        "test: 5 of 10 examples have no label: 3 no answer marker, 2 answer is not arithmetic"
    )
    assert second.strip().startswith("Read the responses in worst_SPLIT.jsonl")


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_finish_reasons_of_other_endpoints_are_known(reason):
    assert is_cut(reason)
    assert not is_cut("stop")


def test_the_last_response_under_another_limit_is_the_one():
    base = store.Response("1", "answer", 0, "k", "h", "m", Decoding(), charged=Tokens(0, 0))
    cut = dataclasses.replace(base, text="a", finish_reason="length", at=1.0)
    longer = Decoding(max_new_tokens=512)
    failed = dataclasses.replace(base, error="content filter", decoding=longer, at=2.0)
    whole = dataclasses.replace(base, text="b", key="l", decoding=longer, at=3.0)
    for lines in ([cut, failed, whole], [whole, failed, cut]):
        assert store.latest(lines) == {cut.slot: whole}
    assert store.latest([failed, cut]) == {cut.slot: failed}
