"""Finds and reads the files that a `DataConfig` names: rows, teacher outputs, rationales."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.data import release
from stepdistill_jax.data.added_inputs import read_added
from stepdistill_jax.data.config import DATA_DIR_VARIABLE, OWN, SPLIT_FIELD, DataConfig
from stepdistill_jax.data.rationale_file import read_rationales
from stepdistill_jax.data.sources import SOURCES, Options, Source
from stepdistill_jax.data.sources.base import release_split
from stepdistill_jax.data.subsets import carve_validation
from stepdistill_jax.data.teacher_outputs import Parsed, load_annotations, output_files
from stepdistill_jax.data.triage import WRONG
from stepdistill_jax.records import Annotation, Example
from stepdistill_jax.spec import InputError


class Reader:
    """Reads for one split of one configuration.

    Attributes:
        source: of DATASET.
        data_dir: DATA_DIR, or what the environment names.
        carves: validation is carved from TRAIN_SPLIT instead of being a file of its own.
        file_split: the released split that this split's rows come from.
        needs_rationales: rows are read with their own.
        rows: rows read so far for the split itself, bad ones included.
        skipped: the messages of the bad rows among them.
    """

    def __init__(self, config: DataConfig, split: str, for_teacher: bool = False) -> None:
        """`for_teacher`: rows are read to be asked about, so that none need have a rationale."""
        self.config = config
        self.needs_rationales = config.reads_own_rationales and not for_teacher
        self.split = split
        self.source = SOURCES[config.dataset]
        self.data_dir = find_data_dir(config, self.source)
        self.splits = self.source.splits or tuple(config.columns.files() if config.columns else ())
        self.carves = config.train_split == "validation" or "validation" not in self.splits
        from_train = split == "train" or (split == "validation" and self.carves)
        self.file_split = config.train_split if from_train else split
        self.rows = 0
        self.skipped: list[str] = []

    def read(self, source: Source, split: str, count: bool = True) -> tuple[list[Example], int]:
        """(examples, rows of the file including skipped ones)."""
        config = self.config
        skipped: list[str] | None = [] if config.skip_bad_rows else None
        options = Options(config.data_seed, config.columns, self.needs_rationales, skipped)
        self.require(source, split, options)
        examples = source.load(self.data_dir, split, options)
        rows = len(examples) + len(skipped or ())
        if count:
            self.rows += rows
            self.skipped += skipped or ()
        return examples, rows

    def gold(self, examples: Sequence[Example], need: str) -> list[Example]:
        """Those with a gold label; only a user's own data may lack some.

        Args:
            examples: rows of this split.
            need: what the label is needed for.

        Raises:
            InputError: one has none and bad rows are not skipped, or none has one.
        """
        labelled = [example for example in examples if example.label is not None]
        lacking = len(examples) - len(labelled)
        columns = self.config.columns
        if self.config.dataset not in OWN or not lacking or columns is None:
            return list(examples)
        if labelled and self.config.skip_bad_rows:
            return labelled
        first = next(example for example in examples if example.label is None)
        remedy = "write it there"
        if not columns.label_column:
            remedy = "name the column that holds it (a row without one says null there)"
        if self.split == "train":
            remedy += ", or train on a teacher's: LABELS='teacher' with RATIONALES='file:PATH'"
        elif self.carves:
            remedy += f", or set {self.split.upper()}_FILE to rows that have one"
        raise InputError(
            f"{first.where}: no gold label (LABEL_COLUMN is {columns.label_column!r}; {lacking} of "
            f"{len(examples)} rows have none), but {need}; {remedy}"
        )

    def require(self, source: Source, split: str, options: Options) -> None:
        """Says which splits there are, where the wanted one is not among them."""
        splits = self.splits if source is self.source else source.splits
        own = source.name in OWN
        if split not in splits:
            empty = f"{split.upper()}_FILE is empty: " if own else ""
            raise InputError(
                f"{empty}DATASET {source.name!r} has no split {split!r}, only "
                f"{', '.join(splits) or 'none'}; {_remedy(split, own)}"
            )
        for path in source.files(self.data_dir, split, options):
            if path.is_file():
                continue
            if own:
                raise InputError(
                    f"{path} is no file, but {split.upper()}_FILE names it; "
                    f"correct {split.upper()}_FILE or DATA_DIR"
                )
            here = [
                other
                for other in splits
                if all(file.is_file() for file in source.files(self.data_dir, other, options))
            ]
            raise InputError(
                f"{path}: no such file; of {source.name!r} there is "
                f"{' and '.join(here) or 'nothing'} in DATA_DIR: fetch the rest, or set TRAIN_SPLIT"
            )

    def files(self) -> list[epath.Path]:
        """Every file that decides what this split's pairs are."""
        config = self.config
        options = Options(seed=config.data_seed, columns=config.columns)
        wanted = [(self.source, self.file_split)]
        if self.split == "train" and not self.carves:
            wanted.append((self.source, "validation"))
        if self.split == "train" and config.augment:
            wanted += [(self.source, "test")] if "test" in self.splits else []
            wanted += [] if config.augment_path else [(SOURCES[config.augment], "train")]
        paths = []
        for source, split in wanted:
            self.require(source, split, options)
            paths += source.files(self.data_dir, split, options)
            if source.teacher_format and self.reads_teacher:
                paths += output_files(source, self.data_dir, split)
        if self.split == "train" and config.augment_path:
            paths.append(self.augment_file())
        return [*paths, *self.rationale_files()]

    @property
    def reads_teacher(self) -> bool:
        """Whether this split needs the teacher's released words; LABELS only matters in train."""
        wants_labels = self.config.labels == "teacher" and self.split == "train"
        return wants_labels or self.config.rationales in ("teacher", "shuffled")

    def rationale_files(self) -> list[epath.Path]:
        """The file of RATIONALES=file:PATH that is about the rows of `file_split`, if any."""
        given = self.config.rationale_path
        is_for_all = SPLIT_FIELD in given
        if not given or (self.file_split != self.config.train_split and not is_for_all):
            return []
        path = epath.Path(given.replace(SPLIT_FIELD, self.file_split)).expanduser()
        if not path.is_file():
            remedy = "correct RATIONALES"
            if is_for_all:
                remedy += f"; {SPLIT_FIELD} asks for a file of every split that is read"
            raise InputError(
                f"RATIONALES is {self.config.rationales!r}, but {path} is no file; {remedy}"
            )
        return [path]

    def augment_file(self) -> epath.Path:
        """The file of AUGMENT=file:PATH."""
        path = epath.Path(self.config.augment_path).expanduser()
        if not path.is_file():
            raise InputError(
                f"AUGMENT is {self.config.augment!r}, but {path} is no file; correct AUGMENT"
            )
        return path

    def added(self, known: Sequence[Example]) -> tuple[list[Example], dict[str, Parsed]]:
        """The inputs of AUGMENT=file:PATH, and what their teacher says; `known` have other ids."""
        skipped: list[str] | None = [] if self.config.skip_bad_rows else None
        columns = self.config.columns
        label_set = columns.label_texts() if columns else self.source.labels
        examples, found = read_added(
            self.augment_file(),
            {example.id for example in known},
            label_set,
            not label_set and any(example.choices for example in known),
            self.config.metric,
            skipped,
        )
        self.rows += len(examples) + len(skipped or ())
        self.skipped += skipped or ()
        return examples, dict(found)

    def annotations(
        self, examples: Sequence[Example], rows: int, refuse_hinted: bool = True
    ) -> dict[str, Parsed]:
        """Example id -> what its teacher, or the user's file, says.

        Raises:
            InputError: also, unless `refuse_hinted` is False, where a row of validation or test has
                a rationale that was written with its gold label given.
        """
        files = self.rationale_files()
        if not files:
            return self.teacher(examples, rows)
        evaluated = self.evaluated(examples) if refuse_hinted and self.split != "train" else ()
        given = read_rationales(
            files[0], examples, self.file_split, rows - len(examples), evaluated
        )
        if self.split != "train" or any(line.label for line in given.values()):
            return dict(given)
        if WRONG in self.config.triage:
            raise InputError(
                f"{files[0]}: no line has a label, but TRIAGE names {WRONG!r}; add the teacher's "
                "labels, or take it out of TRIAGE"
            )
        if self.config.labels == "gold":
            return dict(given)
        if self.config.dataset in OWN:
            raise InputError(
                f"{files[0]}: no line has a label, but LABELS is 'teacher' and DATASET "
                f"{self.config.dataset!r} has no other teacher; add labels, or set LABELS='gold'"
            )
        return {
            row_id: dataclasses.replace(output, rationale=given[row_id].rationale)
            for row_id, output in self.teacher(examples, rows).items()
            if row_id in given
        }

    def evaluated(self, examples: Sequence[Example]) -> set[str]:
        """Ids of the rows of `file_split` that are validated or tested on; `examples` are all."""
        if self.file_split == self.config.train_split:
            if not self.carves:
                return set()
            examples = carve_validation(examples, self.config.data_seed)[1]
        return {example.id for example in examples}

    def teacher(self, examples: Sequence[Example], rows: int) -> dict[str, Parsed]:
        """The released outputs, or what the source itself says where it is the teacher."""
        if self.source.teacher_format:
            return self.released(self.source, self.file_split, examples, rows)
        return {e.id: Annotation(e.id, e.explanation or "", e.label or "") for e in examples}

    def released(
        self, source: Source, split: str, examples: Sequence[Example], rows: int
    ) -> dict[str, Parsed]:
        """The release's teacher outputs; training that asks for them must find them."""
        if not self.reads_teacher:
            return {}
        found = load_annotations(source, self.data_dir, split, examples, rows)
        optional = self.split != "train" or (
            source.name == "asdiv" and self.config.labels == "gold"
        )
        if not found and not optional:
            path = self.data_dir / source.folder / "llm" / f"{release_split(split)}_CoT_0.json"
            raise InputError(
                f"{path}: no such file, but LABELS={self.config.labels!r} and "
                f"RATIONALES={self.config.rationales!r} need teacher outputs for {source.name!r}; "
                "supply JSON lists of strings in row order, or set LABELS='gold' and "
                "RATIONALES='none'"
            )
        return found


def _remedy(split: str, own: bool) -> str:
    """What to set where a data set lacks `split`; `own` files are named by macros."""
    if split == "test":
        remedy = "take 'test' out of EVAL_SPLITS"
    else:
        remedy = f"set TRAIN_SPLIT={'validation' if split == 'train' else 'train'!r}"
    return f"set {split.upper()}_FILE, or {remedy}" if own else f"{remedy}, or supply the file"


def find_data_dir(config: DataConfig, source: Source) -> epath.Path:
    """The folder that a data set's files lie under.

    For a release: DATA_DIR, else the environment variable STEPDISTILL_DATA_DIR, else the local
    cache, into which it is downloaded. For a user's own files (jsonl, hf): DATA_DIR, else the
    working folder.

    Raises:
        InputError: the folder does not exist, the download fails, or the store is unavailable.
    """
    if not source.needs_data_dir:
        storage.check("DATA_DIR", config.data_dir)
        return epath.Path(config.data_dir or ".").expanduser()
    chosen = config.data_dir or os.environ.get(DATA_DIR_VARIABLE, "")
    if not chosen:
        added = [config.augment] if config.augment in SOURCES else []
        return epath.Path(release.cached([SOURCES[n].folder for n in (source.name, *added)]))
    name = "DATA_DIR" if config.data_dir else DATA_DIR_VARIABLE
    storage.check(name, chosen)
    folder = epath.Path(chosen).expanduser()
    if not folder.exists():
        raise InputError(
            f"{name}={chosen!r}: no such folder. Correct it, or run "
            f"`python -m launch.prepare --data_dir={chosen}` to download the data."
        )
    return folder
