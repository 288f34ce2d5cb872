import dataclasses
import json

import pytest

from stepdistill_jax.records import Annotation, Example, ParseFailure
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import quality
from stepdistill_jax.teacher.vote import Annotated

CHOICES = ("kitchen", "garden", "attic")


def answered(number, label, rationale, *, gold="kitchen", text="where does a cook cook?", **more):
    """A row with a label; the example's fields and those of `Annotated` by name."""
    facts = {"explanation": None, "samples": 1, "agreeing": 1, "hinted": False, "repaired": False}
    facts |= more
    outcome = Annotation(str(number), rationale, label, facts["repaired"])
    example = Example(str(number), text, gold, facts["explanation"], CHOICES, f"x.json:{number}")
    unhinted = facts.get("unhinted", outcome)
    return Annotated(
        example, outcome, facts["samples"], facts["agreeing"], facts["hinted"], unhinted
    )


def failed(number, reason="no answer marker", rationale="", raw="I do not know", gold="kitchen"):
    outcome = ParseFailure(str(number), reason, rationale, raw)
    example = Example(str(number), "where does a cook cook?", gold, None, CHOICES)
    return Annotated(example, outcome, 1, 0, False, outcome)


def test_outcomes_yield_and_accuracy_by_hand():
    rows = [
        answered(1, "kitchen", "A cook works in a kitchen."),
        answered(2, "kitchen", "It is the kitchen.", repaired=True),
        answered(3, "garden", "It is the garden."),
        # A label without a rationale is not usable, but counts for accuracy.
        answered(4, "kitchen", " ... "),
        failed(5),
        failed(6),
        failed(7, "several answers", rationale="Some text before."),
        answered(8, "attic", "No gold label here.", gold=None),
    ]
    found = quality.assess(rows, "exact")
    assert (found.rows, found.usable) == (8, 4)
    assert found.outcomes == {
        "parsed": 4, "no answer marker": 2, "parsed after repair": 1, "several answers": 1,
    }  # fmt: skip
    # Gold: 7 rows, right are 1, 2 and 4; four have a label.
    assert found.accuracy.rows == 7
    assert found.accuracy.share == pytest.approx(3 / 7)
    assert found.accuracy.of_parsed == pytest.approx(3 / 4)
    assert found.accuracy.stderr == pytest.approx((3 / 7 * 4 / 7 / 7) ** 0.5)
    # The failure's own text counts among the rationales.
    assert found.rationales.rows == 5
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


def test_equations_count_by_value():
    row = answered(1, "(84 / 2)", "84 / 2 = 42", gold="( 84.0 / 2.0 )")
    found = quality.assess([dataclasses.replace(row)], "equation")
    assert found.accuracy.share == 1
    assert found.rationales.states_gold == found.rationales.states_label == 1


def test_without_gold_there_is_no_accuracy():
    found = quality.assess([answered(1, "attic", "Up there.", gold=None)], "exact")
    assert found.accuracy is None
    assert found.rationales.states_gold is None


def test_nothing_at_all():
    found = quality.assess([], "exact")
    assert (found.rows, found.accuracy, found.rationales, found.agreement) == (0, None, None, None)
    assert quality.worst([], "exact", {}) == []


def test_accuracy_is_that_of_before_the_hint():
    wrong = Annotation("1", "It is the garden.", "garden")
    hinted = answered(1, "kitchen", "A cook is in the kitchen.", hinted=True, unhinted=wrong)
    unread = answered(
        2, "kitchen", "The cook: kitchen it is.", hinted=True, unhinted=failed(2).outcome
    )
    found = quality.assess([hinted, unread], "exact", hints_asked=5)
    assert found.accuracy.share == 0
    assert found.usable == 2
    assert (found.hints_asked, found.hints_kept) == (5, 2)
    assert found.outcomes == {"no answer marker": 1, "parsed": 1}
    # Nobody need look at a row that the hint mended.
    assert found.suspicions == {}


def test_agreement_of_samples():
    rows = [
        answered(1, "kitchen", "The cook is in the kitchen.", samples=4, agreeing=4),
        answered(2, "kitchen", "A cook will cook in a kitchen.", samples=4, agreeing=1),
        answered(3, "kitchen", "One sample: the cook and kitchen."),
        answered(4, "kitchen", "Kitchen, says the hint to the cook.", samples=4, hinted=True),
    ]
    found = quality.assess(rows, "exact")
    assert found.agreement == quality.Agreement(2, 0.625, 0.5)
    assert found.suspicions == {quality.DIVIDED: 1}


def test_human_agreement_beside_its_chance_level():
    rows = [
        answered(1, "kitchen", "ovens are hot", explanation="ovens are hot"),
        answered(2, "kitchen", "cooks cook food", explanation="cooks cook"),
        answered(3, "kitchen", "nobody explained this", explanation=None),
    ]
    found = quality.assess(rows, "exact").rationales.human
    assert found.rows == 2
    assert found.f1 == pytest.approx((1 + 4 / 5) / 2)
    # The explanations changed places: nothing in common.
    assert found.f1_of_others == 0


@pytest.mark.parametrize(
    ("rationale", "label", "reason"),
    [
        ("the cook is the cook is the cook is the cook is", "kitchen", quality.REPEATS),
        ("where does a cook cook where does a cook cook and so", "kitchen", quality.COPIED),
        ("zebras run over plains", "kitchen", quality.UNRELATED),
        ("a cook stands in the garden", "kitchen", quality.OTHER_CHOICE),
        ("a cook stands in the garden", "garden", quality.WRONG),
        ("cook", "kitchen", quality.SHORT),
        ("...", "kitchen", quality.EMPTY),
    ],
)
def test_each_reason_is_found(rationale, label, reason):
    text = "where does a cook cook where does a cook cook?"
    fine = answered(9, "kitchen", "Every cook has a kitchen.")
    odd = answered(1, label, rationale, text=text)
    lines = quality.worst([fine, odd], "exact", {})
    assert [line["id"] for line in lines] == ["1"]
    assert reason in lines[0]["reasons"]


def test_identical_and_long_rationales_are_found_among_others():
    rows = [answered(n, "kitchen", f"The cook of number {n} has a kitchen.") for n in range(20)]
    rows += [answered(20, "kitchen", "Same  cook."), answered(21, "kitchen", "same cook.")]
    rows += [answered(22, "kitchen", " ".join(f"cook{'abcdefghij'[n % 10]}{n}" for n in range(70)))]
    found = quality.assess(rows, "exact")
    assert found.rationales.identical == 2
    assert found.suspicions[quality.IDENTICAL] == 2
    assert found.suspicions[quality.LONG] == 1
    assert found.rationales.words_least == 2


def test_worst_first_with_all_that_is_needed_to_judge():
    rows = [
        answered(1, "kitchen", "Every cook has a kitchen."),
        answered(2, "garden", "A cook in the garden."),
        failed(
            3, "label not in set", rationale="Perhaps a cook", raw="Perhaps a cook. Answer: pan"
        ),
        answered(4, "garden", "the cook the cook the cook the cook"),
    ]
    lines = quality.worst(rows, "exact", {str(n): f"raw of {n}" for n in range(1, 5)})
    # 4: repeats, wrong; 3: not read; 2: wrong.
    assert [line["id"] for line in lines] == ["4", "3", "2"]
    assert [line["score"] for line in lines] == sorted(line["score"] for line in lines)[::-1]
    assert lines[1] == {
        "id": "3", "reasons": ["not read: label not in set"], "score": 3.0,
        "input": "where does a cook cook?", "gold": "kitchen", "label": None,
        "rationale": "Perhaps a cook", "raw": "raw of 3",
    }  # fmt: skip


def test_the_commonest_reason_does_not_hide_the_others():
    rows = [failed(n) for n in range(100)] + [answered(200, "garden", "A cook in the garden.")]
    lines = quality.worst(rows, "exact", {}, maximum=10)
    assert len(lines) == 10
    assert lines[-1]["reasons"] == [quality.WRONG]


def test_a_gold_label_without_a_value_is_named():
    with pytest.raises(InputError, match=r"gold label 'many': not an arithmetic expression"):
        quality.assess([answered(1, "(1 + 1)", "one and one", gold="many")], "equation")
