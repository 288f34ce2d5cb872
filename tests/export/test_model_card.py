"""How a student of each method is said to be prompted."""

import pytest

from stepdistill_jax.export.model_card import Student, model_card
from stepdistill_jax.run.results import RunFacts
from stepdistill_jax.spec import METHOD_STREAMS, SEPARATOR


def card(method, **settings):
    facts = RunFacts("cqa", method, "teacher", "teacher", 1.0, 0, "t5_1_1_base")
    student = Student(
        facts=facts,
        step=100,
        initial=None,
        parameters=7,
        prefixes=["predict: "],
        max_input_length=64,
        max_label_length=8,
        **{"alpha": None, **settings},
    )
    return model_card(student, [])


@pytest.mark.parametrize("method", [m for m, streams in METHOD_STREAMS.items() if streams])
def test_every_trained_method_is_named(method):
    assert "| labels trained on | teacher |" in card(method)


def test_a_student_that_writes_a_rationale_first_says_where_its_label_is():
    text = card("single_task", marker="So the answer is", example=("why ?", "so"))
    assert "a rationale, `So the answer is` and the label" in text
    assert ".rpartition('So the answer is')[2].strip())  # so" in text
    assert "So the answer is" not in card("standard")


@pytest.mark.parametrize("method", ["rationale_as_input", "pinto"])
def test_a_reader_says_that_it_needs_the_teacher(method):
    text = card(method)
    assert "needs the teacher for every input" in text
    assert f"`{SEPARATOR}` and the teacher's rationale after it" in text
    assert f"your input here{SEPARATOR}the teacher's rationale here" in text


def test_a_weight_that_moves_is_told_at_both_ends():
    assert "weight 0.8 at the first step, 0.2 at the last" in card(
        "pinto", alpha=0.8, alpha_end=0.2
    )
    assert "at the first step" not in card("pinto", alpha=0.8)
    assert "weight" not in card("standard", alpha_end=0.2)
