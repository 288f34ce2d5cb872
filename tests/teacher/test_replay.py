from __future__ import annotations

import asyncio
import json

import pytest
from etils import epath

from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.data.read import SplitReader
from stepdistill_jax.data.sources import SOURCES
from stepdistill_jax.data.teacher_outputs import output_files
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import clients
from stepdistill_jax.teacher.clients.replay import NOT_RECORDED
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    ANSWER,
    HINT,
    Completion,
    Decoding,
    Message,
    Request,
    RequestError,
)


def opened(replay: str, data: DataConfig | None = None, **fields):
    extract = ExtractConfig(extract_dir="x", client="replay", replay=replay, **fields)
    return clients.open(extract, data or DataConfig(dataset="demo"))


def request(
    example_id: str, question: str = "Why?", purpose: str = ANSWER, sample: int = 0
) -> Request:
    messages = (Message("user", "An exemplar."), Message("user", question))
    return Request(example_id, purpose, sample, "", messages, "", (), Decoding())


def ask(client, *requests: Request) -> list[Completion | BaseException]:
    async def run():
        return await asyncio.gather(*map(client.complete, requests), return_exceptions=True)

    return asyncio.run(run())


def test_released_outputs_by_row_number(shared):
    data = DataConfig(dataset="cqa", data_dir=str(shared / "data"))
    client = opened("release", data, extract_splits=("test",))
    files = output_files(SOURCES["cqa"], epath.Path(data.data_dir), "test")
    raw = [text for file in files for text in json.loads(file.read_text())]
    reader = SplitReader(data, "test")
    examples = reader.file.examples
    first, last, hint, second = ask(
        client,
        request(examples[0].id),
        request(examples[-1].id),
        request(examples[0].id, purpose=HINT),
        request(examples[0].id, sample=1),
    )
    assert first.text == raw[0]
    assert last.text == raw[-1]
    assert (first.finish_reason, first.prompt_tokens, first.completion_tokens) == ("replayed", 0, 0)
    for missing in (hint, second):
        assert isinstance(missing, RequestError)
        assert missing.reason == NOT_RECORDED


def test_an_id_of_two_splits_is_told_apart_by_its_question(shared):
    """SVAMP's ids are row numbers, so validation (in train's file) and test share them."""
    data = DataConfig(dataset="svamp", data_dir=str(shared / "data"))
    client = opened("release", data, extract_splits=("train", "test"))
    texts = {}
    for split, stem in (("train", "train"), ("test", "test")):
        reader = SplitReader(data, split)
        example = reader.file.examples[0]
        raw = json.loads((shared / "data" / "svamp" / "llm" / f"{stem}_CoT_0.json").read_text())
        texts[split] = (f"Q: {example.input}\nA:", raw[0])
    for question, text in texts.values():
        (came,) = ask(client, request("0", question))
        assert came.text == text
    (came,) = ask(client, request("0", "something else"))
    assert isinstance(came, RequestError)


def test_data_without_released_outputs():
    with pytest.raises(InputError, match="no released outputs for the train split of 'demo'"):
        opened("release")


def line(example_id: str, text: str, **fields) -> dict:
    shared = {
        "id": example_id,
        "purpose": ANSWER,
        "sample": 0,
        "key": example_id * 3,
        "model": "small",
    }
    return {**shared, "text": text, "finish_reason": "stop", **fields}


def write(path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_of_another_extraction(tmp_path):
    failed = {key: value for key, value in line("c", "").items() if key != "text"}
    failed |= {"error": "content filter", "detail": "flagged"}
    log = tmp_path / "rows" / "train.jsonl"
    write(
        log,
        line("a", "first"),
        line("a", "hinted", purpose=HINT),
        {**failed, "id": "b"},
        line("b", "after a failure", answered_by="small-0613"),
        failed,
    )
    write(tmp_path / "rows" / "sent.jsonl", {"send": "1", "id": "a"})
    for path in (log, tmp_path):
        client = opened(f"file:{path}")
        a, hint, b, c, d = ask(
            client,
            request("a"),
            request("a", purpose=HINT),
            request("b"),
            request("c"),
            request("d"),
        )
        assert (a.text, a.model) == ("first", "small")
        assert hint.text == "hinted"
        assert (b.text, b.model) == ("after a failure", "small-0613")
        assert (c.reason, c.detail) == ("content filter", "flagged")
        assert d.reason == NOT_RECORDED


def test_an_id_of_two_logs_needs_an_equal_request(tmp_path):
    asked = request("0", "Which?")
    write(tmp_path / "rows" / "train.jsonl", line("0", "of train"))
    write(tmp_path / "rows" / "test.jsonl", line("0", "of test", key=asked.key))
    equal, other = ask(opened(f"file:{tmp_path}"), asked, request("0", "Who?"))
    assert equal.text == "of test"
    assert other.reason == NOT_RECORDED
    assert "no recorded responses" in other.detail


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"id": "a"}, r"rows\.jsonl:1: not a line of an extraction's rows \(KeyError: 'purpose'\)"),
        (line("a", "x", sample="one"), r"rows\.jsonl:1: not a line.*ValueError"),
        (line("a", 5), r"rows\.jsonl:1: .*not text"),
    ],
)
def test_a_line_that_is_none(tmp_path, row, match):
    write(tmp_path / "rows.jsonl", row)
    with pytest.raises(InputError, match=match):
        opened(f"file:{tmp_path / 'rows.jsonl'}")


@pytest.mark.parametrize(
    ("replay", "match"),
    [
        ("released", "expected 'release', or 'file:PATH'"),
        ("file:/nowhere.jsonl", r"nowhere\.jsonl: no such file"),
    ],
)
def test_what_cannot_be_replayed(replay, match):
    with pytest.raises(InputError, match=match):
        opened(replay)


def test_an_empty_folder_holds_no_answer(tmp_path):
    with pytest.raises(InputError, match="no responses there"):
        opened(f"file:{tmp_path}")
