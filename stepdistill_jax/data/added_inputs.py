"""More inputs for training, from a user's own JSON lines: AUGMENT=file:PATH."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from stepdistill_jax.data.sources.base import (
    REMEDY,
    Options,
    check_equation,
    collect,
    field,
    text,
)
from stepdistill_jax.records import Annotation, Example, read_jsonl
from stepdistill_jax.spec import InputError

# Keeps the file's ids apart from the data set's, which often are row numbers.
ID_PREFIX = "added-"


def read_added(
    path: epath.Path,
    used_ids: Collection[str],
    label_set: tuple[str, ...],
    needs_choices: bool,
    metric: str,
    skipped: list[str] | None,
) -> tuple[list[Example], dict[str, Annotation]]:
    """Unlabelled inputs, and the user's annotations of them.

    A line is ``{"id", "input", "rationale"?, "label"?, "choices"?}``. The input has the format of
    the data set's source, without a task prefix. The label is the teacher's, never a gold one. An
    example's id is that of its line with `ID_PREFIX` before it.

    Args:
        used_ids: those of the data set.
        label_set: the labels of the whole data set; empty where they are free or per example.
        needs_choices: each example of the data set has its own choices, so a line with a label
            needs them too.
        metric: ``equation`` requires labels with a value.
        skipped: as in `Options`.

    Returns:
        Examples without a gold label, and example id -> annotation; a missing rationale or label
        is "".

    Raises:
        InputError: a damaged line, and, unless bad rows are skipped, one that lacks a key, has
            neither rationale nor label, a used id, or a label outside its choices.
    """
    annotations: dict[str, Annotation] = {}

    def parse(where: str, row: Mapping[str, Any]) -> Example:
        key = ID_PREFIX + str(field(row, "id", where, (str, int)))
        if key in used_ids:
            raise InputError(f"{where}: the data set already has an example of id {key}. {REMEDY}")
        rationale, label = (_text(row, name, where) for name in ("rationale", "label"))
        if not rationale and not label:
            raise InputError(
                f"{where}: nothing to train on: got {', '.join(map(repr, row))}, expected "
                f"'rationale' or 'label'. {REMEDY}"
            )
        choices = read_choices(row, label_set, where)
        if label:
            _check_label(label, choices, needs_choices, metric, where)
        annotations.setdefault(key, Annotation(key, rationale, label))
        input_text = text(row, "input", where).strip()
        return Example(key, input_text, label=None, choices=choices, where=where)

    examples = collect(read_jsonl(path), parse, Options(skipped=skipped))
    kept = {example.id for example in examples}
    return examples, {key: line for key, line in annotations.items() if key in kept}


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text that may be missing or null, but not blank."""
    return "" if row.get(key) is None else text(row, key, where).strip()


def read_choices(row: Mapping[str, Any], label_set: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The line's choices; where it has none, those of the whole data set.

    Raises:
        InputError: they are not texts, or not the data set's.
    """
    if row.get("choices") is None:
        return label_set
    choices = field(row, "choices", where, list)
    if not choices or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise InputError(f"{where}: 'choices': got {choices!r:.60}, expected texts. {REMEDY}")
    choices = tuple(choice.strip() for choice in choices)
    if label_set and set(choices) != set(label_set):
        raise InputError(
            f"{where}: got choices {', '.join(choices)}, expected the data set's "
            f"{', '.join(label_set)}. Leave 'choices' out."
        )
    return choices


def _check_label(
    label: str, choices: tuple[str, ...], needs_choices: bool, metric: str, where: str
) -> None:
    if needs_choices and not choices:
        raise InputError(
            f"{where}: label {label!r:.60} without 'choices', which every example of this data "
            f"set has. Add them, or remove the label."
        )
    if choices and label not in choices:
        raise InputError(
            f"{where}: got label {label!r:.60}, expected one of {', '.join(choices)}. {REMEDY}"
        )
    if metric == "equation":
        check_equation(label, where)
