"""The examples that a teacher annotates: those that training will see, whatever LABELS is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from stepdistill_jax.data.added_inputs import read_choices
from stepdistill_jax.data.config import FILE_PREFIX, OWN, DataConfig
from stepdistill_jax.data.read import SplitReader
from stepdistill_jax.data.sources import SOURCES, Options
from stepdistill_jax.data.sources.base import SPLITS, collect, field, text
from stepdistill_jax.data.subsets import take_fraction, without
from stepdistill_jax.records import Example, read_jsonl
from stepdistill_jax.spec import InputError

# The split of unlabelled inputs.
ADDED = "inputs"


def load(data: DataConfig, splits: Sequence[str], added: str) -> dict[str, list[Example]]:
    """Released split -> its examples to annotate, in the order of the file.

    A validation that is carved from train has its examples in ``train``, since the rationale file
    of that split names them. Examples that `join.load_pairs` drops for lack of a usable teacher's
    label are included.

    Args:
        data: carve, FRACTION, DATA_SEED and SKIP_BAD_ROWS count as in training.
        splits: [EXTRACT_SPLITS] of train, validation and test.
        added: [EXTRACT_INPUTS] "", ``asdiv``, or ``file:PATH`` with lines of id, input and, where
            each example of the data set has its own, choices. Inputs that are in validation or
            test are left out, as in training.

    Raises:
        InputError: a file is missing or malformed, or nothing is left to annotate.
    """
    files: dict[str, list[Example]] = {}
    chosen: dict[str, set[str]] = {}
    for split in splits:
        reader = SplitReader(data, split, for_teacher=True)
        files.setdefault(reader.file_split, reader.file.examples)
        ids = {example.id for example in _in_split(data, reader)}
        chosen.setdefault(reader.file_split, set()).update(ids)
    examples = {
        split: [example for example in file if example.id in chosen[split]]
        for split, file in files.items()
    }
    if added:
        examples[ADDED] = _added(data, added)
    for split, of_split in examples.items():
        if not of_split:
            raise InputError(
                f"DATASET={data.dataset!r} has no example to annotate in {split!r}. Change "
                "EXTRACT_SPLITS or EXTRACT_INPUTS, or fix the data."
            )
    return examples


def evaluated(data: DataConfig, splits: Collection[str]) -> dict[str, set[str]]:
    """Released split -> ids of its examples that are validated or tested on, in any run."""
    ids: dict[str, set[str]] = {}
    for split in SPLITS:
        reader = SplitReader(data, split, for_teacher=True)
        file_split = reader.file_split
        if file_split == data.train_split and not reader.carves:
            continue
        if file_split in splits and file_split in reader.splits and file_split not in ids:
            ids[file_split] = reader.evaluated_ids()
    return ids


def of_split(data: DataConfig, split: str, added: str) -> list[Example]:
    """All examples that a released split can have; of the unlabelled inputs those of `added`."""
    if split == ADDED:
        return _added(data, added) if added else []
    reader = SplitReader(data, split, for_teacher=True)
    return reader.read(reader.source, split).examples


def _in_split(data: DataConfig, reader: SplitReader) -> Sequence[Example]:
    if reader.split != "train" or data.fraction == 1.0:
        return reader.examples
    examples = list(reader.examples)
    if data.augment:
        # FRACTION is a share of all training examples, including those that AUGMENT adds.
        examples += _unseen(reader, reader.augmentation()[0].examples)
    return take_fraction(examples, data.fraction, data.data_seed)


def _unseen(reader: SplitReader, examples: Sequence[Example]) -> list[Example]:
    """Those of `examples` whose input is in neither evaluation split."""
    return without(examples, [*reader.validation, *reader.test])


def _added(data: DataConfig, added: str) -> list[Example]:
    """The inputs of EXTRACT_INPUTS that are in neither evaluation split."""
    reader = SplitReader(data, "validation", for_teacher=True)
    if added.startswith(FILE_PREFIX):
        return _unseen(reader, _read(reader, added))
    if data.dataset != "svamp":
        raise InputError(
            f"EXTRACT_INPUTS is {added!r} but DATASET is {data.dataset!r}: ASDiv's problems belong "
            "to svamp. Set EXTRACT_INPUTS='', or 'file:PATH' with your own inputs."
        )
    return _unseen(reader, reader.read(SOURCES[added], "train").examples)


def _read(reader: SplitReader, added: str) -> list[Example]:
    """The lines of EXTRACT_INPUTS=file:PATH."""
    data = reader.config
    path = epath.Path(added.removeprefix(FILE_PREFIX)).expanduser()
    if not path.is_file():
        raise InputError(
            f"EXTRACT_INPUTS is {added!r}, but {path} does not exist. Correct EXTRACT_INPUTS."
        )
    columns = data.columns if data.dataset in OWN else None
    label_set = reader.label_set
    evaluated = [*reader.validation, *reader.test]
    needs_choices = not label_set and any(example.choices for example in evaluated)

    def parse(where: str, row: Mapping[str, Any]) -> Example:
        if columns and "input" not in row:
            raise InputError(
                f"{where}: no key 'input', got {', '.join(map(repr, row))}. Write the whole input "
                f"there, as INPUT_TEMPLATE {columns.input_template!r} would render it."
            )
        example_id = str(field(row, "id", where, (str, int)))
        choices = read_choices(row, label_set, where)
        if needs_choices and not choices:
            raise InputError(
                f"{where}: no 'choices', which every example of this data set has. Add them."
            )
        return Example(example_id, text(row, "input", where).strip(), None, None, choices, where)

    skipped: list[str] | None = [] if data.skip_bad_rows else None
    return collect(read_jsonl(path), parse, Options(skipped=skipped))
