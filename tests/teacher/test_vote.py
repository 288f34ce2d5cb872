"""Self-consistency: which label and which rationale are kept, by hand."""

import pytest

from stepdistill_jax.records import Annotation, Example, ParseFailure
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import vote

FAILURE = ParseFailure("1", "no answer marker", "", "hm")


def said(label, rationale="because"):
    return Annotation("1", rationale, label)


def test_the_commonest_label_wins():
    kept, agreeing = vote.vote([said("no"), said("yes"), FAILURE, said("yes")], "exact")
    assert (kept.label, agreeing) == ("yes", 2)


def test_a_tie_goes_to_the_label_met_first():
    kept, agreeing = vote.vote([FAILURE, said("b"), said("a"), said("a"), said("b")], "exact")
    assert (kept.label, agreeing) == ("b", 2)


def test_equations_of_one_value_agree():
    samples = [said("(3 + 5)"), said("9"), said("8")]
    assert vote.vote(samples, "equation") == (samples[0], 2)
    assert vote.vote(samples, "exact") == (samples[0], 1)


def test_the_rationale_nearest_to_the_others_that_agree_is_kept():
    samples = [
        said("yes", "dogs bark at cats"),
        said("yes", "the old dog is an animal"),
        said("yes", "a dog is an animal"),
        said("yes", "An animal is a dog."),
        said("no", "a cat is no dog and an animal is a cat"),
    ]
    # Jaccard sums over those that agree: 2 and 3 have the same words, 1 shares four of seven.
    kept, agreeing = vote.vote(samples, "exact")
    assert (kept, agreeing) == (samples[2], 4)


def test_without_a_label_the_first_failure_is_kept():
    other = ParseFailure("1", "several answers", "", "hm")
    assert vote.vote([FAILURE, other], "exact") == (FAILURE, 0)


@pytest.mark.parametrize(
    ("hint", "hinted"),
    [
        (said("yes", "with the label"), True),
        (said("no", "with the label"), False),
        (said("yes", " "), False),
        (FAILURE, False),
        (None, False),
    ],
)
def test_a_hinted_rationale_is_kept_only_where_it_comes_to_the_gold_label(hint, hinted):
    example = Example("1", "is it?", "yes")
    row = vote.annotate(example, [said("no", "own")], hint, "exact")
    assert row.hinted == hinted
    assert row.unhinted == said("no", "own")
    assert row.outcome == (said("yes", "with the label") if hinted else said("no", "own"))


def test_a_hinted_label_is_the_gold_one_as_the_data_writes_it():
    example = Example("1", "3 and 4?", "( 3.0 + 4.0 )")
    row = vote.annotate(example, [said("9")], said("7", "three and four"), "equation")
    assert row.outcome == Annotation("1", "three and four", "( 3.0 + 4.0 )")


def test_nothing_is_right_without_a_gold_label():
    assert not vote.is_right(Example("1", "x", None), said("yes"), "exact")
    with pytest.raises(InputError, match=r"f\.jsonl:3: gold label 'x'"):
        vote.is_right(Example("1", "x", "x", where="f.jsonl:3"), said("1"), "equation")
