"""What a source of examples is, and the strict reading that all sources share.

A source turns a raw file into `Example`s in pure Python. It never guesses: a row that is not what
the release promises is an `InputError` with ``file:line``, or, with SKIP_BAD_ROWS, a counted line
of the report.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath

from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.records import FETCH, Example, read_jsonl
from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import InputError

SPLITS = ("train", "validation", "test")
REMEDY = "Fix the row, or set SKIP_BAD_ROWS=True."


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
        "() = any text. JSON's true reads as True or 1, else as 'true' or 'yes' in any case; 1.0 "
        "as 1.",
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
        needs_rationales: False where nothing reads `Example.explanation`; RATIONALE_COLUMN may then
            be missing from a user's own data.
        skipped: None = a bad row is an error; a list = the row is left out and the error's text is
            appended here (SKIP_BAD_ROWS).
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
        files: ``(data_dir, split, options) -> [path]``: the files of `load`, for the fingerprint.
        splits: those of the release; empty where `ColumnConfig.files` lists them.
        labels: the closed label set of the whole data set; empty where it is free or per example.
        metric: a key of `metrics.METRICS`.
        needs_data_dir: False for data that are not in a release's folder.
        teacher_format: how `parse` reads the released teacher outputs; "" where
            `Example.explanation` is the teacher's rationale.
        folder: of the release, under DATA_DIR, with the teacher outputs in ``llm/``.
        version: increase it whenever the same files would give other examples.
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


def released_source(
    name: str,
    folder: str,
    splits: tuple[str, ...],
    parse: Callable[[str, Any], Example],
    *,
    labels: tuple[str, ...] = (),
    metric: str = "exact",
) -> Source:
    """A data set of the release: ``<folder>/<folder>_<split>.json`` holds a JSON object a line."""

    def files(data_dir: epath.Path, split: str, options: Options) -> list[epath.Path]:
        return [data_dir / folder / f"{folder}_{release_split(split)}.json"]

    def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
        (path,) = files(data_dir, split, options)
        return collect(read_jsonl(path, FETCH), parse, options)

    return Source(name, load, files, splits, labels, metric, teacher_format=name, folder=folder)


def release_split(split: str) -> str:
    """The release's name of a split: validation is ``valid``."""
    return "valid" if split == "validation" else split


def row_number(where: str) -> str:
    """The 0-based row number as text, from ``file:line``: the id where a release has none."""
    return str(int(where.rsplit(":", 1)[1]) - 1)


def bad_row(where: str, problem: str) -> InputError:
    """The error of a row that SKIP_BAD_ROWS leaves out."""
    return InputError(f"{where}: {problem}. {REMEDY}")


def field(row: Mapping[str, Any], key: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """``row[key]``, of the expected type; bool does not count as int.

    Raises:
        InputError: missing, or of another type.
    """
    if key not in row:
        raise bad_row(where, f"no key {key!r}, got {', '.join(map(repr, row))}")
    value = row[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(k.__name__ for k in kinds)
        raise bad_row(
            where, f"{key!r}: got {type(value).__name__} {value!r:.60}, expected {expected}"
        )
    return value


def text(row: Mapping[str, Any], key: str, where: str) -> str:
    """``row[key]`` as a text that is not blank.

    Raises:
        InputError: missing, not a text, or blank.
    """
    value = field(row, key, where)
    if not value.strip():
        raise bad_row(where, f"{key!r} is empty")
    return str(value)


def check_equation(label: str, where: str) -> None:
    """Refuses a label without an arithmetic value.

    Raises:
        InputError: see above.
    """
    try:
        evaluate(label)
    except EquationError as error:
        problem = f"label {label!r:.60} has no arithmetic value ({error.reason})"
        raise bad_row(where, problem) from error


def collect(
    rows: Iterable[tuple[str, Any]], parse: Callable[[str, Any], Example], options: Options
) -> list[Example]:
    """Parses every row; a bad one is raised, or noted in ``options.skipped``.

    Args:
        rows: ``(file:line, raw row)``. An error of the iterator itself is always raised: a damaged
            line means a damaged file, in which later rows may be missing too.
        parse: ``(where, raw row) -> Example``; raises InputError for a bad row.
        options: decides whether a bad row is an error.
    """
    examples: dict[str, Example] = {}
    for where, row in rows:
        try:
            example = parse(where, row)
            if other := examples.get(example.id):
                raise bad_row(where, f"id {example.id} was already used at {other.where}")
        except InputError as error:
            if options.skipped is None:
                raise
            options.skipped.append(str(error))
            continue
        examples[example.id] = example
    return list(examples.values())
