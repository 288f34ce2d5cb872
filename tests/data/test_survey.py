"""The released data sets, measured, against the paper's figures and against hand counts."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from stepdistill_jax.data import audit, survey
from stepdistill_jax.data.audit import Lengths
from stepdistill_jax.data.config import DataConfig, TokenConfig
from stepdistill_jax.data.sources import ColumnConfig
from stepdistill_jax.data.survey import Tokenizer, choose, survey_pairs, survey_released
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.spec import InputError

BYTES = Tokenizer(TokenConfig(vocabulary="bytes", max_label_length=5), load_vocabulary("bytes"))


@pytest.fixture(scope="module")
def columns(shared):
    """(data set, split) -> column, over all public data; no tokens."""
    audits = [
        column
        for dataset in survey.RELEASED
        for column in survey_released(shared / "data", dataset, None)
    ]
    return {(column.dataset, column.split): column for column in audits}


@pytest.mark.parametrize(
    ("dataset", "split", "rows", "percent"),
    [
        ("esnli", "validation", 9842, "73.17"),
        ("esnli", "test", 9824, "72.99"),
        ("anli", "validation", 1000, "66.80"),
        ("anli", "test", 1000, "65.60"),
        ("cqa", "train", 9741, "74.26"),
        ("cqa", "test", 1221, "77.23"),
        ("svamp", "train", 800, "73.25"),
        ("svamp", "test", 200, "74.00"),
    ],
)
def test_teacher_accuracy_is_as_published(columns, dataset, split, rows, percent):
    column = columns[dataset, split]
    teacher = column.teacher
    assert column.rows == teacher.outputs == rows
    assert f"{100 * teacher.release_accuracy:.2f}" == percent
    # A repair is made only where it is certain: it may add right labels and lose none.
    assert teacher.accuracy >= teacher.release_accuracy
    assert column.missing == column.differs == ()


def test_what_is_not_there_is_missing_by_name(columns):
    esnli, anli = columns["esnli", "train"], columns["anli", "train"]
    assert esnli.missing[0] == "esnli/esnli_train.json"
    assert len(esnli.missing) == 1 + 100
    assert anli.missing[0] == "anli1/anli1_train.json"
    assert len(anli.missing) == 1 + 4
    assert esnli.rows == anli.rows == 0


def test_carved_validation_does_not_leak(columns):
    for dataset, total in (("cqa", 9741), ("svamp", 800)):
        column = columns[dataset, "validation, carved"]
        assert column.rows == pytest.approx(total / 10, abs=total / 200)
        assert column.overlaps == {"the rest of train": 0}


def test_asdiv_has_rows_and_no_teacher(columns):
    column = columns["asdiv", "train"]
    assert (column.rows, column.teacher, column.rationales) == (2305, None, 0)


def cqa_row(number, question):
    return {
        "id": f"id{number}",
        "question": question,
        "choices": ["ant", "bee", "cat", "dog", "eel"],
        "answer": "cat",
        "abstractive_explanation": "e",
        "extractive_explanation": "e",
    }


@pytest.fixture
def cqa_test_split(tmp_path):
    """A CQA release of one split: four rows, one of them twice."""
    rows = [cqa_row(i, q) for i, q in enumerate(["What mews?", "what  MEWS?", "Who?", "Which?"])]
    outputs = [
        "A cat mews. So the answer is (c) cat.\n\nQ: next",
        "A dog mews. So the answer is (d) dog.",
        "It purrs. So the answer is (c).",
        "I do not know.",
    ]
    (tmp_path / "cqa" / "llm").mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "cqa" / "cqa_test.json").write_text(lines)
    (tmp_path / "cqa" / "llm" / "test_CoT_0.json").write_text(json.dumps(outputs))
    return tmp_path


def test_counts_by_hand(cqa_test_split):
    train, test = survey_released(cqa_test_split, "cqa", BYTES)
    assert (train.split, train.rows, train.missing[0]) == ("train", 0, "cqa/cqa_train.json")
    assert test.missing == ("cqa/llm/test_CoT_1.json",)
    assert test.differs == ("cqa/cqa_test.json", "cqa/llm/test_CoT_0.json")
    assert (test.rows, test.duplicates, test.overlaps) == (4, 1, {})
    assert test.teacher.outputs == 4
    assert test.teacher.release_accuracy == 0.25
    assert test.teacher.accuracy == 0.5
    assert test.teacher.repaired == 1
    assert test.teacher.failures == {"no answer marker": 1}
    # Rationales: "A cat mews." states both its own label and the gold one, "A dog mews." its own.
    assert (test.rationales, test.states_gold, test.states_own) == (3, 1, 2)
    # "cat" is three bytes and EOS; rationales have 11, 11 and 9 bytes.
    assert test.lengths["label_targets"] == Lengths((4, 4, 4, 4), 5, 0)
    assert test.lengths["rationale_targets"] == Lengths((12, 12, 12, 12), 256, 0)
    longest = "predict: what  MEWS?\nAnswer Choices:\n(a) ant\n(b) bee\n(c) cat\n(d) dog\n(e) eel"
    assert test.lengths["label_inputs"].quantiles[-1] == len(longest) + 1
    assert test.lengths["rationale_inputs"].quantiles[-1] == len(longest) + 1


def test_a_damaged_file_names_its_line(cqa_test_split):
    path = cqa_test_split / "cqa" / "cqa_test.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r"cqa_test\.json:4: not a JSON object"):
        survey_released(cqa_test_split, "cqa", None)


def test_own_data_set(tmp_path):
    for split, texts in {"train": ["a", "b", "B"], "validation": ["b"], "test": ["c", "a"]}.items():
        rows = [{"q": text, "y": "yes", "why": f"{text}, so yes"} for text in texts]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    columns = ColumnConfig(
        train_file="train.jsonl",
        validation_file="validation.jsonl",
        test_file="test.jsonl",
        input_template="{q}",
        label_column="y",
        rationale_column="why",
    )
    config = DataConfig(dataset="jsonl", data_dir=str(tmp_path), columns=columns)
    train, validation, test = survey_pairs(config, BYTES, max_decode_length=3)
    assert test.overlaps["train"] == 1
    assert validation.rows == 1
    assert (test.rows, test.rationales, test.states_gold) == (2, 2, 2)
    assert test.lengths["label_inputs"].quantiles == (11,) * 4
    assert train.rows + train.decisions.get("dropped", 0) <= train.decisions["rows read"] == 3
    assert test.commonest == audit.CommonLabel("yes", 1.0)
    # "yes" has three bytes and EOS.
    assert test.decisions["labels longer than MAX_DECODE_LENGTH, never right"] == 2
    assert "always predicting it" in survey.notes([test], None)
    assert "rows read" in audit.table([train, validation, test])


def test_what_is_lost_is_in_the_table_and_below_it(tmp_path, spiece):
    rows = [{"input": text, "label": label} for text, label in (("不好", "no"), ("喜欢", "10³"))]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ColumnConfig(test_file="mine.jsonl")
    config = DataConfig("jsonl", data_dir=str(tmp_path), rationales="none", columns=columns)
    tokens = Tokenizer(TokenConfig(str(spiece), max_label_length=2), load_vocabulary(str(spiece)))
    audits = survey_pairs(config, tokens)
    lines = [line.split("  ") for line in audit.table(audits).splitlines()]
    cells = {line[0]: line[-1].strip() for line in lines}
    assert cells["labels that the vocabulary changes"] == "1"
    assert cells["labels cut by MAX_LABEL_LENGTH"] == "1"
    assert cells["unknown characters in inputs"] == "4"
    assert cells["inputs with the tokens of another text"] == "2"
    warnings = [line for line in survey.notes(audits, tokens).splitlines() if "Warning" in line]
    assert [line.partition(" of the 2 examples")[0] for line in warnings] == [
        "Warning, jsonl: VOCABULARY changes the labels of 1",
        "Warning, jsonl: MAX_LABEL_LENGTH=2 cuts the labels of 1",
        "Warning, jsonl: VOCABULARY lacks 4 characters in the inputs of 2",
        "Warning, jsonl: 2",
    ]
    assert survey_pairs(config, tokens, scores_choices=True)
    closed = dataclasses.replace(columns, label_set=("no", "是", "10³", "否"))
    with pytest.raises(InputError, match="EVAL_MODE='choices': labels '是' and '否' of test have"):
        survey_pairs(dataclasses.replace(config, columns=closed), tokens, scores_choices=True)


def test_notes_say_what_is_lacking_and_what_to_do():
    whole = audit.SplitAudit("svamp", "train", rows=1)
    carved = audit.SplitAudit("svamp", survey.CARVED, rows=1)
    gap = audit.SplitAudit("esnli", "train", missing=("esnli/esnli_train.json",))
    assert "--download" not in survey.notes([whole], BYTES)
    assert "the prefixes 'predict: ' and 'explain: '" in survey.notes([whole], BYTES)
    text = survey.notes([whole, carved, gap], None)
    assert "Validation, carved: what a run with DATA_SEED=0 validates on." in text
    assert "--download fetches them" in text
    assert "Tokens were not counted: no vocabulary" in text


def test_choose(shared, tmp_path):
    everything = survey.RELEASED
    folders = ("esnli", "anli1", "cqa", "svamp", "asdiv")
    assert choose(shared / "data", [], None) == (everything, ())
    assert choose(shared / "data", [], True) == (everything, folders)
    assert choose(tmp_path / "new", [], None) == (everything, folders)
    shutil.copytree(shared / "data" / "asdiv", tmp_path / "asdiv")
    assert choose(tmp_path, [], None) == (("asdiv",), ())
    assert choose(tmp_path, ["cqa", "asdiv"], None) == (("cqa", "asdiv"), ("cqa",))
    assert choose(tmp_path, ["cqa", "asdiv"], False) == (("cqa", "asdiv"), ())


def test_choose_refuses(tmp_path):
    with pytest.raises(InputError, match="--datasets: got anli1, expected some of esnli,anli,cqa"):
        choose(tmp_path, ["anli1", "cqa"], None)
    with pytest.raises(InputError, match="contains none of esnli, anli, cqa, svamp, asdiv"):
        choose(tmp_path, [], False)


def test_own_data_set_without_a_test_file(tmp_path):
    rows = [{"input": f"{n}", "label": "yes", "why": "so"} for n in range(20)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ColumnConfig(train_file="mine.jsonl", rationale_column="why")
    config = DataConfig(dataset="jsonl", data_dir=str(tmp_path), columns=columns)
    assert [(column.split, column.rows) for column in survey_pairs(config, None)] == [
        ("train", 18),
        ("validation", 2),
    ]
    nothing = dataclasses.replace(config, columns=ColumnConfig())
    with pytest.raises(InputError, match="TRAIN_FILE is empty"):
        survey_pairs(nothing, None)


def test_a_teacher_of_ones_own_is_measured_on_its_rows(tmp_path):
    for split, count in {"train": 40, "test": 4}.items():
        rows = [
            {"id": f"{split}{n}", "input": f"{split} {n}", "label": "yes"} for n in range(count)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    # Of every four rows of train one is right, one wrong, one right by a hint, one not labelled.
    kinds = [{"label": "yes"}, {"label": "no"}, {"label": "yes", "hinted": True}, {}]
    lines = [{"id": f"train{n}", "rationale": "so", **kinds[n % 4]} for n in range(40)]
    given = tmp_path / "why.jsonl"
    files = {"train_file": "train.jsonl", "validation_file": "test.jsonl", "id_column": "id"}
    config = DataConfig(
        dataset="jsonl",
        data_dir=str(tmp_path),
        rationales=f"file:{given}",
        labels="teacher",
        columns=ColumnConfig(**files),
    )
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train, validation = survey_pairs(config, None)
    assert train.teacher == audit.TeacherAudit(
        40, None, 0.25, 0, {"asked again with a hint": 10, "no label": 10}
    )
    assert validation.teacher is None
    table = [line.split() for line in audit.table([train, validation]).splitlines()]
    assert ["teacher", "accuracy", "25.00%", "-"] in table
    assert ["without", "a", "label", "20", "-"] in table
    assert "Teacher accuracy is over the examples in its file" in survey.notes(
        [train, validation], None
    )
    # A file of rationales alone has no labels to measure, and the notes speak of none.
    bare = [{"id": line["id"], "rationale": "so"} for line in lines]
    given.write_text("".join(json.dumps(line) + "\n" for line in bare))
    audits = survey_pairs(dataclasses.replace(config, labels="gold"), None)
    assert audits[0].teacher is None
    assert "eacher accuracy" not in survey.notes(audits, None)


def test_the_carve_is_measured_without_teacher_outputs(cqa_test_split):
    rows = [cqa_row(100 + n, f"Which is {n}?") for n in range(20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (cqa_test_split / "cqa" / "cqa_train.json").write_text(lines)
    *_, carved = survey_released(cqa_test_split, "cqa", None)
    assert (carved.split, carved.rows, carved.rationales) == (survey.CARVED, 2, 0)
