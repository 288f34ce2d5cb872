"""A user's own data set with no code: JSON lines (`SOURCE`) or Hugging Face (`HF_SOURCE`).

`ColumnConfig` names the columns; this module reads rows by it. Whatever does not fit is an error
with ``file:line`` (for Hugging Face ``name/split:row``) and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from stepdistill_jax.data.sources.base import (
    REMEDY,
    ColumnConfig,
    Options,
    Source,
    collect,
    read_examples,
    row_number,
)
from stepdistill_jax.records import MEND, Example, read_jsonl
from stepdistill_jax.spec import InputError


def render(template: str, values: Mapping[str, str]) -> str:
    """Fills ``{column}`` fields; never looks into a value, so a column name is all it can reach.

    `str.format` is not used: it reads attributes and takes ``{0}`` for a position.
    """
    parts: list[str] = []
    for literal, column, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if column is not None:
            parts.append(values[column])
    return "".join(parts)


# What to set where rows lack RATIONALE_COLUMN.
_UNWRITTEN = "or RATIONALES='none', or 'file:PATH' with those that a teacher wrote"


def _column(row: Mapping[str, Any], name: str, macro: str, where: str) -> Any:
    if name in row:
        return row[name]
    nearest = difflib.get_close_matches(name, row, n=1, cutoff=0.5)
    hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
    remedy = f"set {macro}, {_UNWRITTEN}" if macro == "RATIONALE_COLUMN" else f"set {macro}"
    raise InputError(
        f"{where}: no column {name!r}, found {', '.join(map(repr, row))}{hint}; {remedy}"
    )


def _string(row: Mapping[str, Any], name: str, macro: str, where: str) -> str:
    value = _column(row, name, macro, where)
    if not isinstance(value, str):
        raise InputError(
            f"{where}: column {name!r} is {type(value).__name__} {value!r:.60}, expected str; "
            f"{REMEDY}"
        )
    return value


def _id(row: Mapping[str, Any], columns: ColumnConfig, where: str) -> str:
    if not columns.id_column:
        return row_number(where)
    value = _column(row, columns.id_column, "ID_COLUMN", where)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(
            f"{where}: id column {columns.id_column!r} is {value!r:.60}, expected a text or a "
            f"whole number; {REMEDY}"
        )
    return str(value)


def _input(row: Mapping[str, Any], columns: ColumnConfig, where: str) -> str:
    values = {name: _string(row, name, "INPUT_TEMPLATE", where) for name in columns.input_fields()}
    if not any(value.strip() for value in values.values()):
        raise InputError(f"{where}: the input is empty, {', '.join(values)} are blank; {REMEDY}")
    return render(columns.input_template, values)


def _label(
    row: Mapping[str, Any], columns: ColumnConfig, names: tuple[str, ...], where: str
) -> str | None:
    """The label's text; `names` are a Hugging Face class column's, indexed by the raw value.

    None where there is no label column or the row says null.
    """
    if not columns.label_column:
        return None
    value = _column(row, columns.label_column, "LABEL_COLUMN", where)
    if value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    allowed = columns.label_map()
    # 0 == False == 0.0 in Python, so only texts and whole numbers are looked up.
    if (isinstance(value, str) or whole) and value in allowed:
        return allowed[value]
    if whole and 0 <= value < len(names):
        value = names[value]
        if not allowed:
            return value
        if value in allowed:
            return allowed[value]
    if allowed:
        raise InputError(
            f"{where}: label {value!r:.60} is not one of {', '.join(map(repr, allowed))}; fix the "
            "row, extend LABEL_SET or pass SKIP_BAD_ROWS=True"
        )
    if not isinstance(value, str):
        raise InputError(
            f"{where}: label column {columns.label_column!r} is {type(value).__name__} "
            f"{value!r:.60}, expected str; fix the row or map it to a text with LABEL_SET"
        )
    if not value.strip():
        raise InputError(f"{where}: label column {columns.label_column!r} is empty; {REMEDY}")
    return value


def _rationale(row: Mapping[str, Any], columns: ColumnConfig, where: str) -> str | None:
    """None where the row says null; an empty text is an error, since it may be a lost one."""
    if not columns.rationale_column:
        return None
    if _column(row, columns.rationale_column, "RATIONALE_COLUMN", where) is None:
        return None
    value = _string(row, columns.rationale_column, "RATIONALE_COLUMN", where)
    if not value.strip():
        raise InputError(
            f"{where}: rationale column {columns.rationale_column!r} is empty; write null for a "
            "row without a rationale, or pass SKIP_BAD_ROWS=True"
        )
    return value


def example(
    where: str,
    row: Mapping[str, Any],
    columns: ColumnConfig,
    names: tuple[str, ...] = (),
    row_id: str = "",
) -> Example:
    """One row, read as the columns say.

    Args:
        where: ``file:line``, for the id of a row without ID_COLUMN and for messages.
        row: column -> value.
        columns: what they mean.
        names: of a Hugging Face column of class labels.
        row_id: taken instead of the row's own.

    Raises:
        InputError: the columns do not fit the row.
    """
    return Example(
        id=row_id or _id(row, columns, where),
        input=_input(row, columns, where),
        label=_label(row, columns, names, where),
        explanation=_rationale(row, columns, where),
        choices=columns.label_texts() or names,
        where=where,
    )


def _columns(options: Options, dataset: str) -> ColumnConfig:
    if options.columns is None:
        raise InputError(
            f"DATASET {dataset} has no columns; set TRAIN_FILE, INPUT_TEMPLATE, LABEL_COLUMN and "
            "RATIONALE_COLUMN"
        )
    return options.columns


def _needed(columns: ColumnConfig, options: Options, there: Iterable[str]) -> ColumnConfig:
    """Without RATIONALE_COLUMN where nothing reads it and none of the rows has it.

    Where some have it they are read as strictly as ever, so that with SKIP_BAD_ROWS a data set has
    the same rows whatever RATIONALES is.
    """
    name = columns.rationale_column
    if options.needs_rationales or not name or name in there:
        return columns
    return dataclasses.replace(columns, rationale_column="")


def _file(columns: ColumnConfig, dataset: str, split: str) -> str:
    files = columns.files()
    if split not in files:
        raise InputError(
            f"dataset {dataset!r} has no split {split!r}, only {', '.join(files) or 'none'}; set "
            f"{split.upper()}_FILE"
        )
    return files[split]


def _path(data_dir: epath.Path, split: str, options: Options) -> epath.Path:
    # An absolute file stays what it is under the folder.
    return epath.Path(data_dir) / _file(_columns(options, "jsonl"), "jsonl", split)


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The rows of a split's JSON-lines file, in its order.

    Raises:
        InputError: no such split or file, or a row that the columns do not fit.
    """
    path = _path(data_dir, split, options)
    there = (column for _, row in read_jsonl(path, MEND) for column in row)
    columns = _needed(_columns(options, "jsonl"), options, there)
    return read_examples(
        path,
        lambda where, row: example(where, row, columns),
        options,
        MEND,
    )


def _files(data_dir: epath.Path, split: str, options: Options) -> list[epath.Path]:
    return [_path(data_dir, split, options)]


def _hub_split(split: str, options: Options) -> Any:
    """The split as a `datasets.Dataset`, from the hub, its local cache or a local folder."""
    import datasets

    columns = _columns(options, "hf")
    if not columns.hf_name:
        raise InputError("DATASET is 'hf' and HF_NAME is empty; set HF_NAME, as in 'owner/name'")
    hub_split = _file(columns, "hf", split)
    try:
        return datasets.load_dataset(columns.hf_name, columns.hf_config or None, split=hub_split)
    except (
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        datasets.exceptions.DatasetsError,
    ) as error:
        # Missing names, unknown configurations or splits, loading scripts, formats that need
        # another library and an absent network all end here; the library's first line says which.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"Hugging Face data set {columns.hf_name!r} (HF_CONFIG {columns.hf_config!r}, split "
            f"{hub_split!r}) could not be loaded: {reason}; check HF_NAME, HF_CONFIG and "
            f"{split.upper()}_FILE, or without a network fetch it where there is one and copy the "
            "folder that HF_HOME names"
        ) from error


def hub_load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The rows of a Hugging Face split, in its order; `data_dir` is not read.

    A column of class labels is read by its class names unless LABEL_SET maps the numbers.

    Raises:
        InputError: the data set cannot be loaded, or a row that the columns do not fit.
    """
    del data_dir
    dataset = _hub_split(split, options)
    columns = _needed(_columns(options, "hf"), options, dataset.features)
    names = tuple(getattr(dataset.features.get(columns.label_column), "names", None) or ())

    def rows() -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(dataset, start=1):
            yield f"{columns.hf_name}/{columns.files()[split]}:{number}", row

    return collect(rows(), lambda where, row: example(where, row, columns, names), options)


def _hub_files(data_dir: epath.Path, split: str, options: Options) -> list[epath.Path]:
    del data_dir
    return [epath.Path(file["filename"]) for file in _hub_split(split, options).cache_files]


SOURCE = Source(name="jsonl", load=load, files=_files, needs_data_dir=False)
HF_SOURCE = Source(name="hf", load=hub_load, files=_hub_files, needs_data_dir=False)
