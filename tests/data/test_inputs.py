"""The rows a teacher is asked about are the rows that training sees; data without gold labels."""

import dataclasses
import json

import pytest

from stepdistill_jax.data import inputs
from stepdistill_jax.data.join import ColumnConfig, DataConfig, load_pairs
from stepdistill_jax.data.subsets import content_key
from stepdistill_jax.spec import InputError

ADDED = "added-"


def ids(rows):
    return [row.id for row in rows]


def own(folder, rows=40, label=None, split="train"):
    lines = [
        {"uid": f"{split}{n}", "q": f"{split} question {n}?", "a": label and label(n)}
        for n in range(rows)
    ]
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def own_config(folder, label_column="a", **changes):
    files = {f"{p.stem}_file": p.name for p in folder.glob("t*.jsonl")}
    files |= {f"{p.stem}_file": p.name for p in folder.glob("validation.jsonl")}
    columns = ColumnConfig(
        id_column="uid", input_template="{q}", label_column=label_column, **files
    )
    return DataConfig(dataset="jsonl", data_dir=str(folder), columns=columns, **changes)


def rationales(folder, rows=40, split="train"):
    path = folder / f"why_{split}.jsonl"
    lines = [{"id": f"{split}{n}", "rationale": f"r{n}", "label": f"L{n}"} for n in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"file:{path}"


@pytest.mark.parametrize("fraction", [1.0, 0.125])
@pytest.mark.parametrize(
    ("dataset", "train_split", "units"),
    [
        ("cqa", "train", ("train", "train", "test")),
        ("anli", "validation", ("validation", "validation", "test")),
        ("svamp", "train", ("train", "train", "test")),
        ("demo", "train", ("train", "validation", "test")),
    ],
)
def test_the_rows_asked_are_those_trained_and_scored_on(
    shared, dataset, train_split, units, fraction
):
    data = DataConfig(
        dataset=dataset,
        data_dir=str(shared / "data"),
        train_split=train_split,
        rationales="none",
        fraction=fraction,
        data_seed=3,
    )
    seen = {}
    for split, unit in zip(("train", "validation", "test"), units, strict=True):
        pairs, _ = load_pairs(data, split)
        annotated = inputs.load(data, (split,), "")
        assert list(annotated) == [unit]
        assert ids(annotated[unit]) == ids(pairs)
        seen[unit] = [*seen.get(unit, []), *ids(pairs)]
    together = inputs.load(data, ("train", "validation", "test"), "")
    assert {unit: sorted(ids(rows)) for unit, rows in together.items()} == {
        unit: sorted(rows) for unit, rows in seen.items()
    }


def test_rows_that_are_scored_are_known_and_take_no_hinted_rationale(tmp_path):
    own(tmp_path, label=lambda n: f"L{n}")
    own(tmp_path, 8, lambda n: f"L{n}", "test")
    config = own_config(tmp_path, rationales=rationales(tmp_path))
    carved = {pair.id for pair in load_pairs(config, "validation")[0]}
    assert 0 < len(carved) < 40
    result = inputs.evaluated(config, ("train", "test"))
    assert result == {"train": carved, "test": {f"test{n}" for n in range(8)}}
    own(tmp_path, 6, lambda n: f"L{n}", "validation")
    assert inputs.evaluated(own_config(tmp_path), ("train",)) == {}
    (tmp_path / "validation.jsonl").unlink()
    # A file of the training split's rows has the carved ones too: hinted ones are refused.
    path = tmp_path / "why_train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for which, is_refused in ((carved, True), ({line["id"] for line in lines} - carved, False)):
        marked = [{**line, "hinted": line["id"] in which} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in marked))
        assert len(load_pairs(config, "train")[0]) == 40 - len(carved)
        if is_refused:
            with pytest.raises(InputError, match=r"why_train\.jsonl:\d+: .*with its gold label"):
                load_pairs(config, "validation")
        else:
            assert len(load_pairs(config, "validation")[0]) == len(carved)


def test_a_carved_validation_joins_its_file_in_the_files_order(tmp_path):
    own(tmp_path, label=lambda n: f"L{n}")
    together = inputs.load(own_config(tmp_path), ("validation", "train"), "")
    assert ids(together["train"]) == [f"train{n}" for n in range(40)]


def test_the_fraction_counts_inputs_that_augment_adds_as_training_does(shared, tmp_path):
    lines = [{"id": n, "input": f"problem {n}", "label": "1 + 1"} for n in range(600)]
    added = tmp_path / "added.jsonl"
    added.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(
        dataset="svamp",
        data_dir=str(shared / "data"),
        fraction=0.3,
        rationales="teacher",
        augment=f"file:{added}",
    )
    annotated = inputs.load(data, ("train",), "")["train"]
    kept = [pair.id for pair in load_pairs(data, "train")[0] if not pair.id.startswith(ADDED)]
    assert kept == ids(annotated)
    alone = inputs.load(dataclasses.replace(data, augment=""), ("train",), "")["train"]
    assert ids(annotated) != ids(alone)


def test_asdiv_is_asked_without_what_is_in_an_evaluation_split(shared):
    data = DataConfig(dataset="svamp", data_dir=str(shared / "data"))
    units = inputs.load(data, (), "asdiv")
    assert list(units) == ["inputs"]
    rows = units["inputs"]
    scored = [*load_pairs(data, "test")[0], *load_pairs(data, "validation")[0]]
    held_out = {content_key(pair.input) for pair in scored}
    assert not held_out & {content_key(row.input) for row in rows}
    assert len(rows) == 2305
    with pytest.raises(InputError, match="ASDiv's problems belong to svamp"):
        inputs.load(DataConfig(dataset="demo"), (), "asdiv")


def test_own_inputs_are_read_by_line_and_need_what_the_data_sets_rows_have(shared, tmp_path):
    path = tmp_path / "more.jsonl"
    row = {"id": 7, "input": " Where?\nAnswer Choices:\n(a) x\n(b) y ", "choices": ["x", "y"]}
    path.write_text(json.dumps(row) + "\n")
    data = DataConfig(dataset="cqa", data_dir=str(shared / "data"))
    (example,) = inputs.load(data, (), f"file:{path}")["inputs"]
    assert (example.id, example.label, example.choices) == ("7", None, ("x", "y"))
    assert example.input == row["input"].strip()
    del row["choices"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"more.jsonl:1: no 'choices', which every example"):
        inputs.load(data, (), f"file:{path}")
    with pytest.raises(InputError, match="EXTRACT_INPUTS is 'file:/no', but /no does not exist"):
        inputs.load(data, (), "file:/no")
    with pytest.raises(InputError, match="EXTRACT_INPUTS is 'svamp' but DATASET is 'cqa'"):
        inputs.load(data, (), "svamp")


def test_inputs_without_their_text_are_told_how_rows_of_the_data_become_one(tmp_path):
    own(tmp_path, label=lambda n: f"L{n}")
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": 1, "q": "Why?"}\n')
    message = r"more.jsonl:1: no key 'input', got 'id', 'q'. .* as INPUT_TEMPLATE '\{q\}' would"
    with pytest.raises(InputError, match=message):
        inputs.load(own_config(tmp_path), (), f"file:{more}")


def test_inputs_that_are_all_scored_rows_leave_nothing_to_ask(tmp_path):
    own(tmp_path, label=lambda n: f"L{n}")
    own(tmp_path, rows=2, label=lambda n: f"L{n}", split="test")
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": 1, "input": "Test  question 1?"}\n')
    with pytest.raises(InputError, match=r"no example to annotate in 'inputs'"):
        inputs.load(own_config(tmp_path), (), f"file:{more}")


@pytest.mark.parametrize("label_column", ["", "a"])
def test_a_student_trains_on_teacher_labels_where_there_are_no_gold_ones(tmp_path, label_column):
    own(tmp_path)
    own(tmp_path, rows=4, label=lambda n: f"L{n}", split="validation")
    data = own_config(
        tmp_path, label_column, labels="teacher", rationales=rationales(tmp_path), fraction=0.5
    )
    annotated = inputs.load(data, ("train",), "")["train"]
    assert [row.label for row in annotated] == [None] * 20
    pairs, report = load_pairs(data, "train")
    assert ids(pairs) == ids(annotated)
    for pair in pairs:
        number = pair.id.removeprefix("train")
        assert (pair.label, pair.gold, pair.rationale) == (f"L{number}", None, f"r{number}")
        assert (pair.label_weight, pair.rationale_weight) == (1.0, 1.0)
    assert report.rows == report.kept + sum(report.dropped.values())
    if label_column:
        assert [pair.gold for pair in load_pairs(data, "validation")[0]] == ["L0", "L1", "L2", "L3"]


def test_rationales_that_a_teacher_is_to_write_need_no_column_of_the_rows(tmp_path):
    """Asked with the run file as it is, then trained on from a file, or on labels alone."""
    own(tmp_path, label=lambda n: f"L{n}")
    data = own_config(tmp_path)
    data = dataclasses.replace(
        data, columns=dataclasses.replace(data.columns, rationale_column="why")
    )
    annotated = inputs.load(data, ("train",), "")["train"]
    written = dataclasses.replace(data, rationales=rationales(tmp_path))
    pairs, _ = load_pairs(written, "train")
    assert ids(pairs) == ids(annotated)
    assert all(pair.rationale == pair.id.replace("train", "r") for pair in pairs)
    assert len(load_pairs(written, "validation")[0]) == 4
    none, _ = load_pairs(dataclasses.replace(data, rationales="none"), "train")
    assert ids(none) == ids(annotated)
    with pytest.raises(
        InputError, match=r"no column 'why', .*RATIONALES='none', or RATIONALES='file:"
    ):
        load_pairs(data, "train")


@pytest.mark.parametrize(
    ("split", "label_column", "message"),
    [
        (
            "train",
            "",
            r"train.jsonl:1: no gold label \(LABEL_COLUMN is ''; 40 of 40 rows have none\), but "
            r"LABELS is 'gold'. Set LABEL_COLUMN .*LABELS='teacher' with RATIONALES='file:PATH'",
        ),
        (
            "validation",
            "a",
            r"\.jsonl:\d+: no gold label .*4 of 4 rows have none\), but validation is scored by "
            r"it. Add the label, or set VALIDATION_FILE to a file with labels",
        ),
        (
            "test",
            "",
            r"test.jsonl:1: no gold label \(LABEL_COLUMN is ''; 3 of 3 rows have none\), but test "
            r"is scored by it. Set LABEL_COLUMN to the column that holds it \(null in a row "
            r"without one\)",
        ),
    ],
)
def test_what_gold_labels_are_needed_for_is_said(tmp_path, split, label_column, message):
    own(tmp_path)
    own(tmp_path, rows=3, split="test")
    with pytest.raises(InputError, match=message):
        load_pairs(own_config(tmp_path, label_column, rationales="none"), split)


def test_rows_to_score_without_a_gold_label_can_be_skipped_and_are_counted(tmp_path):
    own(tmp_path)
    own(tmp_path, rows=6, split="test", label=lambda n: f"L{n}" if n % 2 else None)
    data = own_config(tmp_path, rationales="none")
    with pytest.raises(InputError, match=r"test.jsonl:1: no gold label .*3 of 6 rows have none"):
        load_pairs(data, "test")
    pairs, report = load_pairs(own_config(tmp_path, rationales="none", skip_bad_rows=True), "test")
    assert ids(pairs) == ["test1", "test3", "test5"]
    assert report.dropped == {"no gold label": 3}
    assert report.rows == report.kept + 3
