"""e-SNLI: does the hypothesis follow from the premise? With human explanations."""

from __future__ import annotations

from typing import Any

from etils import epath

from stepdistill_jax.data.sources import nli
from stepdistill_jax.data.sources.base import (
    SPLITS,
    Options,
    Source,
    read_examples,
    row_number,
    split_path,
)
from stepdistill_jax.records import Example

FOLDER = "esnli"


def _parse(where: str, row: Any) -> Example:
    # The release has no ids: the row number is the id, which is also the teacher outputs' order.
    return nli.example(row, where, row_number(where), "explanation_1")


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The rows of one split; `explanation` is the first of the human explanations."""
    return read_examples(split_path(data_dir, FOLDER, split), _parse, options)


SOURCE = Source(
    name="esnli",
    load=load,
    files=nli.files(FOLDER),
    splits=SPLITS,
    labels=nli.LABELS,
    teacher_format="esnli",
    folder=FOLDER,
)
