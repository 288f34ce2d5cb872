"""What opening a split says, in every program that opens one."""

import json

import pytest

from stepdistill_jax.run import load, splits
from stepdistill_jax.spec import InputError


@pytest.fixture
def opened(tmp_path, spiece, caplog):
    """Opens the test split of rows as another program would; returns what is warned of."""

    def open_rows(rows, *overrides):
        lines = [json.dumps({"input": text, "label": label}) for text, label in rows]
        (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
        settings = (
            "DATASET='jsonl'", f"TRAIN_FILE='{tmp_path}/mine.jsonl'",
            f"TEST_FILE='{tmp_path}/mine.jsonl'", "METHOD='standard'", "RATIONALES='none'",
            f"VOCABULARY='{spiece}'", f"CACHE_DIR='{tmp_path}/cache'",
            f"MODEL_DIR='{tmp_path}/run'", *overrides,
        )  # fmt: skip
        config = load.parse(["models/tiny.gin"], settings)
        caplog.clear()
        splits._warn_once.cache_clear()
        splits.open_split(config, "test")
        splits.open_split(config, "test")
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    return open_rows


def test_lost_text_is_said_at_every_opening_and_once_a_program(opened):
    rows = [("不好", "no"), ("喜欢", "yes"), ("fine", "10³")]
    first = opened(rows)
    assert [text.partition(" of the 3 examples of test")[0] for text in first] == [
        "VOCABULARY changes the labels of 1",
        "VOCABULARY lacks 4 characters in the inputs of 2",
        "2",
    ]
    assert opened(rows) == first
    (cut,) = opened([("a", "seven long apples"), ("b", "no")], "MAX_LABEL_LENGTH=3")
    assert cut.startswith("MAX_LABEL_LENGTH=3 cuts the labels of 1 of the 2 examples of test, so")
    assert opened([("a", "yes"), ("b", "no")]) == []


def test_a_class_that_skipped_rows_take_away_is_said(opened):
    rows = [("a", "yes"), ("b", None), ("c", "yes"), ("d", None), ("e", "maybe")]
    expected = [
        "SKIP_BAD_ROWS leaves out 3 of the 5 rows read for test, and none of the rest has the "
        "label 'no'. Set it to False to see the first of them."
    ]
    for _ in range(2):
        assert opened(rows, "SKIP_BAD_ROWS=True", "LABEL_SET=('yes', 'no')") == expected


def test_equal_choices_are_refused_before_anything_is_spent(opened):
    choices = 'LABEL_SET=("是", "否")'
    rows = [("one", "是"), ("two", "否")]
    with pytest.raises(InputError, match="labels '是' and '否' of test have the same tokens, so"):
        opened(rows, choices, "EVAL_MODE='choices'")
    (text,) = opened(rows, choices)
    assert text.startswith("VOCABULARY changes the labels of 2 of the 2 examples of test")
