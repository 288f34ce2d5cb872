"""e-SNLI and ANLI round 1: two sentences, three numbered labels, human explanations."""

from __future__ import annotations

from typing import Any

from stepdistill_jax.data.sources.base import (
    SPLITS,
    bad_row,
    field,
    released_source,
    row_number,
    text,
)
from stepdistill_jax.records import Example
from stepdistill_jax.spec import SEPARATOR

# Position = the number in the release.
LABELS = ("entailment", "neutral", "contradiction")


def _esnli(where: str, row: Any) -> Example:
    # The release has no ids: the row number is the id, which is also the teacher outputs' order.
    return _example(row, where, row_number(where), "explanation_1")


def _anli(where: str, row: Any) -> Example:
    return _example(row, where, text(row, "uid", where), "reason")


def _example(row: dict[str, Any], where: str, example_id: str, explanation_key: str) -> Example:
    sentences = [text(row, key, where).strip() for key in ("premise", "hypothesis")]
    for sentence in sentences:
        if SEPARATOR in sentence:
            raise bad_row(where, f"a sentence contains the separator {SEPARATOR!r}")
    label = field(row, "label", where, int)
    if not 0 <= label < len(LABELS):
        meaning = ", ".join(f"{number} ({name})" for number, name in enumerate(LABELS))
        raise bad_row(where, f"got label {label}, expected one of {meaning}")
    return Example(
        id=example_id,
        input=SEPARATOR.join(sentences),
        label=LABELS[label],
        explanation=field(row, explanation_key, where).strip() or None,
        choices=LABELS,
        where=where,
    )


ESNLI = released_source("esnli", "esnli", SPLITS, _esnli, labels=LABELS)
ANLI = released_source("anli", "anli1", SPLITS, _anli, labels=LABELS)
