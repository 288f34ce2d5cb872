"""What a source of examples is, and the strict reading that all sources share.

A source turns a raw file into `Example` rows in pure Python. It never guesses: a row that is not
what the release promises is an `InputError` with ``file:line``, or, with SKIP_BAD_ROWS, a counted
line of the report.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath

from stepdistill_jax.records import FETCH, Example, read_jsonl
from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import InputError

SPLITS = ("train", "validation", "test")
REMEDY = "fix the row or pass SKIP_BAD_ROWS=True"


@dataclasses.dataclass(frozen=True)
class ColumnConfig:
    """The columns of a user's own data set (DATASET 'jsonl' or 'hf')."""

    HEADING = "Columns"

    train_file: str = setting(
        "",
        "jsonl: file of the training examples, under DATA_DIR if that is set. hf: the split's "
        "name on the hub.",
    )
    validation_file: str = setting(
        "", "The same for validation; '' = 10% of train, chosen by DATA_SEED."
    )
    test_file: str = setting("", "The same for test; '' = no test split.")
    hf_name: str = setting("", "hf: name of the data set on the Hugging Face hub.")
    hf_config: str = setting("", "hf: configuration of the data set.")
    id_column: str = setting("", "Column of the example's id; '' = the line number.")
    input_template: str = setting(
        "{input}",
        "The input text, with columns in braces: '{premise}</s>{hypothesis}'. '{{' is a brace.",
    )
    label_column: str = setting(
        "label",
        "Column of the gold label; '' = none. It may be absent or null only in examples that are "
        "trained on a teacher's label.",
    )
    rationale_column: str = setting("", "Column of the rationale; '' = none.")
    label_set: tuple[str, ...] | tuple[tuple[Any, str], ...] = setting(
        (),
        "Labels allowed: ('yes', 'no'), or pairs of raw value and text, ((0, 'no'), (1, 'yes')); "
        "() = any text.",
    )
    metric: str = setting(
        "exact",
        "When a prediction is correct.",
        choices={"exact": "it is the same text.", "equation": "it has the same value."},
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.input_fields():
            raise InputError(
                f"INPUT_TEMPLATE: got {self.input_template!r}, expected at least one column in "
                "braces, as in '{question}'."
            )
        if isinstance(self.label_set, Mapping):
            object.__setattr__(self, "label_set", tuple(self.label_set.items()))

    def input_fields(self) -> tuple[str, ...]:
        """The columns that INPUT_TEMPLATE names, in order.

        Raises:
            InputError: the template is not of plain ``{column}`` fields.
        """
        plain = self.input_template.replace("{{", "").replace("}}", "")
        fields = re.findall(r"\{([^{}]*)\}", plain)
        if any(not re.fullmatch(r"\w[\w -]*", field) for field in fields) or set("{}") & set(
            re.sub(r"\{[^{}]*\}", "", plain)
        ):
            raise InputError(
                f"INPUT_TEMPLATE: got {self.input_template!r}, expected columns as plain "
                "{column} fields. Write {{ and }} for braces."
            )
        return tuple(fields)

    def files(self) -> dict[str, str]:
        """Split -> file (jsonl) or hub split (hf), of those given."""
        given = zip(SPLITS, (self.train_file, self.validation_file, self.test_file), strict=True)
        return {split: file for split, file in given if file}

    def label_texts(self) -> tuple[str, ...]:
        """The closed label set as texts."""
        return tuple(str(item[1]) if isinstance(item, tuple) else item for item in self.label_set)

    def label_map(self) -> dict[Any, str]:
        """Raw value -> label text; empty where labels are free text."""
        return {
            (item[0] if isinstance(item, tuple) else item): (
                str(item[1]) if isinstance(item, tuple) else item
            )
            for item in self.label_set
        }


@dataclasses.dataclass(frozen=True)
class Options:
    """What a loader may need besides folder and split.

    Attributes:
        seed: DATA_SEED; the demo draws its world from it.
        columns: of a user's own data set.
        needs_rationales: False where nothing reads `Example.explanation`: a user's own data then
            need not have RATIONALE_COLUMN.
        skipped: None = a bad row is an error; a list = the error's text is appended here and the
            row is left out (SKIP_BAD_ROWS).
    """

    seed: int = 0
    columns: ColumnConfig | None = None
    needs_rationales: bool = True
    skipped: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: the DATASET that selects it.
        load: ``(data_dir, split, options) -> [Example]``, in the file's order.
        files: ``(data_dir, split, options) -> [path]``: what `load` reads, for the fingerprint.
        splits: those that the release has; empty where `ColumnConfig.files` says.
        labels: the closed label set of the whole data set; empty where it is free or per row.
        metric: ``exact`` or ``equation``.
        needs_data_dir: False for data made on the spot.
        teacher_format: how `teacher.parse` reads the released teacher outputs; "" where the
            source's own `Example.explanation` is the teacher's rationale.
        folder: of the release, under DATA_DIR, with the teacher outputs in ``llm/``.
        version: raised whenever the same files would give other examples.
    """

    name: str
    load: Callable[[epath.Path, str, Options], list[Example]]
    files: Callable[[epath.Path, str, Options], list[epath.Path]]
    splits: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    metric: str = "exact"
    needs_data_dir: bool = True
    teacher_format: str = ""
    folder: str = ""
    version: int = 1


def split_path(data_dir: epath.Path, folder: str, split: str) -> epath.Path:
    """``<data_dir>/<folder>/<folder>_<split>.json``; the release writes validation as valid."""
    return data_dir / folder / f"{folder}_{release_split(split)}.json"


def release_split(split: str) -> str:
    """The release's own word for a split."""
    return "valid" if split == "validation" else split


def field(row: Mapping[str, Any], key: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """``row[key]``, of the type promised; bool is no int here.

    Raises:
        InputError: missing, or of another type.
    """
    if key not in row:
        raise InputError(f"{where}: no key {key!r}, found {', '.join(map(repr, row))}; {REMEDY}")
    value = row[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(k.__name__ for k in kinds)
        raise InputError(
            f"{where}: {key!r} is {type(value).__name__} {value!r:.60}, expected {expected}; "
            f"{REMEDY}"
        )
    return value


def text(row: Mapping[str, Any], key: str, where: str) -> str:
    """``row[key]`` as a text that holds more than white space.

    Raises:
        InputError: missing, no text, or blank.
    """
    value = field(row, key, where)
    if not value.strip():
        raise InputError(f"{where}: {key!r} is empty; {REMEDY}")
    return str(value)


def collect(
    rows: Iterable[tuple[str, Any]],
    parse: Callable[[str, Any], Example],
    options: Options,
    unique_ids: bool = True,
) -> list[Example]:
    """Parses every row; a bad one is raised, or noted in ``options.skipped``.

    Args:
        rows: ``(file:line, raw row)``.
        parse: ``(where, raw row) -> Example``; raises InputError for a bad row.
        options: says what becomes of a bad row.
        unique_ids: two rows of one id are an error.
    """
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        try:
            example = parse(where, row)
            if unique_ids and example.id in seen:
                raise InputError(
                    f"{where}: id {example.id} was already used at {seen[example.id]}; {REMEDY}"
                )
        except InputError as error:
            if options.skipped is None:
                raise
            options.skipped.append(str(error))
            continue
        seen[example.id] = where
        examples.append(example)
    return examples


def read_examples(
    path: epath.Path,
    parse: Callable[[str, Any], Example],
    options: Options,
    remedy: str = FETCH,
) -> list[Example]:
    """`collect` over a JSON-lines file; a damaged line is always an error.

    A damaged line means a damaged file: rows after it may be gone as well, so SKIP_BAD_ROWS does
    not cover it.
    """
    return collect(read_jsonl(path, remedy), parse, options)


def row_number(where: str) -> str:
    """The 0-based row number as text, from ``file:line``: the id where a release has none."""
    return str(int(where.rsplit(":", 1)[1]) - 1)
