"""SVAMP: arithmetic word problems; the label is an equation, scored by its value."""

from __future__ import annotations

from typing import Any

from etils import epath

from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.data.sources.base import (
    REMEDY,
    Options,
    Source,
    read_examples,
    row_number,
    split_path,
    text,
)
from stepdistill_jax.records import Example
from stepdistill_jax.spec import InputError

FOLDER = "svamp"


def _parse(where: str, row: Any) -> Example:
    label = text(row, "label", where).strip()
    try:
        evaluate(label)
    except EquationError as error:
        raise InputError(
            f"{where}: label {label!r:.60} has no arithmetic value ({error.reason}); {REMEDY}"
        ) from error
    # The release has no ids: the row number is the id, which is also the teacher outputs' order.
    return Example(
        id=row_number(where), input=text(row, "input", where).strip(), label=label, where=where
    )


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The rows of one split."""
    return read_examples(split_path(data_dir, FOLDER, split), _parse, options)


def files(data_dir: epath.Path, split: str, options: Options) -> list[epath.Path]:
    """The one file that `load` reads."""
    return [split_path(data_dir, FOLDER, split)]


SOURCE = Source(
    name="svamp",
    load=load,
    files=files,
    splits=("train", "test"),
    metric="equation",
    teacher_format="svamp",
    folder=FOLDER,
)
