"""Sizes that the data cannot use are refused or named where a split is opened."""

import json
import re

import pytest

from stepdistill_jax.run import load
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.spec import InputError


def row(split, i):
    return {"q": f"{split} {i}", "a": ("no", "maybe so")[i % 2], "why": "since it is"}


@pytest.fixture
def opened(tmp_path):
    """Opens a split of 20 pairs, whose labels have 3 and 9 bytes with EOS, under more settings."""
    for split in ("train", "validation"):
        lines = "".join(json.dumps(row(split, i)) + "\n" for i in range(20))
        (tmp_path / f"{split}.jsonl").write_text(lines)
    mine = [
        f"TRAIN_FILE='{tmp_path}/train.jsonl'",
        f"VALIDATION_FILE='{tmp_path}/validation.jsonl'",
        *("TEST_FILE=''", "INPUT_TEMPLATE='{q}'", "LABEL_COLUMN=a", "RATIONALE_COLUMN=why"),
        *("LABEL_SET=()", "VOCABULARY=bytes", "INITIAL_CHECKPOINT=None"),
        *("EVAL_SPLITS=('validation',)", f"CACHE_DIR='{tmp_path}'"),
    ]

    def opened(split, *settings):
        return open_split(load.parse(["own_jsonl.gin"], [*mine, *settings]), split)

    return opened


@pytest.mark.parametrize(
    ("split", "macro", "value", "what"),
    [
        ("train", "BATCH_SIZE", 10**9, "there are 20 training pairs"),
        ("validation", "EVAL_BATCH_SIZE", 1025, "there are 20 examples in validation"),
        ("validation", "MAX_DECODE_LENGTH", 10**9, "there are 9 tokens in the longest label"),
    ],
)
def test_a_size_beyond_the_data_is_refused(opened, split, macro, value, what):
    message = f"{macro}: got {value}, expected at most 1024: {what}. Lower {macro}."
    with pytest.raises(InputError, match=re.escape(message)):
        opened(split, f"{macro}={value}")
    # More than there is, within reason, stays allowed: a trial with a handful of rows.
    assert len(opened(split, f"{macro}=1024")) == 20


def test_lengths_that_no_attention_can_hold_are_refused(opened):
    with pytest.raises(InputError, match=r"MAX_RATIONALE_LENGTH: got 1000000000, expected .*65536"):
        opened("train", "MAX_RATIONALE_LENGTH=1000000000")


def test_labels_longer_than_the_decode_are_counted(opened, caplog):
    opened("validation", "MAX_DECODE_LENGTH=8")
    (message,) = [m for m in caplog.messages if "MAX_DECODE" in m]
    assert message == (
        "MAX_DECODE_LENGTH=8: 10 of 20 labels of validation are longer and can never be predicted. "
        "Remove MAX_DECODE_LENGTH."
    )
    caplog.clear()
    opened("validation", "MAX_DECODE_LENGTH=9")
    opened("validation")
    assert not [m for m in caplog.messages if "MAX_DECODE" in m]
