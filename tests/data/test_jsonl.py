import json

import pytest
from etils import epath

from stepdistill_jax.data.sources import SOURCES, ColumnConfig, Options
from stepdistill_jax.data.sources.jsonl import render
from stepdistill_jax.spec import InputError

ROWS = [
    {
        "uid": "a",
        "premise": "It rains.",
        "hypothesis": "It is wet.",
        "gold": 0,
        "why": "Rain wets.",
    },
    {"uid": "b", "premise": "It rains.", "hypothesis": "It is dry.", "gold": 2, "why": None},
]
NLI = ColumnConfig(
    train_file="train.jsonl",
    id_column="uid",
    input_template="{premise}</s>{hypothesis}",
    label_column="gold",
    rationale_column="why",
    label_set=((0, "entailment"), (1, "neutral"), (2, "contradiction")),
)


def write(folder, *lines, name="train.jsonl"):
    path = folder / name
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def load(folder, columns=NLI, split="train", skipped=None):
    options = Options(columns=columns, skipped=skipped)
    return SOURCES["jsonl"].load(epath.Path(folder), split, options)


def changed(**changes):
    return {key: value for key, value in {**ROWS[0], **changes}.items() if value != "DROP"}


def test_rows_become_examples_by_the_columns_named(tmp_path):
    write(tmp_path, *ROWS)
    first, second = load(tmp_path)
    assert (first.id, first.input) == ("a", "It rains.</s>It is wet.")
    assert (first.label, first.explanation) == ("entailment", "Rain wets.")
    assert first.choices == ("entailment", "neutral", "contradiction")
    assert first.where == "train.jsonl:1"
    assert (second.label, second.explanation) == ("contradiction", None)


def test_an_absolute_file_needs_no_data_dir_and_rows_without_ids_are_numbered(tmp_path):
    path = write(tmp_path, {"q": "2 + 2", "a": "4"}, {"q": "{q} {0}", "a": "5"}, name="own.jsonl")
    columns = ColumnConfig(
        test_file=str(path), input_template="Q{{1}}: {q}", label_column="a", metric="equation"
    )
    examples = load("/nowhere", columns, "test")
    assert [e.id for e in examples] == ["0", "1"]
    # Braces in the data are data.
    assert [e.input for e in examples] == ["Q{1}: 2 + 2", "Q{1}: {q} {0}"]
    assert [e.choices for e in examples] == [(), ()]


def test_the_fingerprint_is_over_the_file_read(tmp_path):
    path = write(tmp_path, *ROWS)
    options = Options(columns=NLI)
    assert SOURCES["jsonl"].files(epath.Path(tmp_path), "train", options) == [epath.Path(path)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            changed(hypothesis="DROP", hypotheses="x"),
            r"train.jsonl:2: no column 'hypothesis', got .*; the nearest is 'hypotheses'. "
            "Set INPUT_TEMPLATE",
        ),
        (changed(gold="DROP"), r"train.jsonl:2: no column 'gold', .*. Set LABEL_COLUMN"),
        (changed(why="DROP"), r"train.jsonl:2: no column 'why', .*. Set RATIONALE_COLUMN"),
        (changed(uid="DROP"), r"train.jsonl:2: no column 'uid', .*. Set ID_COLUMN"),
        (changed(gold=3), r"train.jsonl:2: got label 3, expected one of 0, 1, 2. .*LABEL_SET"),
        (
            changed(gold="entailment"),
            r"train.jsonl:2: got label 'entailment', expected one of 0,",
        ),
        (changed(gold=False), r"train.jsonl:2: got label False, expected one of 0, 1, 2"),
        (changed(gold=[0]), r"train.jsonl:2: got label \[0\], expected one of"),
        (changed(premise=" ", hypothesis=""), r"train.jsonl:2: the input is empty: premise, hyp"),
        (changed(premise=7), r"train.jsonl:2: column 'premise': got int 7, expected str"),
        (changed(why=""), r"train.jsonl:2: rationale column 'why' is empty. Write null"),
        (changed(why=["x"]), r"train.jsonl:2: column 'why': got list \['x'\], expected str"),
        (changed(uid=None), r"train.jsonl:2: id column 'uid': got None"),
        (changed(uid="b"), r"train.jsonl:2: id b was already used at train.jsonl:1"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_remedy_and_can_be_skipped(tmp_path, row, message):
    write(tmp_path, ROWS[1], row)
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    skipped = []
    assert [e.id for e in load(tmp_path, skipped=skipped)] == ["b"]
    assert len(skipped) == 1


@pytest.mark.parametrize("why", ["Rain wets.", None, ""])
def test_rationales_that_nothing_reads_may_lack_in_all_rows_and_not_in_some(tmp_path, why):
    bare = [changed(why="DROP", uid=str(number)) for number in range(3)]
    options = Options(columns=NLI, needs_rationales=False)
    write(tmp_path, *bare)
    result = SOURCES["jsonl"].load(epath.Path(tmp_path), "train", options)
    assert [(e.id, e.explanation) for e in result] == [("0", None), ("1", None), ("2", None)]
    with pytest.raises(InputError, match=r"Set RATIONALE_COLUMN, .*'none', or RATIONALES='file:"):
        load(tmp_path)
    # Else SKIP_BAD_ROWS would leave different rows to methods with rationales and without.
    write(tmp_path, *bare, changed(why=why))
    for needed in (True, False):
        skipped = []
        options = Options(columns=NLI, needs_rationales=needed, skipped=skipped)
        result = SOURCES["jsonl"].load(epath.Path(tmp_path), "train", options)
        assert len(result) == 4 - len(skipped) == (0 if why == "" else 1)


def test_a_free_label_must_be_a_text(tmp_path):
    columns = ColumnConfig(train_file="train.jsonl", input_template="{q}", label_column="a")
    write(tmp_path, {"q": "2 + 2", "a": 4})
    with pytest.raises(InputError, match=r"label column 'a': got int 4, expected str.*LABEL_SET"):
        load(tmp_path, columns)
    write(tmp_path, {"q": "2 + 2", "a": "  "})
    with pytest.raises(InputError, match=r"train.jsonl:1: label column 'a' is empty"):
        load(tmp_path, columns)


NAMES = ("false", "true")
PAIRS = ((False, "no"), (True, "yes"))
NUMBERS = ((0, "no"), (1, "yes"))


@pytest.mark.parametrize(
    ("label_set", "raw", "labels"),
    [
        # BoolQ and StrategyQA: "answer": true.
        (NAMES, "false true", ["false", "true"]),
        (("False", "True"), "false true", ["False", "True"]),
        (("no", "yes"), "false true", ["no", "yes"]),
        (("YES", "NO"), "false true", ["NO", "YES"]),
        (PAIRS, "false true", ["no", "yes"]),
        (NUMBERS, "false true", ["no", "yes"]),
        ({True: "wahr", False: "falsch"}, "false true", ["falsch", "wahr"]),
        # pandas writes whole numbers as floats where some are missing.
        (NUMBERS, "0.0 1.0 1 null", ["no", "yes", "yes", None]),
        (PAIRS, "0 1.0", ["no", "yes"]),
        (((-1, "down"), (1, "up")), "-1.0 1e0", ["down", "up"]),
        (((0.5, "half"), (1, "whole")), "0.5 1.0", ["half", "whole"]),
        (("1", "2", "3"), "1 2.0", ["1", "2"]),
        # A text is itself alone.
        ((("1", "one"), (1, "eins")), '"1" 1', ["one", "eins"]),
    ],
)
def test_booleans_and_floats_read_by_the_label_set(tmp_path, label_set, raw, labels):
    columns = ColumnConfig(train_file="train.jsonl", input_template="{q}", label_set=label_set)
    write(tmp_path, *(f'{{"q": "?", "label": {value}}}' for value in raw.split()))
    assert [example.label for example in load(tmp_path, columns)] == labels


@pytest.mark.parametrize(
    ("label_set", "raw", "message"),
    [
        (("entailed", "not"), "true", "got label True, expected one of 'entailed', 'not'. Fix the"),
        (("true", "yes"), "true", "got label True, expected one of 'true', 'yes'"),
        (((0, "a"), (1, "b"), (2, "c")), "true", "got label True, expected one of 0, 1, 2"),
        (NUMBERS, "0.5", "got label 0.5, expected one of 0, 1"),
        (NUMBERS, "1e999", "got label inf, expected"),
        (("nan", "yes"), "NaN", "got label nan, expected one of 'nan', 'yes'"),
        (NAMES, '"True"', "got label 'True', expected one of 'false', 'true'"),
        (PAIRS, '"true"', "got label 'true', expected one of False, True"),
        (
            (),
            "true",
            r"got bool True, expected str.*LABEL_SET=\(\(False, 'no'\), \(True, 'yes'\)\)\.",
        ),
        ((), "1.0", r"got float 1.0, expected str.*LABEL_SET=\(\(0, 'no'\), \(1, 'yes'\)\)\."),
    ],
)
def test_other_values_are_refused_with_what_is_allowed(tmp_path, label_set, raw, message):
    columns = ColumnConfig(train_file="train.jsonl", input_template="{q}", label_set=label_set)
    write(tmp_path, f'{{"q": "?", "label": {raw}}}')
    with pytest.raises(InputError, match=f"^train.jsonl:1: .*{message}"):
        load(tmp_path, columns)


def test_a_line_cut_short_is_an_error_even_when_bad_rows_are_skipped(tmp_path):
    write(tmp_path, ROWS[0], '{"uid": "b", "premi')
    with pytest.raises(
        InputError, match=r"train.jsonl:2: not a JSON object .*\. Fix or remove the line\.$"
    ):
        load(tmp_path, skipped=[])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path)


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{a", "no field"])
def test_a_template_reaches_nothing_but_columns(template):
    with pytest.raises(InputError, match="INPUT_TEMPLATE"):
        ColumnConfig(input_template=template)


def test_rendering_takes_any_column_name_literally():
    assert render("{0}|{my col}|{a-b}", {"0": "x", "my col": "y", "a-b": "z"}) == "x|y|z"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set as the hub keeps it: a folder of parquet files, with a class-label column."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": ["one", "two"], "label": [1, 0]}
    folder = tmp_path / "hub" / "mine"
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def hub_columns(hub, **changes):
    given = {
        "hf_name": hub,
        "train_file": "train",
        "input_template": "{text} ?",
        "label_column": "label",
    }
    return ColumnConfig(**{**given, **changes})


def test_a_hugging_face_data_set_reads_by_its_class_names(hub):
    source = SOURCES["hf"]
    options = Options(columns=hub_columns(hub))
    examples = source.load(epath.Path(""), "train", options)
    assert [(e.id, e.input, e.label) for e in examples] == [
        ("0", "one ?", "yes"),
        ("1", "two ?", "no"),
    ]
    assert examples[0].choices == ("no", "yes")
    assert all(path.exists() for path in source.files(epath.Path(""), "train", options))
    assert source.files(epath.Path(""), "train", options)


def test_a_label_set_renames_hugging_face_classes_by_number_or_name(hub):
    for label_set in (((0, "false"), (1, "true")), (("no", "false"), ("yes", "true"))):
        options = Options(columns=hub_columns(hub, label_set=label_set))
        examples = SOURCES["hf"].load(epath.Path(""), "train", options)
        assert [e.label for e in examples] == ["true", "false"]


CSV = "text,label,why,n\nNA,None,so,1\ntwo,null,NA,\nthree,,None,3\nnan,N/A,,4\n"


@pytest.mark.parametrize(("name", "delimiter"), [("train.csv", ","), ("train.tsv", "\t")])
def test_csv_keeps_texts_that_look_missing(hub, tmp_path, name, delimiter):
    """An empty cell is missing; of rationales, which may be missing, also R's NA and the like."""
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / name).write_text(CSV.replace(",", delimiter))
    columns = hub_columns(str(tmp_path / "csv"), input_template="{text}", rationale_column="why")
    options = Options(columns=columns)
    examples = SOURCES["hf"].load(epath.Path(""), "train", options)
    assert [(e.input, e.label, e.explanation) for e in examples] == [
        ("NA", "None", "so"),
        ("two", "null", None),
        ("three", None, None),
        ("nan", "N/A", None),
    ]
    assert all(path.is_file() for path in SOURCES["hf"].files(epath.Path(""), "train", options))


def test_json_lines_through_hugging_face_keep_their_texts(hub, tmp_path):
    (tmp_path / "json").mkdir()
    rows = '{"text": "NA", "label": "None"}\n{"text": "b", "label": null}\n'
    (tmp_path / "json" / "train.jsonl").write_text(rows)
    options = Options(columns=hub_columns(str(tmp_path / "json"), input_template="{text}"))
    examples = SOURCES["hf"].load(epath.Path(""), "train", options)
    assert [(e.input, e.label) for e in examples] == [("NA", "None"), ("b", None)]


def test_hugging_face_errors_name_what_to_set(hub):
    def load_hub(**changes):
        options = Options(columns=hub_columns(hub, **changes))
        return SOURCES["hf"].load(epath.Path(""), "train", options)

    with pytest.raises(InputError, match=r"train:1: no column 'txt', .*nearest is 'text'"):
        load_hub(input_template="{txt}")
    with pytest.raises(InputError, match=r"split 'dev'.* cannot be loaded: .*TRAIN_FILE"):
        load_hub(train_file="dev")
    with pytest.raises(InputError, match="HF_NAME is empty"):
        load_hub(hf_name="")
    with pytest.raises(InputError, match=r"'no-one/nothing' .*cannot be loaded.*HF_HOME"):
        load_hub(hf_name="no-one/nothing")


def test_a_hugging_face_data_set_that_is_a_script_is_refused(tmp_path):
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("raise SystemExit\n")
    options = Options(columns=hub_columns(str(tmp_path / "scripted")))
    with pytest.raises(InputError, match=r"cannot be loaded: .*script.*\. Check HF_NAME"):
        SOURCES["hf"].load(epath.Path(""), "train", options)


@pytest.mark.parametrize("error", [RuntimeError, ImportError])
def test_what_the_library_raises_on_loading_is_told_in_its_words(monkeypatch, error):
    import datasets

    def load_dataset(*_, **__):
        raise error("needs another library\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = Options(columns=hub_columns("mine"))
    with pytest.raises(InputError, match=r"cannot be loaded: needs another library. Check"):
        SOURCES["hf"].load(epath.Path(""), "train", options)


def test_text_that_is_not_utf8_is_named_with_line_and_remedy(tmp_path):
    path = write(tmp_path, ROWS[0])
    whole = json.dumps(changed(uid="b", premise="Caf\u00e9"), ensure_ascii=False)
    path.write_bytes(path.read_bytes() + whole.encode("latin-1"))
    with pytest.raises(InputError, match=r"^train.jsonl:2: byte 0xe9 is not UTF-8. Convert"):
        load(tmp_path)


def test_half_a_character_is_named_and_a_whole_one_is_read(tmp_path):
    write(tmp_path, ROWS[1], changed(premise="\U0001f600"))
    assert load(tmp_path)[1].input.startswith("\U0001f600</s>")
    write(tmp_path, ROWS[1], changed(premise="\ud83d"))
    with pytest.raises(InputError, match=r"^train.jsonl:2: a text contains \\ud83d alone, .*whole"):
        load(tmp_path)
