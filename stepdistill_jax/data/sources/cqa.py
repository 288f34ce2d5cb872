"""CommonsenseQA with CoS-E v1.11 explanations: five choices, the label is the answer's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepdistill_jax.data.sources.base import bad_row, field, released_source, text
from stepdistill_jax.records import Example

LETTERS = "abcde"


def input_text(question: str, choices: Sequence[str]) -> str:
    """``question\\nAnswer Choices:\\n(a) ...\\n(e) ...``, of five choices."""
    lines = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([question, "Answer Choices:", *lines])


def _parse(where: str, row: Any) -> Example:
    example_id = text(row, "id", where)
    shown = f"(id {example_id[:4]}…)" if len(example_id) > 8 else f"(id {example_id})"
    choices = field(row, "choices", where, list)
    if len(choices) != len(LETTERS):
        raise bad_row(where, f"got {len(choices)} choices, expected {len(LETTERS)} {shown}")
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise bad_row(where, f"got choice {choice!r}, expected a text {shown}")
    answer = text(row, "answer", where)
    if answer not in choices:
        raise bad_row(where, f"answer {answer!r} is not one of the choices {choices} {shown}")
    return Example(
        id=example_id,
        input=input_text(text(row, "question", where), choices),
        label=answer.strip(),
        explanation=field(row, "abstractive_explanation", where).strip() or None,
        # Some choices occur twice; the text is the label, so this does no harm.
        choices=tuple(choice.strip() for choice in choices),
        where=where,
    )


SOURCE = released_source("cqa", "cqa", ("train", "test"), _parse)
