"""Inputs of one's own beside a data set, and a teacher's file for every split."""

import json

import pytest
from etils import epath

from stepdistill_jax.data.added_inputs import read_added
from stepdistill_jax.data.join import ColumnConfig, DataConfig, load_pairs, source_fingerprint
from stepdistill_jax.data.rationale_file import read_rationales
from stepdistill_jax.spec import InputError


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"file:{path}"


@pytest.fixture
def own(tmp_path):
    """A data set of one's own with ids "0", "1", ... in every split."""
    for split in ("train", "validation", "test"):
        rows = [
            {"input": f"{split} {n}", "label": "yes" if n % 2 else "no", "why": f"why {n}"}
            for n in range(4)
        ]
        write(tmp_path / f"{split}.jsonl", *rows)

    def config(**changes):
        columns = {
            "train_file": "train.jsonl",
            "validation_file": "validation.jsonl",
            "test_file": "test.jsonl",
            "rationale_column": "why",
            "label_set": ("yes", "no"),
            **changes.pop("columns", {}),
        }
        return DataConfig(
            "jsonl", data_dir=str(tmp_path), columns=ColumnConfig(**columns), **changes
        )

    return config


def added(pairs):
    return {pair.id: pair for pair in pairs if pair.id.startswith("added-")}


LINES = [
    {"id": 0, "input": "new 0", "rationale": "for 0", "label": "yes"},
    {"id": "1", "input": "new 1", "rationale": "for 1"},
    {"id": 2, "input": "new 2", "label": "no", "rationale": None},
    {"id": 3, "input": "Validation  1", "rationale": "for 3"},
    {"id": 4, "input": "test 2", "rationale": "for 4"},
]


def test_a_damaged_line_of_ones_own_is_to_be_mended(tmp_path):
    path = epath.Path(tmp_path / "why.jsonl")
    path.write_text('{"id": "0", "rationale"\n')
    with pytest.raises(InputError, match=r"why.jsonl:1: not a JSON .*\. Fix or remove the line\.$"):
        read_rationales(path, [], "train")


def test_added_inputs_train_the_rationale_alone_under_gold_labels(own, tmp_path):
    settings = own(augment=write(tmp_path / "more.jsonl", *LINES))
    pairs, report = load_pairs(settings, "train")
    result = added(pairs)
    assert {name: pair.rationale for name, pair in result.items()} == {
        "added-0": "for 0",
        "added-1": "for 1",
    }
    for pair in result.values():
        assert (pair.label, pair.gold, pair.label_weight) == ("", None, 0.0)
        assert pair.choices == ("yes", "no")
    assert [pair.id for pair in pairs[:4]] == ["0", "1", "2", "3"]
    assert report.dropped == {
        "input is in validation": 1,
        "input is in test": 1,
        "added without a rationale": 1,
    }
    assert (report.rows, report.kept) == (9, 6)
    for split in ("validation", "test"):
        assert not added(load_pairs(settings, split)[0])


def test_added_labels_are_the_teachers(own, tmp_path):
    lines = [{"id": n, "rationale": f"so {n}", "label": "no"} for n in range(4)]
    taught = write(tmp_path / "teacher.jsonl", *lines)
    more = write(tmp_path / "more.jsonl", *LINES)
    pairs, report = load_pairs(own(augment=more, rationales=taught, labels="teacher"), "train")
    assert {name: (pair.label, pair.rationale) for name, pair in added(pairs).items()} == {
        "added-0": ("yes", "for 0"),
        "added-2": ("no", None),
    }
    assert report.dropped["no teacher label: no output"] == 1
    assert {pair.gold for pair in added(pairs).values()} == {None}


def test_added_inputs_are_cut_judged_and_shuffled_with_the_rest(shared, tmp_path):
    lines = [
        {
            "id": n,
            "input": f"Sum {n} and {n} .\nHow much ?",
            "rationale": "...",
            "label": f"{n}+{n}",
        }
        for n in range(100)
    ]
    more = write(tmp_path / "more.jsonl", *lines)
    settings = {"dataset": "svamp", "data_dir": str(shared / "data"), "augment": more}
    assert len(added(load_pairs(DataConfig(**settings), "train")[0])) == 100
    half, _ = load_pairs(DataConfig(**settings, fraction=0.5), "train")
    assert 0 < len(added(half)) < 100
    filtered, report = load_pairs(DataConfig(**settings, triage=("wrong", "empty")), "train")
    assert not added(filtered)
    assert report.dropped["TRIAGE leaves nothing"] == report.triage["triage: empty"] == 100
    assert report.triage["triage: no gold label to be wrong by"] == 100
    taught, _ = load_pairs(
        DataConfig(**settings, triage=("wrong",), labels="teacher", rationales="none"), "train"
    )
    assert len(added(taught)) == 100
    shuffled, _ = load_pairs(DataConfig(**settings, rationales="shuffled"), "train")
    assert {pair.rationale for pair in added(shuffled).values()} != {"..."}


def test_asdiv_beside_a_file_of_inputs_reads_the_same_problems(shared, tmp_path):
    settings = {"dataset": "svamp", "data_dir": str(shared / "data")}
    asdiv, _ = load_pairs(DataConfig(**settings, augment="asdiv", skip_bad_rows=True), "train")
    lines = [
        {"id": pair.id, "input": pair.input, "label": pair.label}
        for pair in asdiv
        if pair.id.startswith("nluds")
    ]
    more = write(tmp_path / "more.jsonl", *lines)
    pairs, _ = load_pairs(DataConfig(**settings, augment=more, labels="teacher"), "train")
    assert len(added(pairs)) == len(lines) == 1534


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"id": 1, "input": "x"},
            r"^more.jsonl:2: nothing to train on: got 'id', 'input', expected ",
        ),
        ({"id": 1, "rationale": "x"}, "^more.jsonl:2: no key 'input', got"),
        ({"id": 1, "input": " ", "label": "a"}, "^more.jsonl:2: 'input' is empty"),
        ({"id": 1, "input": "x", "label": " "}, "^more.jsonl:2: 'label' is empty"),
        (
            {"id": 1, "input": "x", "rationale": 3},
            "^more.jsonl:2: 'rationale': got int 3",
        ),
        ({"input": "x", "label": "a"}, "^more.jsonl:2: no key 'id', got"),
        (
            {"id": 0, "input": "x", "label": "a"},
            "^more.jsonl:2: id added-0 was already used at mor",
        ),
        (
            {"id": 8, "input": "x", "label": "a"},
            "^more.jsonl:2: the data set already has an example of id added-8",
        ),
        (
            {"id": 1, "input": "x", "label": "c"},
            "^more.jsonl:2: got label 'c', expected one of a, b",
        ),
        (
            {"id": 1, "input": "x", "label": "a", "choices": ["a", "c"]},
            "^more.jsonl:2: got choices a, c, expected the data set's a, b. Leave 'choices' out",
        ),
        ({"id": 1, "input": "x", "label": "a", "choices": []}, "^more.jsonl:2: 'choices': got"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path, line, message):
    path = tmp_path / "more.jsonl"
    write(path, {"id": 0, "input": "fine", "label": "a"}, line)
    arguments = (path, {"added-8"}, ("a", "b"), False, "exact")
    with pytest.raises(InputError, match=message):
        read_added(*arguments, skipped=None)
    skipped = []
    examples, result = read_added(*arguments, skipped)
    assert [example.id for example in examples] == list(result) == ["added-0"]
    assert result["added-0"].label == "a"
    assert len(skipped) == 1


def test_a_label_is_checked_by_the_rows_own_choices_or_by_its_value(tmp_path):
    path = tmp_path / "more.jsonl"
    line = {"id": 0, "input": "Where ?\nAnswer Choices:\n(a) here\n(b) there", "label": "here"}
    write(path, line)
    with pytest.raises(InputError, match=r"^more.jsonl:1: label 'here' without 'choices', which"):
        read_added(path, (), (), True, "exact", None)
    write(path, {**line, "choices": ["here", "there"]})
    (example,), _ = read_added(path, (), (), True, "exact", None)
    assert example.choices == ("here", "there")
    write(path, {**line, "choices": ["there"]})
    with pytest.raises(InputError, match=r"^more.jsonl:1: got label 'here', expected one of there"):
        read_added(path, (), (), True, "exact", None)
    write(path, line)
    with pytest.raises(InputError, match=r"^more.jsonl:1: label 'here' has no arithmetic value"):
        read_added(path, (), (), False, "equation", None)


def test_what_cannot_be_added_is_refused(own, tmp_path):
    with pytest.raises(InputError, match=r"AUGMENT is 'file:.*gone', but .*gone does not exist"):
        load_pairs(own(augment=f"file:{tmp_path / 'gone'}"), "train")
    with pytest.raises(InputError, match=r"leave nothing of them to train on\. Set AUGMENT=''"):
        own(augment="file:more.jsonl", rationales="none")
    with pytest.raises(InputError, match="AUGMENT: got 'file:', expected one of '', 'asdiv'"):
        own(augment="file:")


def test_the_fingerprint_follows_the_added_files_bytes_in_train_alone(own, tmp_path):
    path = tmp_path / "more.jsonl"
    settings = own(augment=write(path, *LINES))
    before = {split: source_fingerprint(settings, split) for split in ("train", "test")}
    assert before["train"] != source_fingerprint(own(), "train")
    assert before["test"] == source_fingerprint(own(), "test")
    write(path, *LINES[:2])
    assert source_fingerprint(settings, "train") != before["train"]


def test_a_data_set_without_a_test_file_takes_added_inputs(own, tmp_path):
    settings = own(augment=write(tmp_path / "more.jsonl", *LINES), columns={"test_file": ""})
    pairs, report = load_pairs(settings, "train")
    assert "added-4" in added(pairs)
    assert "input is in test" not in report.dropped
    assert source_fingerprint(settings, "train")


def test_a_teachers_file_for_every_split_serves_each(own, tmp_path):
    for split in ("train", "validation", "test"):
        lines = [{"id": n, "rationale": f"{split} says {n}", "label": "no"} for n in range(3)]
        write(tmp_path / f"taught_{split}.jsonl", *lines)
    settings = own(rationales=f"file:{tmp_path}/taught_{{split}}.jsonl")
    for split in ("train", "validation", "test"):
        pairs, _ = load_pairs(settings, split)
        assert [pair.rationale for pair in pairs] == [
            *(f"{split} says {n}" for n in range(3)),
            None,
        ]
        assert [pair.label for pair in pairs] == [pair.gold for pair in pairs]
    before = source_fingerprint(settings, "test")
    write(tmp_path / "taught_test.jsonl", {"id": 7, "rationale": "of nothing"})
    assert source_fingerprint(settings, "test") != before
    with pytest.raises(InputError, match=r"taught_test.jsonl:1: id 7 is not in the test split"):
        load_pairs(settings, "test")
    (tmp_path / "taught_test.jsonl").unlink()
    with pytest.raises(
        InputError, match=r"taught_test.jsonl does not exist. Correct RATIONALES: \{spl"
    ):
        load_pairs(settings, "test")


def test_a_carved_validation_split_reads_the_file_of_the_rows_it_comes_from(own, tmp_path):
    write(tmp_path / "taught_train.jsonl", *({"id": n, "rationale": f"r {n}"} for n in range(4)))
    settings = own(
        rationales=f"file:{tmp_path}/taught_{{split}}.jsonl", columns={"validation_file": ""}
    )
    for split in ("train", "validation"):
        pairs, _ = load_pairs(settings, split)
        assert [pair.rationale for pair in pairs] == [f"r {pair.id}" for pair in pairs]


def test_human_explanations_of_the_release(shared):
    data_dir = str(shared / "data")
    cqa, _ = load_pairs(DataConfig("cqa", data_dir, rationales="human"), "train")
    esnli, _ = load_pairs(
        DataConfig("esnli", data_dir, rationales="human", train_split="validation"), "train"
    )
    anli, _ = load_pairs(
        DataConfig("anli", data_dir, rationales="human", train_split="validation"), "train"
    )
    for pairs, rows, folder, key in (
        (cqa, 8767, "cqa/cqa_train", "abstractive_explanation"),
        (esnli, 8858, "esnli/esnli_valid", "explanation_1"),
        (anli, 900, "anli1/anli1_valid", "reason"),
    ):
        raw = [json.loads(line) for line in (shared / "data" / f"{folder}.json").open()]
        by_id = {str(row.get("id", row.get("uid", n))): row for n, row in enumerate(raw)}
        assert len(pairs) == rows
        assert all(pair.rationale == by_id[pair.id][key].strip() for pair in pairs)
    with pytest.raises(InputError, match=r"^svamp_train.json:\d+: no human rationale \(id \d+\)"):
        load_pairs(DataConfig("svamp", data_dir, rationales="human"), "train")
