"""Which rationales a triage holds back, what they weigh, and that every row is accounted for."""

import dataclasses
import json

import pytest

from stepdistill_jax.data import triage
from stepdistill_jax.data.join import ColumnConfig, DataConfig, load_pairs, source_fingerprint
from stepdistill_jax.data.survey import survey_pairs
from stepdistill_jax.data.triage import Tally, Verdict, caught, yields
from stepdistill_jax.spec import InputError

ALL = triage.FILTERS

# id -> (gold label, teacher's rationale, teacher's label); None: no line in the teacher's file.
ROWS = {
    "right": ("yes", "It holds.", "yes"),
    "also right": ("no", "It fails.", "no"),
    "wrong": ("no", "It holds too.", "yes"),
    "empty": ("yes", "...", "yes"),
    "states gold": ("no", "So it is no.", "no"),
    "states its own": ("no", "So it is yes.", "yes"),
    "unlabelled": ("yes", "It may hold.", None),
    "no line": ("no", None, None),
}


@pytest.fixture
def own(tmp_path):
    """A data set of one's own, whose teacher wrote `ROWS`."""
    rows = [{"id": name, "input": f"Text of {name}", "label": row[0]} for name, row in ROWS.items()]
    lines = [
        {"id": name, "rationale": text, **({"label": label} if label else {})}
        for name, (_, text, label) in ROWS.items()
        if text
    ]
    held_out = [{"id": "v", "input": "Held out", "label": "no"}]
    for name, content in (("train", rows), ("teacher", lines), ("held_out", held_out)):
        text = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return DataConfig(
        "jsonl",
        data_dir=str(tmp_path),
        rationales=f"file:{tmp_path / 'teacher.jsonl'}",
        columns=ColumnConfig(
            train_file="train.jsonl",
            validation_file="held_out.jsonl",
            test_file="held_out.jsonl",
            id_column="id",
            label_set=("yes", "no"),
        ),
    )


def load(config, **changes):
    pairs, report = load_pairs(dataclasses.replace(config, **changes), "train")
    assert report.rows == report.kept + report.skipped + sum(report.dropped.values())
    return {pair.id: pair for pair in pairs}, report


@pytest.mark.parametrize(
    ("filters", "held_back"),
    [
        ((), set()),
        (("wrong",), {"wrong", "states its own", "unlabelled"}),
        (("empty",), {"empty"}),
        (("states_label",), {"states gold"}),
        (ALL, {"wrong", "states its own", "unlabelled", "empty", "states gold"}),
    ],
)
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_with_gold_labels_a_rationale_is_dropped_or_weighs_less(own, filters, held_back, weight):
    pairs, report = load(own, triage=filters, triage_weight=weight if filters else 0.0)
    assert set(pairs) == set(ROWS)
    for name, (gold, text, _) in ROWS.items():
        pair = pairs[name]
        assert (pair.label, pair.gold, pair.label_weight) == (gold, gold, 1.0)
        if name in held_back:
            assert (pair.rationale, pair.rationale_weight) == (text if weight else None, weight)
        else:
            assert (pair.rationale, pair.rationale_weight) == (text, 1.0 if text else 0.0)
    if filters:
        assert report.triage["triage: looked at"] == 7
        assert report.triage["triage: pass all"] == 7 - len(held_back)
    assert report.no_rationale.get("dropped by TRIAGE", 0) == (0 if weight else len(held_back))


def test_with_teacher_labels_a_wrong_one_is_held_back_with_its_rationale(own):
    usable = {name for name, row in ROWS.items() if row[2]}
    wrong = {"wrong", "states its own"}
    pairs, report = load(own, labels="teacher", triage=("wrong",))
    assert set(pairs) == usable - wrong
    assert report.dropped == {"no teacher label: no output": 2, "TRIAGE leaves nothing": 2}
    pairs, _ = load(own, labels="teacher", triage=("wrong",), triage_weight=0.5)
    assert set(pairs) == usable
    for name, pair in pairs.items():
        weight = 0.5 if name in wrong else 1.0
        assert (pair.label_weight, pair.rationale_weight) == (weight, weight)
    # The label that is trained on is the teacher's, and this rationale states it.
    pairs, _ = load(own, labels="teacher", triage=("states_label",))
    stated = {name for name, pair in pairs.items() if pair.rationale is None}
    assert stated == {"states gold", "states its own"}
    assert all(pair.label_weight == 1.0 for pair in pairs.values())


def test_counts_tell_the_yield_of_each_filter_and_of_all(own):
    _, report = load(own, triage=ALL)
    assert report.triage == {
        "triage: looked at": 7,
        "triage: pass all": 2,
        "triage: wrong": 3,
        "triage: empty": 1,
        "triage: states_label": 1,
    }
    assert report.counts().items() >= report.triage.items()
    lines = {
        "triage: looked at": "7",
        "triage: pass 'wrong'": "4 (57.1%)",
        "triage: pass 'empty'": "6 (85.7%)",
        "triage: pass 'states_label'": "6 (85.7%)",
        "triage: pass all": "2 (28.6%)",
    }
    assert yields(report.triage) == lines
    train, validation, test = survey_pairs(dataclasses.replace(own, triage=ALL), None)
    assert (train.triage, validation.triage, test.triage) == (lines, {}, {})
    assert yields(Tally(()).counts()) == {}
    assert yields(Tally(("wrong",)).counts())["triage: pass all"] == "0"


def test_rows_without_a_gold_label_cannot_be_wrong_and_are_counted():
    arguments = {"rationale": "r", "teacher_label": "a", "gold": None, "target": None}
    assert caught(ALL, "exact", **arguments) == ()
    tally = Tally(("wrong",))
    tally.add(Verdict(judged=True), gold=None)
    assert tally.counts()["triage: no gold label to be wrong by"] == 1


def test_equations_are_judged_by_value():
    arguments = {"teacher_label": "84 / 2", "gold": "( 126.0 / 3.0 )", "target": "( 126.0 / 3.0 )"}
    assert caught(ALL, "equation", rationale="Half of 84.", **arguments) == ()
    assert caught(ALL, "exact", rationale="Half of 84.", **arguments) == ("wrong",)
    stated = caught(ALL, "equation", rationale="It is 126/3 = 42.", **arguments)
    assert stated == ("states_label",)


def test_the_same_rows_are_taken_whatever_the_triage(shared):
    for fraction in (0.125, 0.5):
        settings = DataConfig("svamp", str(shared / "data"), fraction=fraction)
        plain, _ = load(settings)
        for filters in (ALL, ("wrong",)):
            assert set(load(settings, triage=filters)[0]) == set(plain)
            taught, _ = load(settings, triage=filters, labels="teacher")
            assert set(taught) < set(plain)


def test_a_triage_changes_the_fingerprint_of_train_alone(own):
    changed = [
        dataclasses.replace(own, triage=("wrong",)),
        dataclasses.replace(own, triage=("empty",)),
        dataclasses.replace(own, triage=("wrong",), triage_weight=0.5),
    ]
    assert len({source_fingerprint(config, "train") for config in (own, *changed)}) == 4
    for split in ("validation", "test"):
        assert {source_fingerprint(config, split) for config in changed} == {
            source_fingerprint(own, split)
        }


def test_a_shuffled_control_deals_out_what_the_triage_left(shared):
    settings = DataConfig("cqa", str(shared / "data"), triage=("wrong", "states_label"))
    kept, _ = load(settings)
    control, _ = load(settings, rationales="shuffled")
    assert {n for n, pair in kept.items() if pair.rationale} == {
        n for n, pair in control.items() if pair.rationale
    }
    assert sorted(pair.rationale or "" for pair in kept.values()) == sorted(
        pair.rationale or "" for pair in control.values()
    )
    assert sum(kept[n].rationale == control[n].rationale is not None for n in kept) < 20


@pytest.mark.parametrize(
    ("dataset", "split", "looked_at", "passing", "kept"),
    [
        ("cqa", "train", 8767, (6584, 8767, 3664), 1692),
        ("svamp", "train", 710, (535, 710, 304), 156),
        ("esnli", "validation", 8856, (6475, 8856, 8856), 6475),
        ("anli", "validation", 899, (609, 899, 899), 609),
    ],
)
def test_yields_on_the_released_outputs(shared, dataset, split, looked_at, passing, kept):
    data_dir = str(shared / "data")
    settings = DataConfig(dataset, data_dir, train_split=split, triage=ALL)
    pairs, report = load(settings)
    caught_by = {f"triage: {name}": looked_at - n for name, n in zip(ALL, passing, strict=True)}
    assert report.triage == {"triage: looked at": looked_at, "triage: pass all": kept, **caught_by}
    assert sum(pair.rationale is not None for pair in pairs.values()) == kept
    # As many teacher labels are right as rationales pass.
    labelled, _ = load(settings, triage=("wrong",), labels="teacher")
    assert len(labelled) == passing[0]
    assert all(pair.gold is not None for pair in labelled.values())


def test_a_human_rationale_stays_where_the_teachers_label_is_wrong(shared):
    settings = DataConfig(
        "cqa", str(shared / "data"), rationales="human", labels="teacher", triage=("wrong",)
    )
    before, _ = load(dataclasses.replace(settings, triage=()))
    after, report = load(settings)
    assert set(before) == set(after)
    wrong = [name for name, pair in after.items() if pair.label_weight == 0]
    assert len(wrong) == report.triage["triage: wrong"] == 1913
    for name in wrong:
        assert before[name].label != before[name].gold
        assert (after[name].label, after[name].rationale) == ("", before[name].rationale)


def test_teacher_labels_alone_can_be_filtered(shared):
    settings = DataConfig(
        "svamp", str(shared / "data"), rationales="none", labels="teacher", triage=("wrong",)
    )
    pairs, report = load(settings)
    assert report.dropped["TRIAGE leaves nothing"] == 155
    assert len(pairs) == 535


def test_nothing_left_says_so(own):
    lines = [{"id": name, "rationale": "...", "label": "no"} for name in ROWS]
    with open(own.rationale_path, "w") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        InputError, match=r"none of the 8 .* rationale that passes TRIAGE=\('empty',"
    ):
        load(own, triage=("empty",))


def test_labels_that_the_teachers_file_lacks_are_asked_for(own):
    lines = [{"id": name, "rationale": "r"} for name in ROWS]
    with open(own.rationale_path, "w") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"no line has a label, but TRIAGE contains 'wrong'\. Add"):
        load(own, triage=("wrong",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"triage": ("right",)}, r"TRIAGE: got \('right',\), expected some of 'wrong', 'empty'"),
        ({"triage": ("empty", "empty")}, "expected each filter once"),
        (
            {"triage": ALL, "triage_weight": 1.0},
            r"TRIAGE_WEIGHT: got 1.0, expected a number in \[0, 1\)",
        ),
        ({"triage_weight": 0.5}, r"TRIAGE_WEIGHT=0.5 has no effect with TRIAGE=\(\)"),
        (
            {"triage": ("wrong",), "rationales": "human"},
            "LABELS='gold' with RATIONALES='human' reads no teacher's label",
        ),
        (
            {"triage": ("wrong",), "rationales": "none"},
            "LABELS='gold' with RATIONALES='none' reads no teacher's label",
        ),
        (
            {"triage": ("wrong", "empty"), "rationales": "none", "labels": "teacher"},
            "TRIAGE names 'empty', but RATIONALES='none' leaves no rationale to judge",
        ),
        (
            {"dataset": "jsonl", "columns": ColumnConfig(), "triage": ("wrong",)},
            "'wrong', but DATASET='jsonl' has no teacher's labels",
        ),
    ],
)
def test_a_triage_of_nothing_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**{"dataset": "cqa", **changes})
