"""The rows that a teacher is asked about: those that training will see, whatever LABELS says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from stepdistill_jax.data.added_inputs import read_choices
from stepdistill_jax.data.config import FILE_PREFIX, OWN, DataConfig
from stepdistill_jax.data.read import Reader
from stepdistill_jax.data.sources import SOURCES, Options
from stepdistill_jax.data.sources.base import SPLITS, collect, field, text
from stepdistill_jax.data.subsets import carve_validation, take_fraction, without
from stepdistill_jax.records import Example, read_jsonl
from stepdistill_jax.spec import InputError

# The unit of inputs that belong to no split.
ADDED = "inputs"


def load(data: DataConfig, splits: Sequence[str], added: str) -> dict[str, list[Example]]:
    """Unit -> its rows, in the order of the file.

    A unit is the released split that rows come from: a validation that is carved from train has its
    rows in ``train``, since that is the split whose rationale file names them. What
    `join.load_pairs` would drop for want of a usable teacher's label is here too.

    Args:
        data: whose rows; carve, FRACTION, DATA_SEED and SKIP_BAD_ROWS count as in training.
        splits: [EXTRACT_SPLITS] of train, validation and test.
        added: [EXTRACT_INPUTS] "", ``asdiv``, or ``file:PATH`` with lines of id, input and, where
            each row of the data set has its own, choices. Inputs that are in validation or test are
            left out, as training would leave them out.

    Raises:
        InputError: a file is missing or malformed, or nothing is left to ask about.
    """
    files: dict[str, list[Example]] = {}
    asked: dict[str, set[str]] = {}
    for split in splits:
        reader = Reader(data, split, for_teacher=True)
        unit = reader.file_split
        if unit not in files:
            files[unit], _ = reader.read(reader.source, unit)
        asked.setdefault(unit, set()).update(e.id for e in _rows(data, reader, files[unit]))
    units = {
        unit: [example for example in examples if example.id in asked[unit]]
        for unit, examples in files.items()
    }
    if added:
        units[ADDED] = _added(data, added)
    for unit, examples in units.items():
        if not examples:
            raise InputError(
                f"DATASET={data.dataset!r} has no row to ask a teacher about in {unit!r}; change "
                "EXTRACT_SPLITS or EXTRACT_INPUTS, or mend the data"
            )
    return units


def evaluated(data: DataConfig, units: Collection[str]) -> dict[str, set[str]]:
    """Unit -> ids of its rows that are validated or tested on, whoever asks about them."""
    found = {}
    for split in SPLITS:
        reader = Reader(data, split, for_teacher=True)
        unit = reader.file_split
        if unit == data.train_split and not reader.carves:
            continue
        if unit in units and unit in reader.splits and unit not in found:
            found[unit] = reader.evaluated(reader.read(reader.source, unit)[0])
    return found


def of_unit(data: DataConfig, unit: str, added: str) -> list[Example]:
    """All rows that a unit can have; of the added inputs those of `added`."""
    if unit == ADDED:
        return _added(data, added) if added else []
    return Reader(data, unit, for_teacher=True).read(SOURCES[data.dataset], unit)[0]


def _rows(data: DataConfig, reader: Reader, examples: Sequence[Example]) -> Sequence[Example]:
    """The rows of one split, of all those of its file."""
    if reader.split != "train":
        if reader.split == "validation" and reader.carves:
            return carve_validation(examples, data.data_seed)[1]
        return examples
    if reader.carves:
        own = carve_validation(examples, data.data_seed)[0]
    else:
        own = without(examples, reader.read(reader.source, "validation")[0])
    if data.fraction == 1.0:
        return own
    # FRACTION is a share of all training rows, those that AUGMENT adds included.
    return take_fraction([*own, *_augmentation(data, own)], data.fraction, data.data_seed)


def _augmentation(data: DataConfig, own: Sequence[Example]) -> list[Example]:
    """What AUGMENT adds to the training rows."""
    if not data.augment:
        return []
    reader = Reader(data, "train", for_teacher=True)
    if data.augment_path:
        examples, _ = reader.added(own)
    else:
        examples, _ = reader.read(SOURCES[data.augment], "train")
    return without(examples, _evaluated(data))


def _added(data: DataConfig, added: str) -> list[Example]:
    """The inputs of EXTRACT_INPUTS that are in neither evaluation split."""
    reader = Reader(data, "train", for_teacher=True)
    evaluated = _evaluated(data)
    if added.startswith(FILE_PREFIX):
        examples = _read(data, added, evaluated)
    elif data.dataset != "svamp":
        raise InputError(
            f"EXTRACT_INPUTS is {added!r} but DATASET is {data.dataset!r}: ASDiv's problems belong "
            "to svamp; set EXTRACT_INPUTS='', or 'file:PATH' with inputs of your own"
        )
    else:
        examples, _ = reader.read(SOURCES[added], "train")
    return without(examples, evaluated)


def _evaluated(data: DataConfig) -> list[Example]:
    """The rows of validation, and of test where there is one."""
    reader = Reader(data, "validation", for_teacher=True)
    examples, _ = reader.read(reader.source, reader.file_split)
    if reader.carves:
        examples = carve_validation(examples, data.data_seed)[1]
    if "test" in reader.splits:
        examples = [*examples, *reader.read(reader.source, "test")[0]]
    return examples


def _read(data: DataConfig, added: str, rows: Sequence[Example]) -> list[Example]:
    """The lines of EXTRACT_INPUTS=file:PATH; `rows` are some of the data set's own."""
    path = epath.Path(added.removeprefix(FILE_PREFIX)).expanduser()
    if not path.is_file():
        raise InputError(
            f"EXTRACT_INPUTS is {added!r}, but {path} is no file; correct EXTRACT_INPUTS"
        )
    columns = data.columns if data.dataset in OWN else None
    label_set = columns.label_texts() if columns else SOURCES[data.dataset].labels
    needs_choices = not label_set and any(row.choices for row in rows)

    def parse(where: str, row: Mapping[str, Any]) -> Example:
        if columns and "input" not in row:
            raise InputError(
                f"{where}: no key 'input', found {', '.join(map(repr, row))}; write the whole "
                f"input there, as INPUT_TEMPLATE {columns.input_template!r} makes it of a row"
            )
        row_id = str(field(row, "id", where, (str, int)))
        choices = read_choices(row, label_set, where)
        if needs_choices and not choices:
            raise InputError(
                f"{where}: no 'choices', which every row of this data set has; add them"
            )
        return Example(row_id, text(row, "input", where).strip(), None, None, choices, where)

    skipped: list[str] | None = [] if data.skip_bad_rows else None
    return collect(read_jsonl(path), parse, Options(skipped=skipped))
