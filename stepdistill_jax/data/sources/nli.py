"""What e-SNLI and ANLI share: two sentences, three numbered labels, JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etils import epath

from stepdistill_jax.data.sources.base import REMEDY, Options, field, split_path, text
from stepdistill_jax.records import Example
from stepdistill_jax.spec import SEPARATOR, InputError

# Position = the number that the release writes.
LABELS = ("entailment", "neutral", "contradiction")


def example(row: dict[str, Any], where: str, row_id: str, explanation_key: str) -> Example:
    """One row; the texts are kept as released but for white space around them.

    Raises:
        InputError: a key is missing or of another type, a sentence is blank or holds the
            separator, or the label is not 0, 1 or 2.
    """
    sentences = [text(row, key, where).strip() for key in ("premise", "hypothesis")]
    for sentence in sentences:
        if SEPARATOR in sentence:
            raise InputError(f"{where}: a sentence holds {SEPARATOR!r}, our separator; {REMEDY}")
    label = field(row, "label", where, int)
    if not 0 <= label < len(LABELS):
        meaning = ", ".join(f"{number} ({name})" for number, name in enumerate(LABELS))
        raise InputError(f"{where}: label {label} is not one of {meaning}; {REMEDY}")
    return Example(
        id=row_id,
        input=SEPARATOR.join(sentences),
        label=LABELS[label],
        explanation=field(row, explanation_key, where).strip() or None,
        choices=LABELS,
        where=where,
    )


def files(folder: str) -> Callable[[epath.Path, str, Options], list[epath.Path]]:
    """`Source.files` of a release that keeps one JSON-lines file a split in `folder`."""
    return lambda data_dir, split, options: [split_path(data_dir, folder, split)]
