"""What an extraction leaves beside its log: what training reads, and numbers."""

import json

import pytest

from stepdistill_jax.data import inputs
from stepdistill_jax.data.added_inputs import read_added
from stepdistill_jax.data.rationale_file import read_rationales
from stepdistill_jax.records import Annotation, Example, ParseFailure
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import summary
from stepdistill_jax.teacher.annotator import Annotator, ExampleState
from stepdistill_jax.teacher.budget import Tokens
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    ANSWER,
    HINT,
    Completion,
    Decoding,
    Request,
    RequestError,
)
from stepdistill_jax.teacher.store import Response
from stepdistill_jax.teacher.vote import Annotated


def kept(example_id, outcome, hinted=False, choices=("yes", "no")):
    example = Example(example_id, f"input {example_id}", "yes", choices=choices)
    return Annotated(example, outcome, 1, 1, hinted, outcome)


ROWS = [
    kept("1", Annotation("1", " since it is ", "yes")),
    kept("2", ParseFailure("2", "no answer marker", "", "raw")),
    kept("3", ParseFailure("3", "several answers", "it may be", "raw")),
    kept("4", Annotation("4", "", "no")),
    kept("5", Annotation("5", "with a hint", "yes"), hinted=True),
]


def test_training_reads_the_rationales(tmp_path):
    assert summary.write_rationales(tmp_path, "train", ROWS) == 3
    path = summary.rationales_path(tmp_path, "train")
    found = read_rationales(path, [row.example for row in ROWS], "train")
    assert found == {
        "1": Annotation("1", "since it is", "yes"),
        "3": Annotation("3", "it may be", ""),
        "5": Annotation("5", "with a hint", "yes", hinted=True),
    }
    # Where the row is validated or tested on, its gold label may not have helped.
    with pytest.raises(InputError, match=r"train\.jsonl:3: the rationale of id 5 was written with"):
        read_rationales(path, [row.example for row in ROWS], "train", evaluated={"5"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("hinted") for line in lines] == [None, None, True]


def test_training_reads_added_inputs(tmp_path):
    assert summary.write_rationales(tmp_path, inputs.ADDED, ROWS) == 4
    path = summary.rationales_path(tmp_path, inputs.ADDED)
    examples, found = read_added(path, (), (), True, "exact", None)
    assert [(e.id, e.input, e.choices) for e in examples] == [
        (f"added-{i}", f"input {i}", ("yes", "no")) for i in (1, 3, 4, 5)
    ]
    assert found["added-4"] == Annotation("added-4", "", "no")


class Prompt:
    format = "anli"
    hash = "h"


def row(example_id, gold, *came):
    """A row whose answers came one after another, each a second long."""
    found = ExampleState(
        "train", Example(example_id, f"input {example_id}", gold, choices=("yes", "no"))
    )
    for purpose, what, at, send in came:
        request = Request(example_id, purpose, 0, "m", (), "Q", (), Decoding())
        charged = Tokens(100, 10) if send else Tokens(0, 0)
        if isinstance(what, str):
            what = Completion(what, "stop", 100, 10, "m", 1.0)
        answer = Response.of(request, "h", what, charged=charged, send=send, at=at, cached=not send)
        found.responses[purpose, 0] = answer
    return found


def test_a_hinted_row_to_look_at_says_so_and_shows_the_answer_it_is_from(tmp_path):
    extract = ExtractConfig("x", teacher_model="m", hint_wrong=True)
    hint = "yes yes yes yes yes yes yes yes. So the answer is yes."
    rows = [row("1", "yes", (ANSWER, "No. So the answer is no.", 1.0, "a"), (HINT, hint, 2, "b"))]
    teaching = Annotator(extract, Prompt(), "exact")
    paid = list(rows[0].responses.values())
    assert summary.write_unit(tmp_path, "train", teaching, rows, paid)["quality"]["hints_kept"] == 1
    (line,) = [json.loads(line) for line in (tmp_path / "worst_train.jsonl").open()]
    assert line["hinted"] is True
    assert (line["gold"], line["label"], line["raw"]) == ("yes", "no", hint)
    assert line["raw"].startswith(line["rationale"])


def test_numbers_of_a_unit(tmp_path):
    extract = ExtractConfig(
        "x", teacher_model="m", hint_wrong=True, price_input=1.0, price_output=5.0
    )
    rows = [
        row("1", "yes", (ANSWER, "Sure. So the answer is yes.", 11.0, "a")),
        row(
            "2",
            "yes",
            (ANSWER, "Never. So the answer is no.", 11.5, "b"),
            (HINT, "Told. So the answer is yes.", 20.0, "c"),
        ),
        row("3", "no", (ANSWER, "It is so. So the answer is no.", 30.0, "")),
        row("4", "no", (ANSWER, RequestError("content filter", "flagged", 100, 0), 31.0, "d")),
        row("5", "no"),
    ]
    paid = [answer for each in rows for answer in each.responses.values() if answer.send]
    teaching = Annotator(extract, Prompt(), "exact")
    found = summary.write_unit(tmp_path, "train", teaching, rows, paid)
    quality = found.pop("quality")
    assert found == {
        "rows": 5,
        "answered": 4,
        "rationales": 3,
        "requests": 4,
        "cached": 1,
        "errors": 1,
        "near_misses": 0,
        "omitted": {},
        "prompt_tokens": 400,
        "completion_tokens": 40,
        "cost": pytest.approx(600e-6),
        # Awaited from 10 to 11.5, from 19 to 20, and from 29 to 30 (from the cache: not counted).
        "seconds": 2.5,
    }
    assert (quality["hints_asked"], quality["hints_kept"]) == (1, 1)
    # Without the hint: rows 1 and 3 of four.
    assert quality["accuracy"]["share"] == 0.5
    worst = [json.loads(line) for line in (tmp_path / "worst_train.jsonl").open()]
    assert worst[0]["id"] == "4"
    assert "content filter" in " ".join(worst[0]["reasons"])
    table = summary.table({"train": {**found, "quality": quality}})
    assert table.splitlines()[1].split() == [
        # Four of five answers were paid for, so 3.2 of four rows, in 2.5 seconds.
        *("train", "5", "4", "75.0%", "50.0%", "4", "1", "440", "1.28", "0.0006"),
    ]


@pytest.mark.parametrize(
    ("label", "metric", "near"),
    [
        ("Yes", "exact", 1),
        ("yes.", "exact", 1),
        (" yes", "exact", 0),  # White space at the ends never counts.
        ("no", "exact", 0),
        ("", "exact", 0),
        ("(yes)", "equation", 0),
    ],
)
def test_labels_that_are_wrong_by_no_letter_are_counted(label, metric, near):
    example = Example(id="1", input="", label="yes")
    outcome = Annotation("1", "R", label)
    annotated = Annotated(example, outcome, 1, 1, False, outcome)
    assert summary._is_near_miss(annotated, metric) is bool(near)
