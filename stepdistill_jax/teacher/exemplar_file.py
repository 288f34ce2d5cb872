"""Reads a JSON file of exemplars: one shipped for a data set of the release, or a user's.

``{"instruction": ..., "exemplars": [...]}``, the instruction optional. An exemplar of a data set of
the release has ``rationale``, ``label`` and ``premise`` with ``hypothesis``, ``question`` with
``choices``, or ``input``. An exemplar of a user's data set is a row of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from stepdistill_jax.data.config import OWN, DataConfig
from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.data.sources import SOURCES, ColumnConfig, cqa, jsonl
from stepdistill_jax.data.sources.base import REMEDY, field, text
from stepdistill_jax.records import Example, decode_utf8, json_fault, refuse_surrogates
from stepdistill_jax.spec import SEPARATOR, InputError

FOLDER = "exemplars"
_KEYS = ("instruction", "exemplars", "note", "data_seed")
# Keys in the exemplars of a user's data that has no such column.
_LABEL, _RATIONALE = "label", "rationale"


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """An example with a label, and the rationale before it, which is not blank."""

    example: Example
    rationale: str


@dataclasses.dataclass(frozen=True)
class ExemplarFile:
    """The content of a file.

    Attributes:
        source: its name.
        format: of `parse.FORMATS`, by the data set.
        instruction: for the teacher, before the exemplars.
        exemplars: at least one.
    """

    source: str
    format: str
    instruction: str
    exemplars: tuple[Exemplar, ...]


def answer_format(data: DataConfig) -> str:
    """The format, of `parse.FORMATS`, in which a data set's teacher answers."""
    if data.dataset in OWN:
        return "own_equation" if data.metric == "equation" else "own"
    return SOURCES[data.dataset].teacher_format or data.dataset


def read(data: DataConfig, path: str = "") -> ExemplarFile:
    """The exemplars of PROMPT_FILE, or, where `path` is empty, those shipped for DATASET.

    Raises:
        InputError: nothing is shipped, the file is missing, or it is malformed; the message names
            the line or the exemplar.
    """
    format = answer_format(data)
    name, content = _content(data, format, path)
    _check_keys(name, content)
    seed = content.get("data_seed", data.data_seed)
    if seed != data.data_seed:
        raise InputError(
            f"{name}: written for DATA_SEED={seed}, but DATA_SEED={data.data_seed}. Set "
            f"DATA_SEED={seed}, or PROMPT_FILE to a file for your seed."
        )
    rows = enumerate(content["exemplars"], start=1)
    exemplars = [_exemplar(data, row, f"{name}: exemplar {number}") for number, row in rows]
    _check_distinct(name, exemplars)
    instruction = content.get("instruction", "").strip()
    if not instruction and data.dataset in OWN:
        instruction = _default_instruction(data)
    return ExemplarFile(name, format, instruction, tuple(exemplars))


def _content(data: DataConfig, format: str, path: str) -> tuple[str, Any]:
    """(name, JSON value) of the file."""
    if path:
        file = epath.Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"PROMPT_FILE={path!r}: not a file. Correct PROMPT_FILE.")
        raw, name = file.read_bytes(), file.name
    elif data.dataset in OWN:
        raise InputError(
            f"PROMPT_FILE is empty, and no exemplars are shipped for DATASET={data.dataset!r}. Set "
            'it to a JSON file {"exemplars": [...]} with about ten rows of your data, each with '
            "label and rationale."
        )
    else:
        name = f"{format}.json"
        shipped = importlib.resources.files("stepdistill_jax.teacher") / FOLDER / name
        raw = shipped.read_bytes()
    decoded = decode_utf8(raw, name)
    try:
        content = json.loads(decoded)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name}:{error.lineno}: not JSON ({json_fault(error)}). Write the file as one object, "
            '{"exemplars": [...]}, and a line break within a text as \\n.'
        ) from error
    refuse_surrogates(content, name)
    return name, content


def _check_keys(name: str, content: Any) -> None:
    if not isinstance(content, dict):
        raise InputError(
            f"{name}: got {type(content).__name__}, expected "
            '{"instruction": "...", "exemplars": [...]}.'
        )
    for key in content:
        if key not in _KEYS:
            nearest = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(
                f"{name}: unknown key {key!r}, expected some of {', '.join(_KEYS)}.{hint}"
            )
    if "exemplars" not in content:
        raise InputError(f"{name}: no key 'exemplars'. Add it, with a list of exemplars.")
    exemplars = content["exemplars"]
    if not isinstance(exemplars, list):
        raise InputError(
            f"{name}: 'exemplars' is {type(exemplars).__name__} {exemplars!r:.60}, expected a list "
            "of rows."
        )
    if not exemplars:
        raise InputError(f"{name}: 'exemplars' is empty. Write at least one, better about ten.")
    if not isinstance(content.get("instruction", ""), str):
        raise InputError(f"{name}: 'instruction' is not text. Write a text, or remove the key.")


def _check_distinct(name: str, exemplars: list[Exemplar]) -> None:
    seen: dict[str, int] = {}
    for number, exemplar in enumerate(exemplars, start=1):
        first = seen.setdefault(exemplar.example.input, number)
        if first != number:
            raise InputError(
                f"{name}: exemplar {number} has the input of exemplar {first}. Remove one."
            )


def _exemplar(data: DataConfig, row: Any, where: str) -> Exemplar:
    if not isinstance(row, dict):
        raise InputError(f"{where}: {type(row).__name__} {row!r:.60}, expected a JSON object.")
    try:
        return _from_row(data, row, where) if data.dataset in OWN else _shipped(data, row, where)
    except InputError as error:
        # SKIP_BAD_ROWS does not apply to exemplars.
        raise InputError(str(error).replace(REMEDY, "Correct it.")) from error


def _from_row(data: DataConfig, row: Mapping[str, Any], where: str) -> Exemplar:
    """An exemplar that is a row of a user's data set, with its columns."""
    assert data.columns is not None
    columns = dataclasses.replace(
        data.columns,
        label_column=data.columns.label_column or _LABEL,
        rationale_column=data.columns.rationale_column or _RATIONALE,
    )
    for macro, value, column in (
        ("LABEL_COLUMN", data.columns.label_column, columns.label_column),
        ("RATIONALE_COLUMN", data.columns.rationale_column, columns.rationale_column),
    ):
        if column not in row:
            raise InputError(
                f"{where}: no key {column!r} ({macro}={value!r}): got {', '.join(map(repr, row))}. "
                f"Add {column!r}."
            )
    example = jsonl.example(where, row, columns, example_id=where)
    for required, macro, column in (
        (example.label, "LABEL_COLUMN", columns.label_column),
        (example.explanation, "RATIONALE_COLUMN", columns.rationale_column),
    ):
        if required is None:
            raise InputError(
                f"{where}: {column!r} ({macro}) is null, but an exemplar needs it. Write it."
            )
    _check_equation(columns, example)
    assert example.explanation is not None
    return Exemplar(example, example.explanation.strip())


def _check_equation(columns: ColumnConfig, example: Example) -> None:
    if columns.metric != "equation":
        return
    try:
        evaluate(example.label or "")
    except EquationError as error:
        raise InputError(
            f"{example.where}: label {example.label!r:.60} has no arithmetic value "
            f"({error.reason}), but METRIC='equation'. Correct it."
        ) from error


def _shipped(data: DataConfig, row: Mapping[str, Any], where: str) -> Exemplar:
    """An exemplar of a data set of the release, or of the demo."""
    labels = SOURCES[data.dataset].labels
    if data.dataset in ("esnli", "anli"):
        keys: tuple[str, ...] = ("premise", "hypothesis")
        shown = SEPARATOR.join(text(row, key, where).strip() for key in keys)
    elif data.dataset == "cqa":
        keys = ("question", "choices")
        labels = _five(row, where)
        shown = cqa.input_text(text(row, "question", where).strip(), labels)
    else:
        keys = ("input",)
        shown = text(row, "input", where).strip()
    unknown = set(row) - {*keys, _LABEL, _RATIONALE}
    if unknown:
        raise InputError(
            f"{where}: unknown keys {', '.join(sorted(map(repr, unknown)))}, expected "
            f"{', '.join((*keys, _RATIONALE, _LABEL))}. Remove them."
        )
    label = text(row, _LABEL, where).strip()
    if labels and label not in labels:
        raise InputError(
            f"{where}: label {label!r:.60} is not one of {', '.join(labels)}. Correct it."
        )
    example = Example(where, shown, label, choices=labels, where=where)
    if data.metric == "equation":
        _check_equation(ColumnConfig(metric="equation"), example)
    return Exemplar(example, text(row, _RATIONALE, where).strip())


def _five(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    choices = field(row, "choices", where, list)
    if len(choices) != len(cqa.LETTERS) or not all(
        isinstance(choice, str) and choice.strip() for choice in choices
    ):
        raise InputError(f"{where}: choices {choices!r:.60}, expected five texts. Correct them.")
    return tuple(choice.strip() for choice in choices)


def _default_instruction(data: DataConfig) -> str:
    """For a user's data, where the file has none."""
    labels = data.columns.label_texts() if data.columns else ()
    if data.metric == "equation":
        kind = ", an arithmetic expression of numbers with + - * / and brackets"
    elif labels:
        kind = f", one of: {', '.join(labels)}"
    else:
        kind = ""
    return (
        "Answer as in the examples: give your reasoning in a sentence or two, then end with "
        f'"So the answer is X.", where X is the answer{kind}.'
    )
