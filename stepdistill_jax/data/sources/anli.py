"""ANLI round 1: adversarial inference over paragraphs. With the annotators' reasons."""

from __future__ import annotations

from typing import Any

from etils import epath

from stepdistill_jax.data.sources import nli
from stepdistill_jax.data.sources.base import (
    SPLITS,
    Options,
    Source,
    read_examples,
    split_path,
    text,
)
from stepdistill_jax.records import Example

FOLDER = "anli1"


def _parse(where: str, row: Any) -> Example:
    return nli.example(row, where, text(row, "uid", where), "reason")


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The rows of one split; `explanation` is the annotator's reason."""
    return read_examples(split_path(data_dir, FOLDER, split), _parse, options)


SOURCE = Source(
    name="anli",
    load=load,
    files=nli.files(FOLDER),
    splits=SPLITS,
    labels=nli.LABELS,
    teacher_format="anli",
    folder=FOLDER,
)
