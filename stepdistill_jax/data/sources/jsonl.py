"""A user's own data set, described by columns: JSON lines or Hugging Face.

`ColumnConfig` names the columns. A row that does not fit is an error with ``file:line`` (for
Hugging Face ``name/split:row``) and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from stepdistill_jax.data.sources.base import (
    ColumnConfig,
    Options,
    Source,
    bad_row,
    collect,
    row_number,
)
from stepdistill_jax.records import MEND, Example, read_jsonl
from stepdistill_jax.spec import InputError


def render(template: str, values: Mapping[str, str]) -> str:
    """Fills ``{column}`` fields; `str.format` would also read attributes and positions."""
    parts: list[str] = []
    for literal, column, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if column is not None:
            parts.append(values[column])
    return "".join(parts)


def _column(row: Mapping[str, Any], name: str, macro: str, where: str) -> Any:
    if name in row:
        return row[name]
    nearest = difflib.get_close_matches(name, row, n=1, cutoff=0.5)
    hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
    remedy = f"Set {macro}"
    if macro == "RATIONALE_COLUMN":
        remedy += ", or RATIONALES='none', or RATIONALES='file:PATH' with a teacher's rationales"
    raise InputError(
        f"{where}: no column {name!r}, got {', '.join(map(repr, row))}{hint}. {remedy}."
    )


def _string(row: Mapping[str, Any], name: str, macro: str, where: str) -> str:
    value = _column(row, name, macro, where)
    if not isinstance(value, str):
        problem = f"column {name!r}: got {type(value).__name__} {value!r:.60}, expected str"
        raise bad_row(where, problem)
    return value


def _id(row: Mapping[str, Any], columns: ColumnConfig, where: str) -> str:
    if not columns.id_column:
        return row_number(where)
    value = _column(row, columns.id_column, "ID_COLUMN", where)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        problem = f"id column {columns.id_column!r}: got {value!r:.60}, expected a text or an int"
        raise bad_row(where, problem)
    return str(value)


def _input(row: Mapping[str, Any], columns: ColumnConfig, where: str) -> str:
    values = {name: _string(row, name, "INPUT_TEMPLATE", where) for name in columns.input_fields()}
    if not any(value.strip() for value in values.values()):
        raise bad_row(where, f"the input is empty: {', '.join(values)} are blank")
    return render(columns.input_template, values)


# What R and pandas write in CSV where a text is missing.
_MISSING = frozenset(("NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None"))
# Of LABEL_SET, for numbers and for true and false.
_EXAMPLES = ("((0, 'no'), (1, 'yes'))", "((False, 'no'), (True, 'yes'))")


def _mapped(value: Any, allowed: Mapping[Any, str]) -> str | None:
    """The text of a raw label by LABEL_SET; None where that has none for it.

    True reads as 1 and False as 0, and the other way round, unless LABEL_SET has other numbers;
    else as 'true' or 'yes' and 'false' or 'no', in any case. 1.0 reads as 1; else 1 as '1'.
    """
    if isinstance(value, str):
        return allowed.get(value)
    if not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    numbers = {key for key in allowed if isinstance(key, int | float)}
    # In Python, 0 == False.
    if value in numbers and not (isinstance(value, bool) and numbers - {0, 1}):
        return allowed[value]
    texts = [str(value)]
    if isinstance(value, bool):
        texts = ["true", "yes"] if value else ["false", "no"]
    matches = [key for key in allowed if isinstance(key, str) and key.casefold() in texts]
    return allowed[matches[0]] if len(matches) == 1 else None


def _label(
    row: Mapping[str, Any], columns: ColumnConfig, names: tuple[str, ...], where: str
) -> str | None:
    """The label's text; None where there is no label column or its value is null.

    `names` are a Hugging Face class column's, indexed by the raw value.
    """
    if not columns.label_column:
        return None
    value = _column(row, columns.label_column, "LABEL_COLUMN", where)
    if value is None:
        return None
    allowed = columns.label_map()
    label = _mapped(value, allowed)
    is_class = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names)
    if label is None and is_class:
        label = names[value] if not allowed else _mapped(names[value], allowed)
    if label is not None:
        return label
    if allowed:
        raise InputError(
            f"{where}: got label {value!r:.60}, expected one of {', '.join(map(repr, allowed))}. "
            "Fix the row, extend LABEL_SET, or set SKIP_BAD_ROWS=True."
        )
    if not isinstance(value, str):
        raise InputError(
            f"{where}: label column {columns.label_column!r}: got {type(value).__name__} "
            f"{value!r:.60}, expected str. Fix the row, or map the values to texts, as in "
            f"LABEL_SET={_EXAMPLES[isinstance(value, bool)]}."
        )
    if not value.strip():
        raise bad_row(where, f"label column {columns.label_column!r} is empty")
    return value


def _rationale(row: Mapping[str, Any], columns: ColumnConfig, where: str) -> str | None:
    """None where the value is null; an empty text is an error, since it may be a loss."""
    if not columns.rationale_column:
        return None
    if _column(row, columns.rationale_column, "RATIONALE_COLUMN", where) is None:
        return None
    value = _string(row, columns.rationale_column, "RATIONALE_COLUMN", where)
    if not value.strip():
        raise InputError(
            f"{where}: rationale column {columns.rationale_column!r} is empty. Write null in a row "
            "without a rationale, or set SKIP_BAD_ROWS=True."
        )
    return value


def example(
    where: str,
    row: Mapping[str, Any],
    columns: ColumnConfig,
    names: tuple[str, ...] = (),
    example_id: str = "",
) -> Example:
    """One row, read by its columns.

    Args:
        where: ``file:line``, for the id of a row without ID_COLUMN and for messages.
        row: column -> value.
        columns: the description.
        names: of a Hugging Face column of class labels.
        example_id: replaces the row's id.

    Raises:
        InputError: the columns do not fit the row.
    """
    return Example(
        id=example_id or _id(row, columns, where),
        input=_input(row, columns, where),
        label=_label(row, columns, names, where),
        explanation=_rationale(row, columns, where),
        choices=columns.label_texts() or names,
        where=where,
    )


def _columns(options: Options) -> ColumnConfig:
    assert options.columns is not None  # `DataConfig` requires it
    return options.columns


def _needed(columns: ColumnConfig, options: Options, names: Iterable[str]) -> ColumnConfig:
    """Without RATIONALE_COLUMN where nothing reads it and none of the rows has it.

    Where some rows have it, it is read as strictly as ever. So with SKIP_BAD_ROWS a data set has
    the same examples whatever RATIONALES is.

    Args:
        columns: the description.
        options: of the load.
        names: of the columns in the file.
    """
    name = columns.rationale_column
    if options.needs_rationales or not name or name in names:
        return columns
    return dataclasses.replace(columns, rationale_column="")


def _files(data_dir: epath.Path, split: str, options: Options) -> list[epath.Path]:
    # An absolute path replaces the folder.
    return [data_dir / _columns(options).files()[split]]


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The examples of a split's JSON-lines file, in its order.

    Raises:
        InputError: no such file, or a row that the columns do not fit.
    """
    (path,) = _files(data_dir, split, options)
    names = (column for _, row in read_jsonl(path, MEND) for column in row)
    columns = _needed(_columns(options), options, names)
    rows = read_jsonl(path, MEND)
    return collect(rows, lambda where, row: example(where, row, columns), options)


def _hub_split(split: str, options: Options) -> tuple[Any, bool]:
    """The split as a `datasets.Dataset`, and whether its files are CSV.

    It comes from the hub, its local cache or a local folder.
    """
    import datasets

    columns = _columns(options)
    if not columns.hf_name:
        raise InputError("HF_NAME is empty but DATASET is 'hf'. Set HF_NAME, as in 'owner/name'.")
    hub_split = columns.files()[split]
    load = functools.partial(
        datasets.load_dataset, columns.hf_name, columns.hf_config or None, split=hub_split
    )
    try:
        try:
            # Else pandas would read a label 'None' or an input 'NA' as missing.
            return load(keep_default_na=False, na_values=[""]), True
        except ValueError:  # Only CSV has these options.
            return load(), False
    except (
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        datasets.exceptions.DatasetsError,
    ) as error:
        # Unknown names, configurations or splits, loading scripts, formats that need another
        # library and a missing network all end here; the library's first line says which.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"Hugging Face data set {columns.hf_name!r} (HF_CONFIG {columns.hf_config!r}, split "
            f"{hub_split!r}) cannot be loaded: {reason.rstrip('.')}. Check HF_NAME, HF_CONFIG and "
            f"{split.upper()}_FILE. Without a network, copy HF_HOME from a machine that loaded it."
        ) from error


def hub_load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The examples of a Hugging Face split, in its order.

    A column of class labels yields its class names unless LABEL_SET maps the numbers. In CSV, an
    empty cell is missing, and of rationales also NA, None and the like.

    Raises:
        InputError: the data set cannot be loaded, or a row that the columns do not fit.
    """
    del data_dir
    dataset, is_csv = _hub_split(split, options)
    columns = _needed(_columns(options), options, dataset.features)
    names = tuple(getattr(dataset.features.get(columns.label_column), "names", None) or ())

    def rows() -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(dataset, start=1):
            if is_csv and row.get(columns.rationale_column) in _MISSING:
                row[columns.rationale_column] = None
            yield f"{columns.hf_name}/{columns.files()[split]}:{number}", row

    return collect(rows(), lambda where, row: example(where, row, columns, names), options)


def _hub_files(data_dir: epath.Path, split: str, options: Options) -> list[epath.Path]:
    del data_dir
    return [epath.Path(file["filename"]) for file in _hub_split(split, options)[0].cache_files]


SOURCE = Source(name="jsonl", load=load, files=_files, needs_data_dir=False)
HF_SOURCE = Source(name="hf", load=hub_load, files=_hub_files, needs_data_dir=False)
