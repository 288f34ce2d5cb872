"""What texts lose as tokens of T5's vocabulary, by hand."""

import dataclasses
import json

import pytest

from stepdistill_jax import records
from stepdistill_jax.data import lost_text
from stepdistill_jax.data.config import DataConfig, TokenConfig
from stepdistill_jax.data.lost_text import LostText, Unknown
from stepdistill_jax.data.sources.base import ColumnConfig
from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.spec import InputError

REMEDY = "use another vocabulary, as in --gin_file=models/pretrained/byt5_small.gin."


@pytest.fixture
def count(spiece):
    """Counts inputs, labels, rationales and choices, each "" or () where it is not given."""

    def counted(*rows, metric="exact", vocabulary=str(spiece), **limits):
        texts = [(*row, *("no", None, ())[len(row) - 1 :]) for row in rows]
        tokens = TokenConfig(vocabulary, **limits)
        return lost_text.of_texts(texts, metric, tokens, load_vocabulary(vocabulary))

    return counted


def said(lost, decodes=True):
    return lost_text.warnings(lost, "test", {}, 256, decodes=decodes)


@pytest.mark.parametrize(
    ("label", "decoded"),
    [
        ("10³", "103"),
        ("‹", " ⁇ "),
        ("{", " ⁇ "),
        ("да", "да"),  # T5 knows small Cyrillic letters and Romanian ...
        ("bună", "bună"),
        ("oui, ça va", "oui, ça va"),
        ("smørrebrød", "sm ⁇ rrebr ⁇ d"),  # ... and no Danish
        ("Да", " ⁇ а"),
        ("a\tb", "a b"),
        ("ye\u200bs", "ye s"),
        ("cafe\u0301", "café"),
    ],
)
def test_a_label_that_the_vocabulary_cannot_write_back(count, label, decoded):
    lost = count(("one", label), ("two", "yes"), ("three", label))
    is_changed = label != decoded
    assert lost.changed_labels == 2 * is_changed
    assert lost.changed_sample == ((label, decoded) if is_changed else ())
    assert not count(("one", label), vocabulary="bytes").changed_labels
    of_labels = [text for text in said(lost) if "labels" in text]
    assert of_labels == is_changed * [
        "VOCABULARY changes the labels of 2 of the 3 examples of test, so no prediction can equal "
        f"them: {label!r} decodes to {decoded!r}. Change those labels, or {REMEDY}"
    ]
    # A choice is scored as it is, not as it decodes.
    assert not [text for text in said(lost, decodes=False) if "labels" in text]


@pytest.mark.parametrize("vocabulary", ["bytes", "demo"])
def test_a_separator_ends_a_label_in_every_vocabulary(count, vocabulary):
    lost = count(("one", "</s>no"), vocabulary=vocabulary)
    assert (lost.changed_labels, lost.changed_sample) == (1, ("</s>no", ""))


@pytest.mark.parametrize(("metric", "changed"), [("exact", 1), ("equation", 0)])
def test_white_space_in_equations_is_no_loss(count, metric, changed):
    """T5's vocabulary writes one space for two; an equation is scored by its value."""
    assert count(("a", "3  + 4"), ("b", "7"), metric=metric).changed_labels == changed


def test_labels_that_are_cut_are_counted_with_the_length_that_they_need(count):
    long = "seven long apples in a basket"
    lost = count(("a", long), ("b", "yes"), ("c", long), max_label_length=3)
    needed = lost.longest_label
    assert lost.cut_labels == 2
    assert not count(("a", long), max_label_length=needed).cut_labels
    assert count(("a", long), max_label_length=needed - 1).cut_labels == 1
    assert lost_text.warnings(lost, "train", {}, 3, decodes=True) == [
        "MAX_LABEL_LENGTH=3 cuts the labels of 2 of the 3 examples of train, so no prediction can "
        f"equal them. Set it to at least {needed}."
    ]
    assert "the student never sees their ends" in said(lost, decodes=False)[0]


def test_reviews_that_become_one_token_are_counted_with_their_labels(count):
    lost = count(("我喜欢", "yes"), ("不好", "no"), ("不好", "no"), ("fine", "yes"))
    assert lost.inputs == Unknown(characters=7, texts=3, sample="我喜欢")
    assert (lost.equal_inputs, lost.equal_inputs_other_label) == (3, 3)
    assert lost.equal_sample == ("我喜欢", "不好")
    assert said(lost) == [
        "VOCABULARY lacks 7 characters in the inputs of 3 of the 4 examples of test, such as "
        f"'我喜欢'; each run of them is one unknown token. To keep them, {REMEDY}",
        "3 of the 4 examples of test have the same input tokens as another text, 3 of these also "
        "with another label: '我喜欢' and '不好'. Raise MAX_INPUT_LENGTH if they are cut, or "
        f"{REMEDY}",
    ]
    assert lost.counts() == {
        "unknown characters in inputs": 7,
        "inputs with the tokens of another text": 3,
        "  and also another label": 3,
    }


def test_other_inputs_with_the_same_tokens(count):
    """White space and full-width letters are normalised away; the ends of long inputs are cut."""
    lost = count(("if a:\n  b", "yes"), ("if a: b", "no"), ("ａｂｃ", "no"), ("abc", "no"))
    assert (lost.equal_inputs, lost.equal_inputs_other_label, lost.inputs.texts) == (4, 2, 0)
    assert lost.equal_sample == ("if a:\n  b", "if a: b")
    cut = count(("one two three four", "yes"), ("one two three five", "no"), max_input_length=5)
    assert (cut.equal_inputs, cut.equal_inputs_other_label) == (2, 2)
    start = "one two three four " * 50
    long = count((f"{start}five", "yes"), (f"{start}six", "no"), max_input_length=20)
    assert (long.equal_inputs, long.equal_sample) == (2, (start[:41], start[:41]))
    # The same text again is a duplicate, not a loss.
    assert not count(("one", "yes"), ("one", "no")).equal_inputs


def test_unknown_characters_of_rationales_and_beside_a_separator(count):
    lost = count(("{x}</s>naive ~", "yes", "because of ø"), ("b", "no", "so"))
    assert lost.inputs == Unknown(characters=3, texts=1, sample="{")
    assert lost.rationales == Unknown(characters=1, texts=1, sample="ø")
    # One text in a thousand is said in the table alone.
    many = count(("{", "yes"), *((f"{n}", "no") for n in range(999)))
    assert many.counts() == {"unknown characters in inputs": 1}
    assert said(many) == []


@pytest.mark.parametrize("pair", [("是", "否"), ("{", "}"), ("yes", "yes "), ("10³", "103")])
def test_choices_with_equal_tokens_are_refused(count, pair):
    lost = count(("a", pair[0], None, ("other", *pair)), ("b", "other", None, ("other",)))
    with pytest.raises(InputError) as error:
        lost_text.refuse_equal_choices(lost, "test")
    assert str(error.value) == (
        f"EVAL_MODE='choices': labels {pair[0]!r} and {pair[1]!r} of test have the same tokens, so "
        f"the first would always win. Change one of them, or {REMEDY}"
    )


def test_choices_that_differ_or_repeat_or_belong_to_other_examples_are_fine(count):
    lost = count(("a", "yes", None, ("yes", "no", "yes")), ("b", "x", None, ("是",)))
    lost_text.refuse_equal_choices(lost, "test")
    lost_text.refuse_equal_choices(count(("a", "是", None, ("是", "b")), ("b", "否")), "test")


def test_rows_that_are_left_out_are_said_with_the_labels_that_nothing_has(count):
    choices = ("None", "yes", "no")
    lost = count(("a", "yes", None, choices), ("b", "yes", None, choices))
    assert lost.absent_labels == ("None", "no")
    decisions = {"rows": 7, "skipped": 2, "dropped: no gold label": 3, "dropped: other": 1}
    assert lost_text.warnings(lost, "test", decisions, 256, decodes=True) == [
        "SKIP_BAD_ROWS leaves out 5 of the 7 rows read for test, and none of the rest has the "
        "label 'None', 'no'. Set it to False to see the first of them."
    ]
    assert said(lost) == []
    # Choices of each example are no set of labels for all.
    assert not count(("a", "x", None, ("x", "y")), ("b", "z", None, ("z",))).absent_labels
    whole = count(("a", "no"), ("b", "yes"))
    (text,) = lost_text.warnings(whole, "test", {"rows": 3, "skipped": 1}, 256, decodes=True)
    assert text.startswith("SKIP_BAD_ROWS leaves out 1 of the 3 rows read for test. Set it to")


def test_a_cache_is_counted_once_and_older_ones_at_their_next_opening(
    tmp_path, spiece, monkeypatch
):
    rows = [("不好", "yes", "ø"), ("喜欢", "no", None), ("fine", "{", "so")]
    lines = [json.dumps({"input": i, "label": y, "why": why}) for i, y, why in rows]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    columns = ColumnConfig(test_file="mine.jsonl", rationale_column="why")
    data = DataConfig("jsonl", data_dir=str(tmp_path), columns=columns)
    tokens = TokenConfig(str(spiece), cache_dir=str(tmp_path / "cache"))
    texts = [(*row, ()) for row in rows]
    expected = lost_text.of_texts(texts, "exact", tokens, load_vocabulary(str(spiece)))
    cache = open_or_build(data, tokens, "test")
    assert lost_text.of_cache(cache, data, tokens) == expected
    counted = []
    monkeypatch.setattr(lost_text, "_count", lambda *_: counted.append(1) or LostText(3))
    assert lost_text.of_cache(open_or_build(data, tokens, "test"), data, tokens) == expected
    stored = cache.folder / "lost_text.json"
    for damage in (
        "",
        "{}",
        '{"examples": 3}',
        json.dumps({**dataclasses.asdict(expected), "x": 1}),
    ):
        stored.write_text(damage)
        assert lost_text.of_cache(cache, data, tokens) == LostText(3)
    assert len(counted) == 4
    # A cache of an earlier version has its count of labels in the manifest.
    manifest = cache.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "lost_labels": 1}))
    assert len(open_or_build(data, tokens, "test")) == 3


def test_a_cache_that_may_only_be_read_is_counted_at_every_opening(tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_text('{"input": "a", "label": "b"}\n')
    columns = ColumnConfig(test_file="mine.jsonl")
    data = DataConfig("jsonl", data_dir=str(tmp_path), rationales="none", columns=columns)
    tokens = TokenConfig("bytes", cache_dir=str(tmp_path / "cache"))
    cache = open_or_build(data, tokens, "test")

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(records, "write_atomic", refuse)
    for _ in range(2):
        assert lost_text.of_cache(cache, data, tokens) == LostText(1, longest_label=2)
    assert not (cache.folder / lost_text.LOST_TEXT).exists()
