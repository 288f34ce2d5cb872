"""More inputs for training, from a user's own JSON lines: AUGMENT=file:PATH."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.data.sources.base import REMEDY, Options, collect, field, text
from stepdistill_jax.records import Annotation, Example, read_jsonl
from stepdistill_jax.spec import InputError

# Keeps the file's ids apart from the data set's, which often are row numbers.
ID_PREFIX = "added-"


def read_added(
    path: epath.Path,
    taken: Collection[str],
    label_set: tuple[str, ...],
    needs_choices: bool,
    metric: str,
    skipped: list[str] | None,
) -> tuple[list[Example], dict[str, Annotation]]:
    """Unlabelled inputs, and what the user's teacher says of them.

    A line is ``{"id", "input", "rationale"?, "label"?, "choices"?}``: the input as the data set's
    source would write it, without a task prefix; the label is the teacher's, never a gold one. An
    example's id is that of its line with `ID_PREFIX` before it.

    Args:
        path: the file.
        taken: ids of the data set.
        label_set: the labels of the whole data set; empty where they are free or per row.
        needs_choices: the data set's rows have choices of their own, so a line with a label needs
            them as well.
        metric: ``equation`` wants labels that have a value.
        skipped: as in `Options`.

    Returns:
        Examples without a gold label, and example id -> annotation; a rationale or a label that
        is not given is "".

    Raises:
        InputError: a damaged line, and, unless bad rows are skipped, one that lacks a key, has
            neither rationale nor label, an id of another row, or a label outside its choices.
    """
    found: dict[str, Annotation] = {}

    def parse(where: str, row: Mapping[str, Any]) -> Example:
        row_id = ID_PREFIX + str(field(row, "id", where, (str, int)))
        if row_id in taken:
            raise InputError(f"{where}: id {row_id} is also a row of the data set; {REMEDY}")
        given = {key: _text(row, key, where) for key in ("rationale", "label")}
        if not any(given.values()):
            raise InputError(
                f"{where}: neither 'rationale' nor 'label', found {', '.join(map(repr, row))}: "
                f"nothing to train on; {REMEDY}"
            )
        choices = read_choices(row, label_set, where)
        if given["label"]:
            _check_label(given["label"], choices, needs_choices, metric, where)
        found.setdefault(row_id, Annotation(row_id, given["rationale"], given["label"]))
        input_text = text(row, "input", where).strip()
        return Example(row_id, input_text, label=None, choices=choices, where=where)

    examples = collect(read_jsonl(path), parse, Options(skipped=skipped))
    kept = {example.id for example in examples}
    return examples, {row_id: line for row_id, line in found.items() if row_id in kept}


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text that may lack or be null, and may not be blank."""
    return "" if row.get(key) is None else text(row, key, where).strip()


def read_choices(row: Mapping[str, Any], label_set: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The line's choices; where it has none those of the whole data set.

    Raises:
        InputError: they are no texts, or not the data set's.
    """
    if row.get("choices") is None:
        return label_set
    choices = field(row, "choices", where, list)
    if not choices or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise InputError(f"{where}: 'choices' is {choices!r:.60}, expected texts; {REMEDY}")
    choices = tuple(choice.strip() for choice in choices)
    if label_set and set(choices) != set(label_set):
        raise InputError(
            f"{where}: choices {', '.join(choices)}, but the data set's are "
            f"{', '.join(label_set)}; leave 'choices' out"
        )
    return choices


def _check_label(
    label: str, choices: tuple[str, ...], needs_choices: bool, metric: str, where: str
) -> None:
    if needs_choices and not choices:
        raise InputError(
            f"{where}: label {label!r:.60} without 'choices', which every row of this data set "
            f"has; add them, or take the label out"
        )
    if choices and label not in choices:
        raise InputError(
            f"{where}: label {label!r:.60} is not one of {', '.join(choices)}; {REMEDY}"
        )
    if metric == "equation":
        try:
            evaluate(label)
        except EquationError as error:
            raise InputError(
                f"{where}: label {label!r:.60} has no arithmetic value ({error.reason}); {REMEDY}"
            ) from error
