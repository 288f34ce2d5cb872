"""CommonsenseQA with CoS-E v1.11 explanations: five choices, the label is the answer's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from stepdistill_jax.data.sources.base import (
    REMEDY,
    Options,
    Source,
    field,
    read_examples,
    split_path,
    text,
)
from stepdistill_jax.records import Example
from stepdistill_jax.spec import InputError

FOLDER = "cqa"
LETTERS = "abcde"


def input_text(question: str, choices: Sequence[str]) -> str:
    """``question\\nAnswer Choices:\\n(a) ...\\n(e) ...``, of five choices."""
    lines = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([question, "Answer Choices:", *lines])


def _parse(where: str, row: Any) -> Example:
    row_id = text(row, "id", where)
    shown = f"(id {row_id[:4]}…)" if len(row_id) > 8 else f"(id {row_id})"
    choices = field(row, "choices", where, list)
    if len(choices) != len(LETTERS):
        raise InputError(
            f"{where}: expected {len(LETTERS)} choices, found {len(choices)} {shown}; {REMEDY}"
        )
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise InputError(f"{where}: {choice!r} is no choice {shown}; {REMEDY}")
    answer = text(row, "answer", where)
    if answer not in choices:
        raise InputError(
            f"{where}: answer {answer!r} is not one of the choices {choices} {shown}; {REMEDY}"
        )
    return Example(
        id=row_id,
        input=input_text(text(row, "question", where), choices),
        label=answer.strip(),
        explanation=field(row, "abstractive_explanation", where).strip() or None,
        # Crowd workers wrote some choices twice; the text is the label, so twins are harmless.
        choices=tuple(choice.strip() for choice in choices),
        where=where,
    )


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The rows of one split; `explanation` is the abstractive one."""
    return read_examples(split_path(data_dir, FOLDER, split), _parse, options)


def files(data_dir: epath.Path, split: str, options: Options) -> list[epath.Path]:
    """The one file that `load` reads."""
    return [split_path(data_dir, FOLDER, split)]


SOURCE = Source(
    name="cqa",
    load=load,
    files=files,
    splits=("train", "test"),
    teacher_format="cqa",
    folder=FOLDER,
)
