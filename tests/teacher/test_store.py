"""The log of answers: whole lines, torn tails, conflicts, merging, what training reads."""

import errno
import json
import pathlib

import pytest

from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import append_log, store
from stepdistill_jax.teacher.budget import Tokens
from stepdistill_jax.teacher.requests import ANSWER, Completion, Decoding, Request, RequestError
from stepdistill_jax.teacher.store import Response, Share, Store


def request(example_id="7", sample=0):
    return Request(example_id, ANSWER, sample, "m", (), f"Q: {example_id}", (), Decoding())


def answer(example_id="7", text="yes", send="", sample=0):
    came = Completion(text, "stop", 12, 3, "m", 0.5)
    asked = request(example_id, sample)
    return Response.of(asked, "hash", came, charged=Tokens(12, 3), send=send)


LONE = store.ALONE


def write(folder, answers, share=LONE, unit="train"):
    opened = Store(folder, [unit], share)
    for one in answers:
        opened.append(unit, one)
    opened.close()
    return opened


def test_a_line_says_what_was_asked_and_what_came(tmp_path):
    failed = Response.of(
        request("8"), "hash", RequestError("content filter", "no", 9, 0), send="s2"
    )
    write(tmp_path, [answer(send="s1"), failed])
    first, second = map(json.loads, (tmp_path / "rows" / "train.jsonl").read_text().splitlines())
    assert first == {
        "id": "7",
        "purpose": "answer",
        "sample": 0,
        "key": request().key,
        "prompt_hash": "hash",
        "model": "m",
        "decoding": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 256, "seed": 0},
        "text": "yes",
        "finish_reason": "stop",
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "seconds": 0.5,
        "at": 0.0,
        "cached": False,
        "send": "s1",
        "charged": [12, 3],
    }
    assert (second["error"], second["detail"]) == ("content filter", "no")
    assert "text" not in second
    assert store.read_responses(tmp_path, "train") == [answer(send="s1"), failed]


def test_text_that_utf8_cannot_hold_is_written_all_the_same(tmp_path):
    write(tmp_path, [answer(text="half \ud83d, line\u2028two\n\r\x00")])
    (found,) = store.read_responses(tmp_path, "train")
    assert found.text == "half ?, line\u2028two\n\r\x00"


@pytest.mark.parametrize("tail", [b'{"id": "9", "purp', b"\0\0\0\0", b'{"id": "9"\n', b"\0\0\n"])
def test_a_torn_last_line_is_cut_off_and_said(tmp_path, tail):
    write(tmp_path, [answer("1"), answer("2")])
    path = tmp_path / "rows" / "train.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    # A reader passes it over: another process may be writing it.
    assert [a.id for a in store.read_responses(tmp_path, "train")] == ["1", "2"]
    assert path.read_bytes() == whole + tail
    opened = Store(tmp_path, ["train"], Share())
    assert len(opened.torn) == 1
    assert f"cut off a torn last line ({len(tail)} bytes)" in opened.torn[0]
    assert path.read_bytes() == whole
    opened.append("train", answer("3"))
    opened.close()
    assert [a.id for a in store.read_responses(tmp_path, "train")] == ["1", "2", "3"]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    write(tmp_path, [answer("1"), answer("2")])
    path = tmp_path / "rows" / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"id": "1"', b'{"id": 1"', 1))
    with pytest.raises(InputError, match=r"rows/train\.jsonl:1: damaged .*Fix or remove"):
        store.read_responses(tmp_path, "train")
    path.write_text('{"id": "1"}\n' + json.dumps(answer("2").row()) + "\n")
    with pytest.raises(InputError, match=r"rows/train\.jsonl:1: not a line of an extraction's log"):
        store.read_responses(tmp_path, "train")


def test_two_processes_cannot_write_one_log(tmp_path):
    first = Store(tmp_path, ["train"], Share())
    with pytest.raises(InputError, match=r"sent\.jsonl: another process is writing it"):
        Store(tmp_path, ["train"], Share())
    Store(tmp_path, ["train"], Share(0, 2)).close()
    first.close()
    Store(tmp_path, ["train"], Share()).close()


def test_a_line_that_does_not_fit_leaves_none_of_itself(tmp_path, monkeypatch):
    opened = Store(tmp_path, ["train"], Share())
    opened.append("train", answer("1"))
    real = append_log.os.write

    def refuse(descriptor, line):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    for write_less, message in (
        (lambda d, line: real(d, line[:20]), "No space left"),
        (refuse, "Disk quota exceeded"),
    ):
        monkeypatch.setattr(append_log.os, "write", write_less)
        with pytest.raises(OSError, match=rf"{message}.*train\.jsonl"):
            opened.append("train", answer("2"))
    monkeypatch.undo()
    opened.append("train", answer("3"))
    opened.close()
    lines = (tmp_path / "rows" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "3"]


def test_an_answer_takes_the_place_of_an_error_and_never_of_another_answer(tmp_path):
    error = Response.of(request(), "hash", RequestError("no answer", "HTTP 500"))
    for order in ([error, answer()], [answer(), error], [answer(), answer()]):
        assert store.latest(order)["7", "answer", 0] == answer()
    write(tmp_path, [answer("1"), answer()], Share(0, 2))
    write(tmp_path, [answer(text="no")], Share(1, 2))
    with pytest.raises(
        InputError,
        match=r"train-0-of-2\.jsonl:2 and rows/train-1-of-2\.jsonl:1: different responses"
        r".*id 7.*'yes' and 'no'\. Remove one",
    ):
        store.latest(store.read_responses(tmp_path, "train"))


def test_a_conflict_shows_where_long_texts_part(tmp_path):
    start = "It is turned on. " * 20
    write(tmp_path, [answer(text=start + "So yes." + " Indeed." * 20)], Share(0, 2))
    write(tmp_path, [answer(text=start + "So no.")], Share(1, 2))
    with pytest.raises(InputError) as caught:
        store.latest(store.read_responses(tmp_path, "train"))
    text = str(caught.value)
    assert "…'It is turned on. So yes. Indeed. Indeed." in text
    assert "Ind'… and …'It is turned on. So no.'. Remove one of the lines" in text


def test_units_are_told_in_the_order_of_splits_and_workers_that_lack_are_named(tmp_path):
    for unit in ("inputs", "test", "train", "validation"):
        write(tmp_path, [answer()], Share(0, 3), unit)
    assert store.units(tmp_path) == ["train", "validation", "test", "inputs"]
    assert store.missing_workers([tmp_path]) == [Share(1, 3), Share(2, 3)]
    write(tmp_path / "b", [answer()], Share(2, 3))
    assert store.missing_workers([tmp_path, tmp_path / "b"]) == [Share(1, 3)]
    assert store.missing_workers([tmp_path / "c"]) == []


def test_sendings_that_were_never_answered_are_known(tmp_path):
    opened = Store(tmp_path, ["train"], Share())
    sendings = [opened.sending(request(str(i)), Tokens(100 + i, 5)) for i in range(4)]
    opened.append("train", answer("0", send=sendings[0].send))
    opened.unpaid(sendings[2])
    opened.close()
    open_ones = store.unanswered(tmp_path, store.read_responses(tmp_path, "train"))
    assert [(s.slot, s.bound, s.where) for s in open_ones] == [
        (("1", "answer", 0), (101, 5), "rows/sent.jsonl:2"),
        (("3", "answer", 0), (103, 5), "rows/sent.jsonl:4"),
    ]


def test_shares_are_disjoint_and_complete():
    ids = [str(number) for number in range(1000)]
    dealt = [{i for i in ids if Share(k, 3).has(i)} for k in range(3)]
    assert set.union(*dealt) == set(ids)
    assert sum(map(len, dealt)) == len(ids)
    assert min(map(len, dealt)) > 280


def contents(folder: pathlib.Path):
    return {path.name: path.read_bytes() for path in (folder / "rows").iterdir()}


def test_merging_is_idempotent_and_keeps_what_was_sent(tmp_path):
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    write(a, [answer("1", send="x1")], Share(0, 2))
    write(a, [answer("2", send="x2")], Share(1, 2))
    write(b, [answer("2", send="x3"), answer("3", send="x4")])
    lost = Store(b, ["train"], Share())
    lost.sending(request("4"), Tokens(50, 5))
    lost.close()
    assert store.merge([a, b], out) == {"train": 4}
    assert sorted(contents(out)) == ["sent.jsonl", "train.jsonl"]
    assert [answer.id for answer in store.read_responses(out, "train")] == ["1", "2", "2", "3"]
    (sending,) = store.unanswered(out, store.read_responses(out, "train"))
    assert sending.bound == (50, 5)
    before = contents(out)
    for again in ([a, b], [out, b], [b, a]):
        store.merge(again, out)
        assert contents(out) == before
    # The workers of one folder, into itself.
    store.merge([a], a)
    assert [x["id"] for x in map(json.loads, contents(a)["train.jsonl"].splitlines())] == ["1", "2"]


def test_merging_refuses_rows_that_conflict_and_writes_nothing(tmp_path):
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    write(a, [answer("1"), answer("2")])
    write(b, [answer("2", text="no")])
    with pytest.raises(InputError, match=rf"{a}/rows/train\.jsonl:2 and {b}/rows/train\.jsonl:1: "):
        store.merge([a, b], out)
    assert not out.exists()
