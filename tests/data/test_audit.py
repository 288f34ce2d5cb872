"""The numbers of `launch.prepare` on rows small enough to count by hand."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from stepdistill_jax.data import audit
from stepdistill_jax.data.audit import CommonLabel, Lengths, SplitAudit, TeacherAudit
from stepdistill_jax.records import Annotation, ParseFailure


def test_duplicates_aside_from_case_and_white_space():
    assert audit.duplicates(["A b", "c", "a \n B", "A b", "ab"]) == 2
    assert audit.duplicates([]) == 0


def test_the_commonest_label_is_of_the_rows_that_have_one_and_not_of_free_text():
    assert audit.commonest(["a", "b", None, "b", "b"]) == CommonLabel("b", 0.75)
    assert audit.commonest(["yes"]) == CommonLabel("yes", 1.0)
    assert audit.commonest([None]) is None
    assert audit.commonest(["1 + 2", "3 * 4", "1 + 2"]) is None
    assert audit.commonest([str(n % 101) for n in range(1000)]) is None


def test_overlap_counts_rows_of_the_first_split():
    assert audit.overlap(["x", "X ", "y", "z"], [" x", "z", "z", "w"]) == 3
    assert audit.overlap(["x"], []) == 0


@pytest.mark.parametrize(
    ("rationale", "label", "expected"),
    [
        ("This is neutral.", "neutral", True),
        ("Neutral it is", "neutral", True),
        ("He is neutralised", "neutral", False),
        ("in a  math\nproblem", "math problem", True),
        ("mathproblem", "math problem", False),
        ("A (c++) compiler", "c++", True),
        ("anything", "", False),
    ],
)
def test_states_words(rationale, label, expected):
    assert audit.states(rationale, label, "exact") is expected


@pytest.mark.parametrize(
    ("rationale", "label", "expected"),
    [
        ("So 84 / 2 = 42.", "( 84.0 / 2.0 )", True),
        ("So 84/2.0 = 42.", "( 84.0 / 2.0 )", True),
        ("It is 84 / 2.", "( 84.0 / 2.0 )", True),
        ("So 184 / 2 = 92.", "( 84.0 / 2.0 )", False),
        ("So 84 / 25 is less.", "( 84.0 / 2.0 )", False),
        ("So 84 / 2.5 is less.", "( 84.0 / 2.0 )", False),
        ("So 1.84 / 2 is less.", "( 84.0 / 2.0 )", False),
        ("2 / 84", "( 84.0 / 2.0 )", False),
        ("(1 + 2) * (3 - 4) it is", "( ( 1.0 + 2.0 ) * ( 3.0 - 4.0 ) )", True),
        ("(1 + 2) * (3 - 4) it is", "( 1.0 + 2.0 ) * ( 3.0 - 4.0 )", True),
        ("1 + 2) * (3 - 4 is nonsense", "( 1.0 + 2.0 ) * ( 3.0 - 4.0 )", False),
        ("100 + 20", "( 100.0 + 20.0 )", True),
        ("anything", "", False),
    ],
)
def test_states_equation(rationale, label, expected):
    assert audit.states(rationale, label, "equation") is expected


def test_audit_teacher_counts_failures_as_wrong_and_leaves_out_rows_without_gold():
    result = audit.audit_teacher(
        ["a", "b", "c", "d", None],
        [
            Annotation("0", "r", "a"),
            Annotation("1", "r", "b", repaired=True),
            Annotation("2", "r", "x"),
            ParseFailure("3", "no answer marker", "", "raw"),
            ParseFailure("4", "no answer marker", "", "raw"),
        ],
        ["a", " ", "x", "d", "e"],
        "exact",
    )
    assert result == TeacherAudit(5, 0.5, 0.5, 1, {"no answer marker": 2})


def test_audit_teacher_without_gold_has_no_accuracy():
    result = audit.audit_teacher([None], [Annotation("0", "r", "a")], None, "exact")
    assert (result.release_accuracy, result.accuracy) == (None, None)


def test_lengths_by_nearest_rank():
    # Of 1..200, 50% are at most 100, 95% at most 190, 99% at most 198.
    assert audit.audit_lengths(range(1, 201), 150) == Lengths((100, 190, 198, 200), 150, 50)
    assert audit.audit_lengths([7], 7) == Lengths((7, 7, 7, 7), 7, 0)
    assert audit.audit_lengths([], 7) == Lengths((), 7, 0)


@hypothesis.given(
    strategies.lists(strategies.integers(1, 50), min_size=1), strategies.integers(1, 50)
)
def test_quantile_is_the_least_length_that_so_many_rows_do_not_exceed(lengths, limit):
    result = audit.audit_lengths(lengths, limit)
    for percent, quantile in zip(audit.QUANTILES, result.quantiles, strict=True):
        assert np.mean(np.array(lengths) <= quantile) >= percent / 100
        assert np.mean(np.array(lengths) < quantile) < percent / 100
    assert result.truncated == sum(length > limit for length in lengths)


def test_table_is_aligned_and_says_what_is_missing():
    lengths = {"label_inputs": Lengths((30, 45, 62, 88), 1024, 0)}
    teacher = TeacherAudit(1200, 0.7299, 0.7512, 4, {"no answer marker": 21, "label not in set": 3})
    text = audit.table(
        [
            SplitAudit("esnli", "train", missing=("esnli/esnli_train.json",)),
            SplitAudit(
                "esnli",
                "test",
                differs=("esnli/esnli_test.json",),
                rows=1200,
                commonest=CommonLabel("unknown", 0.84),
                duplicates=2,
                overlaps={"train": 1},
                rationales=1190,
                states_gold=10,
                states_own=20,
                teacher=teacher,
                lengths=lengths,
            ),
            SplitAudit("svamp", "train", rows=800),
        ]
    )
    assert text == "\n".join(
        [
            "esnli                                   train               test",
            "----------------------------------------------------------------",
            "rows                                  missing              1,200",
            "most frequent label                         -    84.0% 'unknown'",
            "teacher outputs                             -              1,200",
            "teacher accuracy, release's rules           -             72.99%",
            "teacher accuracy, after repair              -             75.12%",
            "labels repaired                             -                  4",
            "parse failures                              -                 24",
            "  no answer marker                          -                 21",
            "  label not in set                          -                  3",
            "duplicate inputs                            -                  2",
            "inputs also in train                        -                  1",
            "rationales                                  -              1,190",
            "  that state the gold label                 -                 10",
            "  that state their writer's label           -                 20",
            "label_inputs tokens at 50/95/99/100%        -  30 / 45 / 62 / 88",
            "label_inputs rows over 1,024 tokens         -                  0",
            "  missing from train: esnli/esnli_train.json",
            "  not as released in test: esnli/esnli_test.json",
            "",
            "svamp             train",
            "-----------------------",
            "rows                800",
            "duplicate inputs      0",
        ]
    )


def test_long_lists_of_missing_files_are_cut():
    text = audit.table([SplitAudit("a", "train", missing=("1", "2", "3", "4", "5"))])
    assert text.endswith("missing from train: 1, 2, 3 and 2 more")
