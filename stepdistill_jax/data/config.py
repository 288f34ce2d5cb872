"""Which rows of which data set, with which targets: what a run file says about its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stepdistill_jax.data.sources import SOURCES
from stepdistill_jax.data.sources.base import SPLITS, ColumnConfig
from stepdistill_jax.spec import InputError

DATA_DIR_VARIABLE = "STEPDISTILL_DATA_DIR"
LABELS = ("gold", "teacher")
RATIONALES = ("teacher", "human", "shuffled", "none")
FILE_PREFIX = "file:"
AUGMENTS = ("", "asdiv")
# A user's own data sets: described by `ColumnConfig`.
OWN = ("jsonl", "hf")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which rows, with which targets.

    Attributes:
        dataset: [DATASET] a key of `SOURCES`.
        data_dir: [DATA_DIR] folder of the release; "" = the environment's STEPDISTILL_DATA_DIR.
        train_split: [TRAIN_SPLIT] the released split to train on; where it is validation, a tenth
            of it is carved off to validate on. Never test.
        labels: [LABELS] the training target: gold or teacher.
        rationales: [RATIONALES] teacher, human, shuffled (the teacher's, dealt to other rows: a
            control), none, or ``file:PATH``, JSON lines of id, rationale and perhaps label.
        fraction: [FRACTION] share of the training rows in (0, 1], after validation is carved off.
        data_seed: [DATA_SEED] of the carve, the fraction, the shuffle and the demo's world.
        augment: [AUGMENT] "" or asdiv: more inputs for SVAMP's training.
        skip_bad_rows: [SKIP_BAD_ROWS] leave bad rows out, counted, instead of stopping.
        columns: the description of a user's own data set (jsonl, hf).
    """

    dataset: str
    data_dir: str = ""
    train_split: str = "train"
    labels: str = "gold"
    rationales: str = "teacher"
    fraction: float = 1.0
    data_seed: int = 0
    augment: str = ""
    skip_bad_rows: bool = False
    columns: ColumnConfig | None = None

    def __post_init__(self) -> None:
        if self.dataset not in SOURCES:
            reject("DATASET", self.dataset, tuple(SOURCES))
        if self.train_split not in SPLITS[:2]:
            reject("TRAIN_SPLIT", self.train_split, SPLITS[:2])
        if self.labels not in LABELS:
            reject("LABELS", self.labels, LABELS)
        is_file = self.rationales.startswith(FILE_PREFIX) and self.rationales != FILE_PREFIX
        if self.rationales not in RATIONALES and not is_file:
            reject("RATIONALES", self.rationales, (*RATIONALES, f"{FILE_PREFIX}PATH"))
        if not 0 < self.fraction <= 1:
            raise InputError(f"FRACTION is {self.fraction}, not in (0, 1]; 0.125 means 12.5%")
        if self.augment not in AUGMENTS:
            reject("AUGMENT", self.augment, AUGMENTS)
        if self.augment and self.dataset != "svamp":
            raise InputError(
                f"AUGMENT is {self.augment!r} but DATASET is {self.dataset!r}: ASDiv's problems "
                "belong to svamp; set AUGMENT=''"
            )
        if self.data_seed < 0:
            raise InputError(f"DATA_SEED is {self.data_seed}, not a whole number from 0 on")
        if self.dataset not in OWN:
            return
        if self.columns is None:
            raise InputError(
                f"DATASET is {self.dataset!r} but no columns are described; set INPUT_TEMPLATE, "
                "LABEL_COLUMN and the file or the name of your data"
            )
        if self.labels == "teacher" and not is_file:
            raise InputError(
                f"LABELS is 'teacher' but DATASET {self.dataset!r} has no labels beside "
                "LABEL_COLUMN; set LABELS='gold', or RATIONALES='file:PATH' with a label a line"
            )


def reject(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises InputError: `value` is not among those allowed for the macro `name`."""
    choices = ", ".join(repr(item) for item in allowed)
    raise InputError(f"{name} is {value!r}, not one of {choices}; set {name}")
