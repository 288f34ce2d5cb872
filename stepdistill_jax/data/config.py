"""What a run file says about its data: which rows, with which targets, as which tokens."""

from __future__ import annotations

import dataclasses
import os
import pathlib

from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.data.sources import SOURCES
from stepdistill_jax.data.sources.base import SPLITS, ColumnConfig
from stepdistill_jax.data.triage import FILTERS, WRONG
from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import PREFIXES, STREAMS, InputError

DATA_DIR_VARIABLE = "STEPDISTILL_DATA_DIR"
CACHE_DIR_VARIABLE = "STEPDISTILL_CACHE_DIR"
DEFAULT_CACHE_DIR = "~/.cache/stepdistill_jax"
FILE_PREFIX = "file:"
# Attention at this length needs 16 GiB a head in float32: nothing longer can be of use.
_MAX_LENGTH = 65536
# Stands for the split's name in RATIONALES=file:PATH: one file for each split that is read.
SPLIT_FIELD = "{split}"
# A user's own data sets: described by `ColumnConfig`.
OWN = ("jsonl", "hf")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples, with which targets. `columns` describes a user's own data set."""

    HEADING = "Data"

    dataset: str = setting(
        "demo",
        "Data set. jsonl and hf are your own, see Columns.",
        choices=tuple(SOURCES),
    )
    data_dir: str = setting(
        "",
        f"Folder of the data; '' = the environment variable {DATA_DIR_VARIABLE}, or the working "
        "folder for your own data.",
    )
    train_split: str = setting("train", "Split to train on.", choices=SPLITS[:2])
    labels: str = setting("gold", "Label to train on.", choices=("gold", "teacher"))
    rationales: str = setting(
        "teacher",
        "Rationale to train on.",
        choices={
            "teacher": "the released ones, or those of RATIONALE_COLUMN.",
            "human": "those written by people (e-SNLI, ANLI, CQA).",
            "shuffled": "the teacher's, each with another example's input (a control).",
            "none": "no rationales.",
            f"{FILE_PREFIX}PATH": "JSON lines of id, rationale and optionally label. "
            "{split} in PATH names one file per split.",
        },
    )
    triage: tuple[str, ...] = setting(
        (),
        "Training rationales to drop or to weigh by TRIAGE_WEIGHT: 'wrong' (the teacher's label "
        "is not the gold label), 'empty' (no letter or digit), 'states_label' (it contains the "
        "label).",
        choices=FILTERS,
    )
    triage_weight: float = setting(
        0.0, "Weight of those rationales in the loss; 0 drops them.", at_least=0, below=1
    )
    fraction: float = setting(
        1.0,
        "Share of the training examples, taken after validation is split off. Nested: 0.125 lies "
        "inside 0.25.",
        above=0,
        at_most=1,
    )
    data_seed: int = setting(
        0,
        "Seed of the validation split, of FRACTION, of shuffled rationales and of the demo's "
        "world.",
        at_least=0,
    )
    augment: str = setting(
        "",
        "Inputs to add to train.",
        choices={
            "": "none.",
            "asdiv": "ASDiv's problems (only with DATASET 'svamp' and LABELS 'teacher').",
            f"{FILE_PREFIX}PATH": "JSON lines of id, input and the teacher's rationale or label "
            "(and choices, where each example has its own).",
        },
    )
    skip_bad_rows: bool = setting(
        False, "Skip and count examples that cannot be read, instead of stopping."
    )
    columns: ColumnConfig | None = None

    def __post_init__(self) -> None:
        check(self)
        self._check_augment()
        self._check_triage()
        if self.dataset not in OWN:
            return
        if self.columns is None:
            raise InputError(
                f"DATASET={self.dataset!r} needs columns. Set INPUT_TEMPLATE, LABEL_COLUMN and "
                "the file or the name of your data."
            )
        if self.labels == "teacher" and not self.rationale_path:
            raise InputError(
                f"LABELS='teacher', but DATASET={self.dataset!r} has only the labels of "
                "LABEL_COLUMN. Set LABELS='gold', or RATIONALES='file:PATH' with a label per line."
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
                    f"AUGMENT={self.augment!r} adds inputs without gold labels, but LABELS='gold' "
                    "and RATIONALES='none' leave nothing of them to train on. Set AUGMENT='', "
                    "LABELS='teacher', or RATIONALES."
                )
        elif self.augment and self.dataset != "svamp":
            raise InputError(
                f"AUGMENT={self.augment!r} belongs to DATASET='svamp', got DATASET="
                f"{self.dataset!r}. Set AUGMENT='', or AUGMENT='file:PATH' with your own inputs."
            )

    def _check_triage(self) -> None:
        if len(set(self.triage)) < len(self.triage):
            raise InputError(f"TRIAGE: got {self.triage}, expected each filter once.")
        if self.triage_weight and not self.triage:
            raise InputError(
                f"TRIAGE_WEIGHT={self.triage_weight} has no effect with TRIAGE=(). Name some of "
                f"{', '.join(FILTERS)} in TRIAGE, or set TRIAGE_WEIGHT=0.0."
            )
        texts = [name for name in self.triage if name != WRONG]
        if texts and self.rationales == "none":
            raise InputError(
                f"TRIAGE names {', '.join(map(repr, texts))}, but RATIONALES='none' leaves no "
                "rationale to judge. Set RATIONALES, or remove them from TRIAGE."
            )
        if WRONG not in self.triage:
            return
        if self.labels == "gold" and self.rationales in ("human", "none"):
            raise InputError(
                f"TRIAGE names {WRONG!r}, but LABELS='gold' with RATIONALES={self.rationales!r} "
                "reads no teacher's label. Remove it from TRIAGE, or set LABELS='teacher' or "
                "RATIONALES='teacher'."
            )
        if self.dataset in OWN and not self.rationale_path:
            raise InputError(
                f"TRIAGE names {WRONG!r}, but DATASET={self.dataset!r} has no teacher's labels. "
                "Remove it from TRIAGE, or set RATIONALES='file:PATH' with a label per line."
            )


def _path(text: str) -> str:
    return text.removeprefix(FILE_PREFIX) if text.startswith(FILE_PREFIX) else ""


@dataclasses.dataclass(frozen=True)
class TokenConfig:
    """How text becomes tokens."""

    HEADING = "Tokens"

    vocabulary: str = setting(
        "",
        "'demo', 'bytes', a SentencePiece model, a folder with spiece.model, or 'hf:OWNER/NAME'; "
        "'' = the environment variable STEPDISTILL_VOCABULARY, else that of "
        "INITIAL_CHECKPOINT='hf:OWNER/NAME'. The variable may also name a copy of T5's vocabulary "
        "for 'hf:' names of T5.",
    )
    prefixes: str = setting(
        "release",
        "Prefixes of the label and the rationale input.",
        choices={
            name: f"{label!r} and {rationale!r}." for name, (label, rationale) in PREFIXES.items()
        },
    )
    max_input_length: int = setting(
        1024,
        "Maximum input tokens, with prefix and EOS. Longer inputs are cut and counted.",
        at_least=2,
        at_most=_MAX_LENGTH,
    )
    max_label_length: int = setting(
        256, "Maximum label tokens, with EOS.", at_least=2, at_most=_MAX_LENGTH
    )
    max_rationale_length: int = setting(
        256, "Maximum rationale tokens, with EOS.", at_least=2, at_most=_MAX_LENGTH
    )
    cache_dir: str = setting(
        "",
        "Folder of token caches and compiled programs, or gs://BUCKET/FOLDER; '' = the environment "
        f"variable {CACHE_DIR_VARIABLE}, else {DEFAULT_CACHE_DIR}.",
    )

    def __post_init__(self) -> None:
        check(self)

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
