"""How a student of each method is said to be prompted."""

import ast

import pytest

from stepdistill_jax.export.model_card import Student, model_card
from stepdistill_jax.run.results import Result, RunFacts
from stepdistill_jax.spec import METHOD_STREAMS, SEPARATOR


def card(method, results=(), **settings):
    facts = RunFacts("cqa", method, "teacher", "teacher", 1.0, 0, "t5_1_1_base")
    student = Student(
        facts=facts,
        step=100,
        parameters=7,
        prefixes=["predict: "],
        max_input_length=64,
        max_label_length=8,
        **{"alpha": None, "initial": None, **settings},
    )
    return model_card(student, results)


@pytest.mark.parametrize("method", [m for m, streams in METHOD_STREAMS.items() if streams])
def test_every_trained_method_is_named(method):
    assert "| labels trained on | teacher |" in card(method)


def test_a_student_that_writes_a_rationale_first_says_where_its_label_is():
    text = card("single_task", marker="So the answer is", example=("why ?", "so"))
    assert "a rationale, `So the answer is` and the label" in text
    assert ".rpartition('So the answer is')[2].strip())  # 'so'" in text
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


HOSTILE = 'no\nimport os; os.system("x")\n```\n<script>alert(1)</script> | `b` \u202e'


def test_texts_of_the_data_stay_texts():
    # An input, a label and a marker that are Python, fences, HTML and Markdown.
    text = card("single_task", marker=HOSTILE, example=(HOSTILE, HOSTILE), initial=HOSTILE)
    prose, _, rest = text.partition("```python\n")
    code, end, tail = rest.partition("\n```")
    assert (end, tail.strip()) == ("\n```", "")
    statements = ast.parse(code).body
    assert [type(statement).__name__ for statement in statements] == (
        ["ImportFrom"] + ["Assign"] * 6 + ["Expr"]
    )
    text = next(each.value for each in statements[1:-1] if each.targets[0].id == "text")
    assert ast.literal_eval(text.left) + ast.literal_eval(text.right) == "predict: " + HOSTILE
    # The table has one line for each fact, each with its two cells.
    row = next(line for line in prose.splitlines() if line.startswith("| started from"))
    assert row == (
        '| started from | no import os; os.system("x") \\`\\`\\` \\<script>alert(1)\\</script> \\| '
        "\\`b\\` ⟨U+202E⟩ |"
    )
    assert f"a rationale, ```` {HOSTILE[:2]}⟨U+000A⟩import os" in prose


def test_scores_say_how_they_were_made():
    facts = RunFacts("cqa", "standard", "gold", "none", 1.0, 0, "t5_1_1_base")
    ways = [{"LEARNING_RATE": "0.1"}, {"EVAL_MODE": "'choices'"}]
    results = [
        Result(**{**vars(facts), "settings": way}, step=100, split="test", n=4, accuracy=0.5,
               stderr=0.25, selected_on="none")
        for way in ways
    ]  # fmt: skip
    text = card("standard", results=results)
    assert "| test | 50.00% | 25.00% | 4 |  | default |" in text
    assert "| test | 50.00% | 25.00% | 4 |  | eval\\_mode=choices |" in text
