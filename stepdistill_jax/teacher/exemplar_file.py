"""Reads a JSON file of exemplars: one shipped for a data set of the release, or a user's own.

``{"instruction": ..., "exemplars": [...]}``, the instruction optional. An exemplar of a data set of
the release has ``rationale``, ``label`` and ``premise`` with ``hypothesis``, ``question`` with
``choices``, or ``input``; one of a user's own data set is a row of it.
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
# Where a user's own data has no such column, its exemplars have these all the same.
_LABEL, _RATIONALE = "label", "rationale"


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """A row as the teacher should answer it.

    Attributes:
        example: with a label.
        rationale: before the label, not blank.
    """

    example: Example
    rationale: str


@dataclasses.dataclass(frozen=True)
class ExemplarFile:
    """What a file says.

    Attributes:
        source: its name.
        format: of `parse.FORMATS`, by the data set.
        instruction: what the teacher is told first.
        exemplars: in their order, at least one.
    """

    source: str
    format: str
    instruction: str
    exemplars: tuple[Exemplar, ...]


def answer_format(data: DataConfig) -> str:
    """How a data set's teacher answers: a format of `parse.FORMATS`."""
    if data.dataset in OWN:
        return "own_equation" if data.metric == "equation" else "own"
    return SOURCES[data.dataset].teacher_format or data.dataset


def read(data: DataConfig, path: str = "") -> ExemplarFile:
    """The exemplars of PROMPT_FILE, or, where `path` is empty, those shipped for DATASET.

    Raises:
        InputError: nothing is shipped, no such file, or it is malformed (naming line or exemplar).
    """
    format = answer_format(data)
    name, content = _content(data, format, path)
    _check_keys(name, content)
    seed = content.get("data_seed", data.data_seed)
    if seed != data.data_seed:
        raise InputError(
            f"{name} is true of DATA_SEED={seed} alone, but DATA_SEED is {data.data_seed}; set "
            f"DATA_SEED={seed}, or PROMPT_FILE to one for your world"
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
            raise InputError(f"PROMPT_FILE is {path!r}, which is no file; correct PROMPT_FILE")
        raw, name = file.read_bytes(), file.name
    elif data.dataset in OWN:
        raise InputError(
            f"PROMPT_FILE is empty, but nothing is shipped for DATASET={data.dataset!r}; set it to "
            'a JSON file {"exemplars": [...]} with about ten rows of your data, each with its '
            "label and rationale"
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
            f"{name}:{error.lineno}: not JSON ({json_fault(error)}); the whole file is one object, "
            '{"exemplars": [...]}, and a line break within a text is written \\n'
        ) from error
    refuse_surrogates(content, name)
    return name, content


def _check_keys(name: str, content: Any) -> None:
    if not isinstance(content, dict):
        raise InputError(
            f'{name}: expected {{"instruction": "...", "exemplars": [...]}}, found '
            f"{type(content).__name__}"
        )
    for key in content:
        if key not in _KEYS:
            nearest = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            raise InputError(
                f"{name}: no use for key {key!r}{hint}; a file of exemplars has {', '.join(_KEYS)}"
            )
    if "exemplars" not in content:
        raise InputError(f"{name}: no key 'exemplars', which is the list of them; write it")
    exemplars = content["exemplars"]
    if not isinstance(exemplars, list):
        raise InputError(
            f"{name}: 'exemplars' is {type(exemplars).__name__} {exemplars!r:.60}, expected a list "
            "of rows"
        )
    if not exemplars:
        raise InputError(f"{name}: 'exemplars' is empty; write one at least, better about ten")
    if not isinstance(content.get("instruction", ""), str):
        raise InputError(f"{name}: 'instruction' is no text; write one, or take it out")


def _check_distinct(name: str, exemplars: list[Exemplar]) -> None:
    seen: dict[str, int] = {}
    for number, exemplar in enumerate(exemplars, start=1):
        first = seen.setdefault(exemplar.example.input, number)
        if first != number:
            raise InputError(
                f"{name}: exemplar {number} has the input of exemplar {first}; take one out"
            )


def _exemplar(data: DataConfig, row: Any, where: str) -> Exemplar:
    if not isinstance(row, dict):
        raise InputError(f"{where}: {type(row).__name__} {row!r:.60}, expected a JSON object")
    try:
        return _own(data, row, where) if data.dataset in OWN else _shipped(data, row, where)
    except InputError as error:
        # Rows may be skipped, exemplars not.
        raise InputError(str(error).replace(REMEDY, "correct it")) from error


def _own(data: DataConfig, row: Mapping[str, Any], where: str) -> Exemplar:
    """A row of a user's own data set, with its columns."""
    assert data.columns is not None
    columns = dataclasses.replace(
        data.columns,
        label_column=data.columns.label_column or _LABEL,
        rationale_column=data.columns.rationale_column or _RATIONALE,
    )
    for macro, given, column in (
        ("LABEL_COLUMN", data.columns.label_column, columns.label_column),
        ("RATIONALE_COLUMN", data.columns.rationale_column, columns.rationale_column),
    ):
        if column not in row:
            raise InputError(
                f"{where}: no key {column!r}, which an exemplar has where {macro} is {given!r}, "
                f"found {', '.join(map(repr, row))}; call it {column!r}"
            )
    example = jsonl.example(where, row, columns, row_id=where)
    for value, macro, column in (
        (example.label, "LABEL_COLUMN", columns.label_column),
        (example.explanation, "RATIONALE_COLUMN", columns.rationale_column),
    ):
        if value is None:
            raise InputError(
                f"{where}: {column!r} is null, but an exemplar shows how to answer; write it "
                f"(the key is that of {macro}, or {column!r} where there is none)"
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
            f"({error.reason}), but METRIC is 'equation'; correct it"
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
            f"{where}: no use for {', '.join(sorted(map(repr, unknown)))}; an exemplar of "
            f"{data.dataset!r} has {', '.join((*keys, _RATIONALE, _LABEL))}"
        )
    label = text(row, _LABEL, where).strip()
    if labels and label not in labels:
        raise InputError(
            f"{where}: label {label!r:.60} is not one of {', '.join(labels)}; correct it"
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
        raise InputError(f"{where}: choices {choices!r:.60}, expected five texts; correct them")
    return tuple(choice.strip() for choice in choices)


def _default_instruction(data: DataConfig) -> str:
    """For a user's own data, where the file has none."""
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
