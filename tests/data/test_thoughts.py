"""Thoughts of reasoning models are no part of a rationale, and never an answer."""

import pytest

from stepdistill_jax.data import parse as parser
from stepdistill_jax.data.parse import parse
from stepdistill_jax.data.thoughts import without_thoughts
from stepdistill_jax.records import Annotation, Example, ParseFailure

ANSWER = "Fish live in water. So the answer is yes."
EXAMPLE = Example(id="1", input="", label="yes", choices=("yes", "no"))
# With a question and an answer of their own, which must not be read.
THOUGHTS = "Q: What is asked?\nA: Hm. So the answer is no.\nOr yes?"

FORMS = {
    "DeepSeek, Qwen": "<think>{}</think>\n\n",
    "opened by the chat template": "{}</think>\n\n",
    "Claude-like": "<thinking>\n{}\n</thinking>",
    "in capitals": "<THINK>{}</THINK>",
    "twice": "<think>a</think> <think>{}</think>",
    "Seed": "<seed:think>{}</seed:think>",
    "Magistral": "[THINK]{}[/THINK]",
    "Kimi": "◁think▷{}◁/think▷",
    "gpt-oss": "<|channel|>analysis<|message|>{}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>",
    "gpt-oss without marks": "analysis{}assistantfinal",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_answer_follows_the_thoughts(form):
    raw = FORMS[form].format(THOUGHTS) + ANSWER
    assert parse("demo", EXAMPLE, raw) == Annotation("1", "Fish live in water.", "yes", False)


@pytest.mark.parametrize("form", FORMS)
def test_an_output_that_ends_within_its_thoughts_has_no_rationale(form):
    opened = FORMS[form].partition("{}")[0]
    if not opened:
        return  # Nothing in it says that these are thoughts.
    raw = opened + THOUGHTS
    assert parse("demo", EXAMPLE, raw) == ParseFailure("1", parser.THINKING, "", raw)
    # The teacher's own `stop` may occur in its thoughts.
    came = parse("demo", EXAMPLE, raw, complete=True)
    assert came == ParseFailure("1", parser.STOPPED, "", raw)


def test_the_end_mark_of_a_channel_is_no_text():
    raw = FORMS["gpt-oss"].format("x") + ANSWER + "<|return|>"
    assert without_thoughts(raw) == ANSWER


@pytest.mark.parametrize(
    "text",
    [ANSWER, "I think < 3 > 2. So the answer is yes.", "An analysis of fish.", "analysis", ""],
)
def test_other_texts_stay_as_they_are(text):
    assert without_thoughts(text) == text


def test_an_empty_block_and_nothing_else_is_no_answer():
    assert without_thoughts("<think></think>") == ""
    assert parse("demo", EXAMPLE, "<think></think>").reason == parser.NO_MARKER
