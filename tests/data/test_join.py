"""Labels and rationales meet their rows by id, and every row is accounted for."""

import dataclasses
import json
import logging
import shutil
from fractions import Fraction

import pytest
from etils import epath

from stepdistill_jax.data import equation, release
from stepdistill_jax.data.config import DATA_DIR_VARIABLE
from stepdistill_jax.data.join import ColumnConfig, DataConfig, load_pairs, source_fingerprint
from stepdistill_jax.data.sources import SOURCES, Options
from stepdistill_jax.data.subsets import carve_validation, content_key, derange, take_fraction
from stepdistill_jax.records import Example
from stepdistill_jax.spec import InputError

CHOICES = ["park", "beach", "bridge", "depot", "tent"]


def cqa_row(number):
    answer = CHOICES[number % 5]
    return {
        "id": f"row{number}",
        "question": f"Question number {number}?",
        "choices": CHOICES,
        "answer": answer,
        "abstractive_explanation": f"human {number}",
        "extractive_explanation": "",
    }


def cqa_output(number):
    """Right but for every fourth row; unreadable for every tenth."""
    if number % 10 == 9:
        return f"teacher {number}. So the answer is either (a) park or (b) beach.\n\nQ: next"
    place = (number + (number % 4 == 3)) % 5
    return f"teacher {number}. So the answer is ({'abcde'[place]}) {CHOICES[place]}.\n\nQ: next"


def write_cqa(folder, rows=100, outputs=None, split="train"):
    (folder / "cqa" / "llm").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(cqa_row(number)) for number in range(rows)]
    (folder / "cqa" / f"cqa_{split}.json").write_text("\n".join(lines) + "\n")
    outputs = [cqa_output(n) for n in range(rows)] if outputs is None else outputs
    for part in range(0, len(outputs), 40):
        path = folder / "cqa" / "llm" / f"{split}_CoT_{part // 40}.json"
        path.write_text(json.dumps(outputs[part : part + 40]))
    return str(folder)


@pytest.fixture
def cqa(tmp_path):
    return write_cqa(tmp_path)


def config(data_dir, **changes):
    return DataConfig(**{"dataset": "cqa", "data_dir": data_dir, **changes})


def number(pair):
    return int(pair.id.removeprefix("row"))


def balanced(report):
    return report.rows == report.kept + report.skipped + sum(report.dropped.values())


def test_gold_labels_with_teacher_rationales_keep_every_row(cqa):
    pairs, report = load_pairs(config(cqa), "train")
    assert len(pairs) == 90
    for pair in pairs:
        assert pair.label == pair.gold == CHOICES[number(pair) % 5]
        assert pair.rationale == f"teacher {number(pair)}."
        assert (pair.label_weight, pair.rationale_weight) == (1.0, 1.0)
    assert report.dropped == {"carved off for validation": 10}
    assert report.no_rationale == {}
    assert balanced(report)


def test_teacher_labels_drop_the_unusable_and_say_why(cqa):
    pairs, report = load_pairs(config(cqa, labels="teacher"), "train")
    for pair in pairs:
        wrong = number(pair) % 4 == 3
        assert pair.label == CHOICES[(number(pair) + wrong) % 5]
        assert pair.gold == CHOICES[number(pair) % 5]
        assert number(pair) % 10 != 9
    unusable = report.dropped["no teacher label: several answers"]
    assert unusable == report.failures.total() == report.counts()["failed: several answers"] > 0
    assert len(pairs) == 90 - unusable
    assert balanced(report)


def test_validation_is_carved_disjoint_and_scored_on_gold(cqa):
    for labels in ("gold", "teacher"):
        validation, report = load_pairs(config(cqa, labels=labels), "validation")
        assert len(validation) == 10
        assert all(pair.label == pair.gold == CHOICES[number(pair) % 5] for pair in validation)
        assert balanced(report)
    train, _ = load_pairs(config(cqa), "train")
    assert not {pair.id for pair in train} & {pair.id for pair in validation}
    other, _ = load_pairs(config(cqa, data_seed=1), "validation")
    assert {pair.id for pair in other} != {pair.id for pair in validation}


def test_carve_keeps_copies_of_an_input_on_one_side():
    examples = [
        Example(id=str(n), input=f"{'Same  ' if n % 2 else 'same '}text {n // 5}", label="x")
        for n in range(200)
    ]
    train, validation = carve_validation(examples, seed=0)
    assert len(train) + len(validation) == 200
    assert 20 <= len(validation) < 25
    sides = [{content_key(e.input) for e in side} for side in (train, validation)]
    assert not sides[0] & sides[1]
    with pytest.raises(InputError, match="1 different inputs is too small to carve"):
        carve_validation(examples[:5], seed=0)


def test_fractions_are_nested_exact_and_the_same_for_every_method(cqa):
    taken = {}
    for fraction in (0.125, 0.25, 0.5, 1.0):
        pairs, report = load_pairs(config(cqa, fraction=fraction), "train")
        taken[fraction] = {pair.id for pair in pairs}
        assert len(pairs) == round(Fraction(90) * Fraction(fraction))
        assert balanced(report)
        for changes in (
            {"rationales": "none"},
            {"rationales": "human"},
            {"rationales": "shuffled"},
        ):
            same, _ = load_pairs(config(cqa, fraction=fraction, **changes), "train")
            assert {pair.id for pair in same} == taken[fraction]
        teacher, _ = load_pairs(config(cqa, fraction=fraction, labels="teacher"), "train")
        usable = {row_id for row_id in taken[fraction] if int(row_id[3:]) % 10 != 9}
        assert {pair.id for pair in teacher} == usable
    assert taken[0.125] < taken[0.25] < taken[0.5] < taken[1.0]
    other, _ = load_pairs(config(cqa, fraction=0.5, data_seed=1), "train")
    assert {pair.id for pair in other} != taken[0.5]


def test_evaluation_splits_are_never_cut(cqa, tmp_path):
    write_cqa(tmp_path, rows=30, split="test")
    settings = config(cqa, fraction=0.1, labels="teacher")
    assert len(load_pairs(settings, "test")[0]) == 30
    assert len(load_pairs(settings, "validation")[0]) == 10


def test_fraction_does_not_depend_on_the_order_of_the_file():
    examples = [Example(id=str(n), input=f"text {n}", label="x") for n in range(50)]
    forward = take_fraction(examples, 0.3, seed=3)
    backward = take_fraction(examples[::-1], 0.3, seed=3)
    assert forward == backward[::-1]
    assert len(forward) == 15


def test_shuffled_rationales_are_a_seeded_derangement_of_the_same_texts(cqa):
    own = {pair.id: pair for pair in load_pairs(config(cqa), "train")[0]}
    pairs, report = load_pairs(config(cqa, rationales="shuffled"), "train")
    assert sorted(p.rationale for p in pairs) == sorted(p.rationale for p in own.values())
    assert all(pair.rationale != own[pair.id].rationale for pair in pairs)
    assert all(pair.label == own[pair.id].label for pair in pairs)
    assert report.shuffled_same == 0
    assert pairs == load_pairs(config(cqa, rationales="shuffled"), "train")[0]
    assert pairs != load_pairs(config(cqa, rationales="shuffled", data_seed=1), "train")[0]
    with pytest.raises(InputError, match="expected at least two"):
        derange(["a"], seed=0)


def test_human_and_no_rationales(cqa):
    human, _ = load_pairs(config(cqa, rationales="human"), "train")
    assert all(pair.rationale == f"human {number(pair)}" for pair in human)
    none, report = load_pairs(config(cqa, rationales="none"), "train")
    assert all(pair.rationale is None and pair.rationale_weight == 0 for pair in none)
    assert report.no_rationale == {}


def test_an_empty_human_rationale_is_an_error_or_trains_on_the_label(tmp_path):
    data_dir = write_cqa(tmp_path)
    path = tmp_path / "cqa" / "cqa_train.json"
    path.write_text(path.read_text().replace('"human 7"', '" "'))
    message = r"^cqa_train.json:8: no human rationale \(id row7\), but RATIONALES is 'human'. Fix"
    with pytest.raises(InputError, match=message):
        load_pairs(config(data_dir, rationales="human"), "train")
    settings = config(data_dir, rationales="human", skip_bad_rows=True)
    pairs, report = load_pairs(settings, "train")
    (row,) = (pair for pair in pairs if pair.id == "row7")
    assert (row.rationale, row.rationale_weight, row.label_weight) == (None, 0.0, 1.0)
    assert report.no_rationale == {"none given": 1}


def write_rationales(tmp_path, *lines):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"file:{path}"


def test_rationales_from_a_file_join_by_id(cqa, tmp_path):
    lines = [{"id": f"row{n}", "rationale": f"mine {n}"} for n in reversed(range(50))]
    given = write_rationales(tmp_path, *lines)
    pairs, report = load_pairs(config(cqa, rationales=given), "train")
    for pair in pairs:
        assert pair.rationale == (f"mine {number(pair)}" if number(pair) < 50 else None)
    assert report.no_rationale == {"none given": sum(number(pair) >= 50 for pair in pairs)}
    # Without labels in the file, teacher labels come from the release.
    teacher, _ = load_pairs(config(cqa, rationales=given, labels="teacher"), "train")
    assert {number(p) for p in teacher} == {
        number(p) for p in pairs if number(p) < 50 and number(p) % 10 != 9
    }


def test_labels_from_a_file_are_the_teachers(cqa, tmp_path):
    lines = [{"id": f"row{n}", "rationale": "r", "label": "tent"} for n in range(100)]
    given = write_rationales(tmp_path, *lines)
    pairs, _ = load_pairs(config(cqa, rationales=given, labels="teacher"), "train")
    assert len(pairs) == 90
    assert {pair.label for pair in pairs} == {"tent"}
    assert all(pair.gold == CHOICES[number(pair) % 5] for pair in pairs)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "row1", "rationale": " "}, r"^mine.jsonl:2: 'rationale' is empty. Fix the row"),
        ({"id": "row1"}, r"^mine.jsonl:2: no key 'rationale', got 'id'. Fix"),
        ({"id": "row0", "rationale": "x"}, r"^mine.jsonl:2: id row0 occurs a second time"),
        ({"id": "row900", "rationale": "x"}, r"^mine.jsonl:2: id row900 is not in the train"),
        (
            {"id": "row1", "rationale": "x", "label": "sea"},
            r"^mine.jsonl:2: got label 'sea', expected one of park, beach, bridge, depot, tent",
        ),
    ],
)
def test_a_bad_rationale_file_names_the_line(cqa, tmp_path, line, message):
    given = write_rationales(tmp_path, {"id": "row0", "rationale": "fine"}, line)
    with pytest.raises(InputError, match=message):
        load_pairs(config(cqa, rationales=given), "train")


def test_teacher_outputs_one_row_short_name_both_counts_and_the_file(tmp_path):
    data_dir = write_cqa(tmp_path, outputs=[cqa_output(n) for n in range(99)])
    message = (
        r"^train_CoT_2.json: got 19 teacher outputs, expected 20: the split has 99 outputs for "
        r"the 100 rows of cqa_train.json. Fetch the file again"
    )
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=message):
            load_pairs(config(data_dir), split)
    middle = tmp_path / "cqa" / "llm" / "train_CoT_1.json"
    middle.write_text(json.dumps(json.loads(middle.read_text())[1:]))
    with pytest.raises(InputError, match=r"^train_CoT_1.json: got 39 teacher outputs, expected 40"):
        load_pairs(config(data_dir), "train")
    middle.unlink()
    with pytest.raises(
        InputError, match=r"train_CoT_1.json is missing but train_CoT_2.json exists"
    ):
        load_pairs(config(data_dir), "train")


def test_teacher_outputs_are_read_in_numeric_order(tmp_path):
    data_dir = write_cqa(tmp_path, rows=480)
    assert (tmp_path / "cqa" / "llm" / "train_CoT_11.json").exists()
    pairs, _ = load_pairs(config(data_dir), "train")
    assert all(pair.rationale == f"teacher {number(pair)}." for pair in pairs)


def test_damaged_teacher_outputs_are_named(cqa, tmp_path):
    path = tmp_path / "cqa" / "llm" / "train_CoT_1.json"
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(InputError, match=r"CoT_1.json:1: damaged or truncated JSON .* Fetch"):
        load_pairs(config(cqa), "train")
    path.write_text(json.dumps([*json.loads(whole)[:-1], None]))
    with pytest.raises(
        InputError, match=r"^train_CoT_1.json: output 39: got NoneType, expected str"
    ):
        load_pairs(config(cqa), "train")


@pytest.mark.parametrize(
    ("name", "split"), [("esnli", "test"), ("anli", "test"), ("cqa", "test"), ("svamp", "test")]
)
@pytest.mark.parametrize("offset", [1, -1, 2])
def test_shifted_teacher_outputs_are_refused(shared, tmp_path, name, split, offset):
    source = SOURCES[name]
    shutil.copytree(shared / "data" / source.folder, tmp_path / source.folder)
    folder = tmp_path / source.folder / "llm"
    (tmp_path / source.folder / "llm").chmod(0o755)
    paths = sorted(folder.glob(f"{split}_CoT_*.json"))
    outputs = [text for path in paths for text in json.loads(path.read_text())]
    for path in paths:
        path.chmod(0o644)
        path.unlink()
    (folder / f"{split}_CoT_0.json").write_text(json.dumps(outputs[offset:] + outputs[:offset]))
    with pytest.raises(InputError, match=r"data: \d+% of those for .* fit, expected at least 55%"):
        load_pairs(DataConfig(dataset=name, data_dir=str(tmp_path)), split)


def test_rows_skipped_do_not_shift_the_teacher(tmp_path):
    data_dir = write_cqa(tmp_path)
    path = tmp_path / "cqa" / "cqa_train.json"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps({**cqa_row(3), "choices": CHOICES[:4]})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(
        InputError, match=r"cqa_train.json:4: got 4 choices, expected 5 \(id row3\)"
    ):
        load_pairs(config(data_dir), "train")
    pairs, report = load_pairs(config(data_dir, skip_bad_rows=True), "train")
    assert report.skipped == 1
    assert balanced(report)
    assert all(pair.rationale == f"teacher {number(pair)}." for pair in pairs)


def test_own_validation_is_used_and_kept_out_of_train(tmp_path):
    rows = [
        {"text": f"t{n % 60}", "answer": "yes" if n % 2 else "no", "why": f"w{n}"}
        for n in range(80)
    ]
    for name, part in (("a", rows[:70]), ("b", rows[50:55])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    columns = ColumnConfig(
        train_file="a.jsonl",
        validation_file="b.jsonl",
        input_template="{text}",
        label_column="answer",
        rationale_column="why",
        label_set=("yes", "no"),
    )
    settings = DataConfig(dataset="jsonl", data_dir=str(tmp_path), columns=columns)
    validation, _ = load_pairs(settings, "validation")
    assert [pair.input for pair in validation] == ["t50", "t51", "t52", "t53", "t54"]
    train, report = load_pairs(settings, "train")
    assert report.dropped == {"input is in validation": 5}
    assert not {pair.input for pair in train} & {pair.input for pair in validation}
    assert train[0].rationale == "w0"
    with pytest.raises(InputError, match="DATASET 'jsonl' has no split 'test', only train, valida"):
        load_pairs(settings, "test")


def test_training_on_the_validation_file_carves_it(shared):
    settings = DataConfig(
        dataset="esnli", data_dir=str(shared / "data"), train_split="validation", labels="teacher"
    )
    train, report = load_pairs(settings, "train")
    validation, _ = load_pairs(settings, "validation")
    assert (len(train), len(validation)) == (8856, 984)
    assert report.dropped == {
        "carved off for validation": 984,
        "no teacher label: no answer marker": 2,
    }
    inputs = {content_key(pair.input) for pair in train}
    assert not any(content_key(pair.input) in inputs for pair in validation)
    assert len(load_pairs(settings, "test")[0]) == 9824
    with pytest.raises(
        InputError,
        match=r"esnli_train.json: no such file; DATA_DIR has validation and test of",
    ):
        load_pairs(DataConfig(dataset="esnli", data_dir=str(shared / "data")), "train")


def test_asdiv_adds_labelled_problems_or_says_what_to_supply(shared, tmp_path):
    data_dir = str(shared / "data")
    settings = {"dataset": "svamp", "data_dir": data_dir, "augment": "asdiv"}
    with pytest.raises(
        InputError,
        match=r"ASDiv.xml:\d+: nluds-\d+ has neither .* \(for ASDiv asdiv/llm/train_CoT_0",
    ):
        load_pairs(DataConfig(**settings), "train")
    with pytest.raises(InputError, match=r"asdiv/llm/train_CoT_0.json: no such file, but LABELS"):
        load_pairs(DataConfig(**settings, labels="teacher"), "train")
    pairs, report = load_pairs(DataConfig(**settings, skip_bad_rows=True), "train")
    assert len(pairs) == 720 + 1534
    assert report.dropped["neither label nor rationale"] == 771
    assert balanced(report)

    for folder in ("svamp", "asdiv"):
        shutil.copytree(shared / "data" / folder, tmp_path / folder)
    (tmp_path / "asdiv").chmod(0o755)
    (tmp_path / "asdiv" / "llm").mkdir()
    problems = SOURCES["asdiv"].load(epath.Path(data_dir), "train", Options())
    bodies = [problem.input.split("\n")[0] for problem in problems]
    outputs = [f"{body} The answer is (1 + 1).\n\nQ: next" for body in bodies]
    (tmp_path / "asdiv" / "llm" / "train_CoT_0.json").write_text(json.dumps(outputs))
    teacher = DataConfig(**{**settings, "data_dir": str(tmp_path)}, labels="teacher")
    pairs, report = load_pairs(teacher, "train")
    added = [pair for pair in pairs if pair.id.startswith("nluds")]
    assert len(added) == 2305
    assert [pair.rationale for pair in added] == [body.rstrip(",") for body in bodies]
    assert {pair.label for pair in added} == {"(1 + 1)"}


def test_demo_is_its_own_teacher():
    pairs, _ = load_pairs(DataConfig(dataset="demo", labels="teacher", fraction=0.1), "train")
    assert len(pairs) == 200
    assert all(pair.label == pair.gold and pair.rationale for pair in pairs)


def test_missing_teacher_outputs_stop_training_but_not_evaluation(tmp_path):
    data_dir = write_cqa(tmp_path, outputs=[])
    with pytest.raises(
        InputError, match=r"llm/train_CoT_0.json: no such file, but LABELS='gold' and"
    ):
        load_pairs(config(data_dir), "train")
    assert len(load_pairs(config(data_dir), "validation")[0]) == 10
    assert len(load_pairs(config(data_dir, rationales="none"), "train")[0]) == 90


def test_data_dir_from_the_environment(cqa, monkeypatch):
    settings = DataConfig(dataset="cqa")
    monkeypatch.setenv(DATA_DIR_VARIABLE, cqa)
    assert len(load_pairs(settings, "train")[0]) == 90
    with pytest.raises(InputError, match="DATA_DIR='/nowhere/at/all': no such folder"):
        load_pairs(config("/nowhere/at/all"), "train")


def test_without_a_data_dir_the_cached_release_is_read(cqa, monkeypatch):
    wanted = []
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(release, "cached", lambda folders: wanted.append(folders) or cqa)
    assert len(load_pairs(DataConfig(dataset="cqa"), "train")[0]) == 90
    with pytest.raises(InputError, match="svamp"):
        load_pairs(DataConfig(dataset="svamp", augment="asdiv"), "train")
    assert wanted == [["cqa"], ["svamp", "asdiv"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "snli"}, "DATASET: got 'snli', expected one of 'esnli', 'anli', 'cqa'"),
        ({"train_split": "test"}, "TRAIN_SPLIT: got 'test', expected one of 'train', 'validation'"),
        ({"labels": "silver"}, "LABELS: got 'silver', expected one of 'gold', 'teacher'"),
        ({"rationales": "file:"}, "RATIONALES: got 'file:', expected one of .* 'file:PATH'"),
        ({"fraction": 0.0}, r"FRACTION: got 0.0, expected a number in \(0, 1\]"),
        ({"fraction": 12.5}, r"FRACTION: got 12.5, expected a number in \(0, 1\]"),
        ({"augment": "gsm8k"}, "AUGMENT: got 'gsm8k', expected one of '', 'asdiv'"),
        ({"augment": "asdiv"}, "AUGMENT='asdiv' belongs to DATASET='svamp', got DATASET='cqa'"),
        ({"data_seed": -1}, "DATA_SEED: got -1"),
        ({"dataset": "jsonl"}, "DATASET='jsonl' needs columns"),
        (
            {"dataset": "jsonl", "columns": ColumnConfig(), "labels": "teacher"},
            "LABELS='teacher', but DATASET='jsonl' has only the labels of LABEL_COLUMN",
        ),
    ],
)
def test_an_illegal_configuration_cannot_be_built(changes, message):
    with pytest.raises(InputError, match=message):
        config("", **changes)


def test_fingerprint_follows_what_decides_the_pairs(cqa, tmp_path):
    write_cqa(tmp_path, rows=30, split="test")
    base = config(cqa)
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "cqa", moved / "cqa")
    for split in ("train", "validation", "test"):
        assert source_fingerprint(base, split) == source_fingerprint(config(str(moved)), split)
    settings = [
        {},
        {"labels": "teacher"},
        {"fraction": 0.5},
        {"data_seed": 1},
        {"rationales": "none"},
    ]
    assert len({source_fingerprint(config(cqa, **s), "train") for s in settings}) == len(settings)
    # A sweep over labels and fractions shares one cache of each evaluation split.
    for split in ("validation", "test"):
        same = {source_fingerprint(config(cqa, **s), split) for s in settings[:3]}
        assert same == {source_fingerprint(config(cqa, rationales="shuffled"), split)}
    before = {split: source_fingerprint(base, split) for split in ("train", "validation", "test")}
    path = tmp_path / "cqa" / "llm" / "train_CoT_0.json"
    path.write_text(path.read_text().replace("teacher 0.", "teacher 0!"))
    assert source_fingerprint(base, "train") != before["train"]
    assert source_fingerprint(base, "validation") != before["validation"]
    assert source_fingerprint(base, "test") == before["test"]


def test_teacher_outputs_that_no_file_could_hold_again_are_named(cqa, tmp_path):
    path = tmp_path / "cqa" / "llm" / "train_CoT_1.json"
    outputs = json.loads(path.read_text())
    path.write_text(json.dumps([*outputs[:-1], "half \ud83d"]))
    with pytest.raises(InputError, match=r"^train_CoT_1.json: output 39: .* \\ud83d alone"):
        load_pairs(config(cqa), "train")
    path.write_bytes(b'[\n"caf\xe9"]')
    with pytest.raises(InputError, match=r"^train_CoT_1.json:2: byte 0xe9 is not UTF-8. Convert"):
        load_pairs(config(cqa), "train")


@pytest.mark.parametrize("read", [load_pairs, source_fingerprint])
def test_a_rationale_file_that_is_none_is_named(cqa, tmp_path, read):
    for path in (tmp_path / "typo.jsonl", tmp_path):
        with pytest.raises(InputError, match=rf"RATIONALES is 'file:{path}', but .* does not"):
            read(config(cqa, rationales=f"file:{path}"), "train")


def test_rationales_of_skipped_rows_are_passed_over(cqa, tmp_path, caplog):
    path = tmp_path / "cqa" / "cqa_train.json"
    rows = [cqa_row(n) for n in range(100)]
    rows[7]["question"] = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [{"id": f"row{n}", "rationale": f"mine {n}"} for n in range(100)]
    given = write_rationales(tmp_path, *lines)
    with caplog.at_level(logging.WARNING, logger="absl"):
        pairs, report = load_pairs(config(cqa, rationales=given, skip_bad_rows=True), "train")
    assert "skipped 1 rationales of rows that SKIP_BAD_ROWS left out" in caplog.text
    assert all(pair.rationale == f"mine {number(pair)}" for pair in pairs)
    assert report.skipped == 1
    assert balanced(report)
    # More unknown ids than rows left out are about no row at all.
    given = write_rationales(tmp_path, *lines, {"id": "row900", "rationale": "x"})
    with pytest.raises(InputError, match=r"^mine.jsonl:101: id row900 is not in the train"):
        load_pairs(config(cqa, rationales=given, skip_bad_rows=True), "train")


def own(folder, **changes):
    row = {"input": "2 + 2", "label": "4", "why": "Two and two."}
    lines = "".join(json.dumps({**row, "input": f"{n} + 2"}) + "\n" for n in range(20))
    (folder / "mine.jsonl").write_text(lines)
    given = {"train_file": "mine.jsonl", "rationale_column": "why", **changes}
    return DataConfig("jsonl", data_dir=str(folder), columns=ColumnConfig(**given))


@pytest.mark.parametrize("read", [load_pairs, source_fingerprint])
@pytest.mark.parametrize(
    ("split", "changes", "message"),
    [
        (
            "test",
            {},
            "^TEST_FILE is empty: .* no split 'test', only train. Set TEST_FILE, or remove 'test' "
            r"from EVAL_SPLITS\.$",
        ),
        ("train", {"train_file": ""}, "^TRAIN_FILE is empty: .* only none. Set TRAIN_FILE, or"),
        ("train", {"train_file": "."}, r"TRAIN_FILE: .* does not exist. Correct TRAIN_FILE"),
        ("test", {"test_file": "typo"}, r"TEST_FILE: .*typo does not exist"),
    ],
)
def test_files_of_ones_own_are_asked_for_by_their_macros(tmp_path, read, split, changes, message):
    with pytest.raises(InputError, match=message):
        read(own(tmp_path, **changes), split)


def test_a_lacking_validation_file_of_ones_own_is_asked_for_by_its_macro(tmp_path):
    settings = dataclasses.replace(own(tmp_path), train_split="validation")
    with pytest.raises(InputError, match=r"^VALIDATION_FILE is empty: .*. Set VALIDATION_FILE, or"):
        load_pairs(settings, "train")


def test_files_of_ones_own_lie_under_data_dir_or_here_whatever_the_environment_says(
    tmp_path, monkeypatch
):
    settings = own(tmp_path)
    (tmp_path / "release").mkdir()
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "release"))
    monkeypatch.chdir(tmp_path)
    here = dataclasses.replace(settings, data_dir="")
    assert load_pairs(here, "train")[0] == load_pairs(settings, "train")[0]


def test_another_value_of_equations_is_another_fingerprint(cqa, monkeypatch):
    before = source_fingerprint(config(cqa), "train")
    monkeypatch.setattr(equation, "VERSION", equation.VERSION + 1)
    assert source_fingerprint(config(cqa), "train") != before


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_gold_label_that_the_metric_cannot_compare_is_named_when_the_data_is_opened(
    tmp_path, split
):
    for name in ("train", "validation"):
        labels = ["5", "$4,724", *(["15 apples"] if name == split else [])]
        rows = [{"q": f"{name} {n}", "a": label} for n, label in enumerate(labels)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    columns = ColumnConfig(
        train_file="train.jsonl",
        validation_file="validation.jsonl",
        input_template="{q}",
        label_column="a",
        metric="equation",
    )
    config = DataConfig("jsonl", data_dir=str(tmp_path), rationales="none", columns=columns)
    with pytest.raises(
        InputError,
        match=rf"^{split}.jsonl:3: gold label '15 apples': not an arithmetic .* METRIC='exact'\.$",
    ):
        load_pairs(config, split)
    other = {"train": "validation", "validation": "train"}[split]
    assert [pair.gold for pair in load_pairs(config, other)[0]] == ["5", "$4,724"]


def test_fingerprints_stay_so_that_runs_of_earlier_versions_continue(tmp_path, shared):
    """Where the same files give the same pairs; see `join.VERSION` and the others beside it."""
    (tmp_path / "mine.jsonl").write_text('{"input": "a", "label": "b", "why": "so"}\n')
    columns = ColumnConfig(train_file="mine.jsonl", rationale_column="why")
    configs = {
        "cac5372968684ba8": DataConfig("demo"),
        "5137c471d4d59fb0": DataConfig("jsonl", data_dir=str(tmp_path), columns=columns),
        "e8d4a22157c103fe": DataConfig("svamp", data_dir=str(shared / "data")),
    }
    for expected, config in configs.items():
        assert source_fingerprint(config, "train")[:16] == expected
