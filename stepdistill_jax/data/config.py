"""What a run file says about its data: which rows, with which targets, as which tokens."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.data.sources import SOURCES
from stepdistill_jax.data.sources.base import SPLITS, ColumnConfig
from stepdistill_jax.data.triage import FILTERS, WRONG
from stepdistill_jax.spec import PREFIXES, STREAMS, InputError

DATA_DIR_VARIABLE = "STEPDISTILL_DATA_DIR"
CACHE_DIR_VARIABLE = "STEPDISTILL_CACHE_DIR"
DEFAULT_CACHE_DIR = "~/.cache/stepdistill_jax"
LABELS = ("gold", "teacher")
RATIONALES = ("teacher", "human", "shuffled", "none")
FILE_PREFIX = "file:"
# Stands for the split's name in RATIONALES=file:PATH: one file for each split that is read.
SPLIT_FIELD = "{split}"
AUGMENTS = ("", "asdiv")
# A user's own data sets: described by `ColumnConfig`.
OWN = ("jsonl", "hf")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which rows, with which targets.

    Attributes:
        dataset: [DATASET] a key of `SOURCES`.
        data_dir: [DATA_DIR] folder of the release; "" = the environment's STEPDISTILL_DATA_DIR. For
            a user's own files their folder; "" = the working folder.
        train_split: [TRAIN_SPLIT] the released split to train on; where it is validation, a tenth
            of it is carved off to validate on. Never test.
        labels: [LABELS] the training target: gold or teacher.
        rationales: [RATIONALES] teacher, human, shuffled (the teacher's, dealt to other rows: a
            control), none, or ``file:PATH``, JSON lines of id, rationale and perhaps label about
            the rows of TRAIN_SPLIT. With ``{split}`` in PATH there is a file for every split.
        triage: [TRIAGE] of `triage.FILTERS`: what makes a training row's rationale be dropped, or
            weigh TRIAGE_WEIGHT; () keeps all. "wrong" does the same to a label that is the
            teacher's.
        triage_weight: [TRIAGE_WEIGHT] in [0, 1); 0 drops.
        fraction: [FRACTION] share of the training rows in (0, 1], after validation is carved off.
        data_seed: [DATA_SEED] of the carve, the fraction, the shuffle and the demo's world.
        augment: [AUGMENT] more inputs for training: "", asdiv (for SVAMP), or ``file:PATH``, see
            `added_inputs`.
        skip_bad_rows: [SKIP_BAD_ROWS] leave bad rows out, counted, instead of stopping.
        columns: the description of a user's own data set (jsonl, hf).
    """

    dataset: str
    data_dir: str = ""
    train_split: str = "train"
    labels: str = "gold"
    rationales: str = "teacher"
    triage: tuple[str, ...] = ()
    triage_weight: float = 0.0
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
        if self.rationales not in RATIONALES and not self.rationale_path:
            reject("RATIONALES", self.rationales, (*RATIONALES, f"{FILE_PREFIX}PATH"))
        if not 0 < self.fraction <= 1:
            raise InputError(f"FRACTION is {self.fraction}, not in (0, 1]; 0.125 means 12.5%")
        if self.data_seed < 0:
            raise InputError(f"DATA_SEED is {self.data_seed}, not a whole number from 0 on")
        self._check_augment()
        self._check_triage()
        if self.dataset not in OWN:
            return
        if self.columns is None:
            raise InputError(
                f"DATASET is {self.dataset!r} but no columns are described; set INPUT_TEMPLATE, "
                "LABEL_COLUMN and the file or the name of your data"
            )
        if self.labels == "teacher" and not self.rationale_path:
            raise InputError(
                f"LABELS is 'teacher' but DATASET {self.dataset!r} has no labels beside "
                "LABEL_COLUMN; set LABELS='gold', or RATIONALES='file:PATH' with a label a line"
            )

    @property
    def name(self) -> str:
        """What results call the data: DATASET, or for a user's own its file and label column.

        ``jsonl:mine/train.jsonl#answer``, so that two of a user's data sets are never taken for
        one.
        """
        if self.dataset not in OWN or self.columns is None:
            return self.dataset
        own = self.columns
        parts = [own.hf_name, own.hf_config] if self.dataset == "hf" else [self.data_dir]
        path = "/".join(filter(None, [*parts, own.train_file]))
        return f"{self.dataset}:{path}#{own.label_column}"

    @property
    def metric(self) -> str:
        """How the data set's predictions are scored: a key of `eval.metrics.METRICS`."""
        return self.columns.metric if self.columns else SOURCES[self.dataset].metric

    @property
    def reads_own_rationales(self) -> bool:
        """Whether RATIONALES asks for those that lie beside the rows or were released."""
        return self.rationales != "none" and not self.rationale_path

    @property
    def rationale_path(self) -> str:
        """PATH of RATIONALES=file:PATH, else ""."""
        return _path(self.rationales)

    @property
    def augment_path(self) -> str:
        """PATH of AUGMENT=file:PATH, else ""."""
        return _path(self.augment)

    def _check_augment(self) -> None:
        if self.augment_path:
            if self.labels == "gold" and self.rationales == "none":
                raise InputError(
                    f"AUGMENT is {self.augment!r}, whose rows have no gold label, but LABELS is "
                    "'gold' and RATIONALES 'none', so nothing of them would be trained on; set "
                    "AUGMENT='', LABELS='teacher', or RATIONALES"
                )
        elif self.augment not in AUGMENTS:
            reject("AUGMENT", self.augment, (*AUGMENTS, f"{FILE_PREFIX}PATH"))
        elif self.augment and self.dataset != "svamp":
            raise InputError(
                f"AUGMENT is {self.augment!r} but DATASET is {self.dataset!r}: ASDiv's problems "
                "belong to svamp; set AUGMENT='', or 'file:PATH' with inputs of your own"
            )

    def _check_triage(self) -> None:
        for name in self.triage:
            if name not in FILTERS:
                reject("TRIAGE", name, FILTERS)
        if len(set(self.triage)) < len(self.triage):
            raise InputError(f"TRIAGE is {self.triage}: name each filter once")
        if not 0 <= self.triage_weight < 1:
            raise InputError(
                f"TRIAGE_WEIGHT is {self.triage_weight}, not in [0, 1); 0 drops, 0.5 halves"
            )
        if self.triage_weight and not self.triage:
            raise InputError(
                f"TRIAGE_WEIGHT is {self.triage_weight} but TRIAGE is (), so it weighs nothing; "
                f"name some of {', '.join(FILTERS)} in TRIAGE, or set TRIAGE_WEIGHT=0.0"
            )
        texts = [name for name in self.triage if name != WRONG]
        if texts and self.rationales == "none":
            raise InputError(
                f"TRIAGE names {', '.join(map(repr, texts))} but RATIONALES is 'none', so there "
                "is nothing to judge; set RATIONALES, or take them out of TRIAGE"
            )
        if WRONG not in self.triage:
            return
        if self.labels == "gold" and self.rationales in ("human", "none"):
            raise InputError(
                f"TRIAGE names {WRONG!r} but no teacher's label is read with LABELS='gold' and "
                f"RATIONALES={self.rationales!r}; take it out of TRIAGE, or set LABELS='teacher' "
                "or RATIONALES='teacher'"
            )
        if self.dataset in OWN and not self.rationale_path:
            raise InputError(
                f"TRIAGE names {WRONG!r} but DATASET {self.dataset!r} has no labels beside "
                "LABEL_COLUMN; take it out of TRIAGE, or set RATIONALES='file:PATH' with the "
                "teacher's label a line"
            )


def _path(setting: str) -> str:
    return setting.removeprefix(FILE_PREFIX) if setting.startswith(FILE_PREFIX) else ""


def reject(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises InputError: `value` is not among those allowed for the macro `name`."""
    choices = ", ".join(repr(item) for item in allowed)
    raise InputError(f"{name} is {value!r}, not one of {choices}; set {name}")


@dataclasses.dataclass(frozen=True)
class TokenConfig:
    """How text becomes tokens; each field is the gin macro of its upper-case name.

    Attributes:
        vocabulary: see `vocabulary.load_vocabulary`.
        prefixes: a key of `spec.PREFIXES`.
        max_input_length: tokens of an input, prefix and EOS included.
        max_label_length, max_rationale_length: tokens of a target, EOS included.
        cache_dir: a local or shared folder, or ``gs://BUCKET/FOLDER``; "" =
            $STEPDISTILL_CACHE_DIR, else ~/.cache/stepdistill_jax.
    """

    vocabulary: str = ""
    prefixes: str = "release"
    max_input_length: int = 1024
    max_label_length: int = 256
    max_rationale_length: int = 256
    cache_dir: str = ""

    def __post_init__(self) -> None:
        if self.prefixes not in PREFIXES:
            raise InputError(
                f"PREFIXES is {self.prefixes!r}, not one of {', '.join(PREFIXES)}; set PREFIXES"
            )
        for name in ("max_input_length", "max_label_length", "max_rationale_length"):
            if getattr(self, name) < 2:
                raise InputError(
                    f"{name.upper()} is {getattr(self, name)}, which leaves no room for a token "
                    f"before EOS; set {name.upper()} to 2 or more"
                )

    def prefix_texts(self) -> dict[str, str]:
        """Stream -> the text put before its input."""
        return dict(zip(STREAMS, PREFIXES[self.prefixes], strict=True))

    def feature_lengths(self) -> dict[str, int]:
        """Feature -> tokens at most, EOS included."""
        return {
            "label_inputs": self.max_input_length,
            "label_targets": self.max_label_length,
            "rationale_inputs": self.max_input_length,
            "rationale_targets": self.max_rationale_length,
        }

    def root(self) -> epath.Path:
        """The folder of all caches."""
        chosen = self.cache_dir or os.environ.get(CACHE_DIR_VARIABLE, "") or DEFAULT_CACHE_DIR
        return epath.Path(chosen).expanduser()

    def local_root(self) -> pathlib.Path:
        """`root`; where that is on a store, the folder on this machine for copies of it."""
        named = (self.cache_dir, os.environ.get(CACHE_DIR_VARIABLE, ""), DEFAULT_CACHE_DIR)
        chosen = next(name for name in named if name and not storage.is_remote(name))
        return pathlib.Path(chosen).expanduser()
