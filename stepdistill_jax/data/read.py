"""Finds and reads the files that a `DataConfig` names: examples, teacher outputs, rationales."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.data import metrics, release
from stepdistill_jax.data.added_inputs import read_added
from stepdistill_jax.data.config import DATA_DIR_VARIABLE, OWN, SPLIT_FIELD, DataConfig
from stepdistill_jax.data.rationale_file import read_rationales
from stepdistill_jax.data.sources import SOURCES, Options, Source
from stepdistill_jax.data.sources.base import release_split
from stepdistill_jax.data.subsets import carve_validation, without
from stepdistill_jax.data.teacher_outputs import (
    Parsed,
    ReleasedOutput,
    output_files,
    read_released,
)
from stepdistill_jax.data.triage import WRONG
from stepdistill_jax.records import Annotation, Example
from stepdistill_jax.spec import InputError


@dataclasses.dataclass(frozen=True)
class FileExamples:
    """The examples of one file, and the number of bad rows that SKIP_BAD_ROWS leaves out."""

    examples: list[Example]
    skipped: int

    @property
    def rows(self) -> int:
        """Rows of the file, bad ones included."""
        return len(self.examples) + self.skipped


class SplitReader:
    """Reads for one split of one configuration.

    Attributes:
        source: of DATASET.
        data_dir: DATA_DIR, or the folder that the environment names.
        splits: those that the data set has files for.
        carves: validation is carved from TRAIN_SPLIT instead of having a file.
        file_split: the split whose file this split's examples come from.
        label_set: the labels of the whole data set; empty where they are free or per example.
        reads_teacher: this split needs the released outputs; LABELS only matters in train.
    """

    def __init__(self, config: DataConfig, split: str, for_teacher: bool = False) -> None:
        """`for_teacher`: a teacher will annotate the examples, so they need no rationales."""
        self.config = config
        self.split = split
        self.source = SOURCES[config.dataset]
        self.data_dir = find_data_dir(config, self.source)
        columns = config.columns
        self.splits = self.source.splits or tuple(columns.files() if columns else ())
        self.label_set = columns.label_texts() if columns else self.source.labels
        self.carves = config.train_split == "validation" or "validation" not in self.splits
        from_train = split == "train" or (split == "validation" and self.carves)
        self.file_split = config.train_split if from_train else split
        wants_labels = config.labels == "teacher" and split == "train"
        self.reads_teacher = not for_teacher and (
            wants_labels or config.rationales in ("teacher", "shuffled")
        )
        self._needs_rationales = config.reads_own_rationales and not for_teacher

    @functools.cached_property
    def file(self) -> FileExamples:
        """All examples of `file_split`."""
        return self.read(self.source, self.file_split)

    @functools.cached_property
    def validation(self) -> list[Example]:
        """The examples of the validation split."""
        split = self.config.train_split if self.carves else "validation"
        file = self.file if split == self.file_split else self.read(self.source, split)
        if self.carves:
            return carve_validation(file.examples, self.config.data_seed)[1]
        return file.examples

    @functools.cached_property
    def test(self) -> list[Example]:
        """The examples of the test split; empty where the data set has none."""
        return self.read(self.source, "test").examples if "test" in self.splits else []

    @functools.cached_property
    def examples(self) -> list[Example]:
        """The split's own examples; train shares no input with validation."""
        if self.split == "train":
            return without(self.file.examples, self.validation)
        return self.validation if self.split == "validation" else self.file.examples

    def evaluated_ids(self) -> set[str]:
        """Ids of the examples of `file_split` that are validated or tested on."""
        if self.file_split != self.config.train_split:
            return {example.id for example in self.file.examples}
        return {example.id for example in self.validation} if self.carves else set()

    def read(self, source: Source, split: str) -> FileExamples:
        """The examples of any file of DATA_DIR.

        Raises:
            InputError: the file is missing, or a row is bad and bad rows are not skipped.
        """
        skipped: list[str] | None = [] if self.config.skip_bad_rows else None
        options = dataclasses.replace(self._options(), skipped=skipped)
        self._require(source, split)
        examples = source.load(self.data_dir, split, options)
        return FileExamples(examples, len(skipped or ()))

    def gold(self, examples: Sequence[Example], purpose: str) -> list[Example]:
        """Those of `examples` with a gold label; only a user's own data may lack some.

        Args:
            examples: of this split.
            purpose: why the label is needed, for the error.

        Raises:
            InputError: one has none and bad rows are not skipped, or none has one; or METRIC cannot
                compare one.
        """
        labelled = [example for example in examples if example.label is not None]
        for example in labelled if self.config.dataset in OWN else ():
            try:
                metrics.check_gold(self.config.metric, example.label or "")
            except InputError as error:
                raise InputError(f"{example.where}: {error}") from error
        missing = len(examples) - len(labelled)
        columns = self.config.columns
        if self.config.dataset not in OWN or not missing or columns is None:
            return list(examples)
        if labelled and self.config.skip_bad_rows:
            return labelled
        first = next(example for example in examples if example.label is None)
        remedy = "Add the label"
        if not columns.label_column:
            remedy = "Set LABEL_COLUMN to the column that holds it (null in a row without one)"
        if self.split == "train":
            remedy += ", or train on a teacher's: LABELS='teacher' with RATIONALES='file:PATH'"
        elif self.carves:
            remedy += f", or set {self.split.upper()}_FILE to a file with labels"
        raise InputError(
            f"{first.where}: no gold label (LABEL_COLUMN is {columns.label_column!r}; {missing} of "
            f"{len(examples)} rows have none), but {purpose}. {remedy}."
        )

    def files(self) -> list[epath.Path]:
        """Every file that decides what this split's pairs are."""
        config = self.config
        files = [(self.source, self.file_split)]
        if self.split == "train" and not self.carves:
            files.append((self.source, "validation"))
        if self.split == "train" and config.augment:
            files += [(self.source, "test")] if "test" in self.splits else []
            files += [] if config.augment_path else [(SOURCES[config.augment], "train")]
        paths = []
        for source, split in files:
            self._require(source, split)
            paths += source.files(self.data_dir, split, self._options())
            if source.teacher_format and self.reads_teacher:
                paths += output_files(source, self.data_dir, split)
        if self.split == "train" and config.augment_path:
            paths.append(self._augment_file())
        return [*paths, *self.rationale_files()]

    def rationale_files(self) -> list[epath.Path]:
        """The file of RATIONALES=file:PATH about the examples of `file_split`, if any."""
        name = self.config.rationale_path
        is_for_all = SPLIT_FIELD in name
        if not name or (self.file_split != self.config.train_split and not is_for_all):
            return []
        path = epath.Path(name.replace(SPLIT_FIELD, self.file_split)).expanduser()
        if not path.is_file():
            each = f": {SPLIT_FIELD} needs a file for every split read" if is_for_all else ""
            raise InputError(
                f"RATIONALES is {self.config.rationales!r}, but {path} does not exist. Correct "
                f"RATIONALES{each}."
            )
        return [path]

    def augmentation(self) -> tuple[FileExamples, dict[str, Parsed]]:
        """The examples of AUGMENT, and example id -> what their teacher wrote."""
        if not self.config.augment_path:
            source = SOURCES[self.config.augment]
            file = self.read(source, "train")
            outputs = self._read_released(source, "train", file)
            return file, {key: output.annotation for key, output in outputs.items()}
        skipped: list[str] | None = [] if self.config.skip_bad_rows else None
        others = [*self.examples, *self.validation]
        examples, annotations = read_added(
            self._augment_file(),
            {example.id for example in others},
            self.label_set,
            not self.label_set and any(example.choices for example in others),
            self.config.metric,
            skipped,
        )
        return FileExamples(examples, len(skipped or ())), dict(annotations)

    def annotations(self, refuse_hinted: bool = True) -> dict[str, Parsed]:
        """Id of an example of `file` -> what its teacher wrote, or what the user's file says.

        Raises:
            InputError: also, with `refuse_hinted`, where the rationale of an example of validation
                or test was written with its gold label given.
        """
        files = self.rationale_files()
        if not files:
            return self._teacher()
        evaluated = self.evaluated_ids() if refuse_hinted and self.split != "train" else ()
        file = self.file
        lines = read_rationales(files[0], file.examples, self.file_split, file.skipped, evaluated)
        if self.split != "train" or any(line.label for line in lines.values()):
            return dict(lines)
        if WRONG in self.config.triage:
            raise InputError(
                f"{files[0]}: no line has a label, but TRIAGE contains {WRONG!r}. Add the "
                "teacher's labels, or remove it from TRIAGE."
            )
        if self.config.labels == "gold":
            return dict(lines)
        if self.config.dataset in OWN:
            raise InputError(
                f"{files[0]}: no line has a label, but LABELS is 'teacher' and DATASET "
                f"{self.config.dataset!r} has no other teacher. Add labels, or set LABELS='gold'."
            )
        return {
            key: dataclasses.replace(annotation, rationale=lines[key].rationale)
            for key, annotation in self._teacher().items()
            if key in lines
        }

    @functools.cached_property
    def released(self) -> dict[str, ReleasedOutput]:
        """Id of an example of `file` -> the release's output; empty where none is read."""
        return self._read_released(self.source, self.file_split, self.file)

    def _teacher(self) -> dict[str, Parsed]:
        """The released outputs, or the source's explanations where the source is the teacher."""
        if self.source.teacher_format:
            return {key: output.annotation for key, output in self.released.items()}
        return {
            e.id: Annotation(e.id, e.explanation or "", e.label or "") for e in self.file.examples
        }

    def _read_released(
        self, source: Source, split: str, file: FileExamples
    ) -> dict[str, ReleasedOutput]:
        """The release's teacher outputs; a training run that needs them must have them."""
        if not self.reads_teacher or not source.teacher_format:
            return {}
        outputs = read_released(source, self.data_dir, split, file.examples, file.rows)
        optional = self.split != "train" or (
            source.name == "asdiv" and self.config.labels == "gold"
        )
        if not outputs and not optional:
            path = self.data_dir / source.folder / "llm" / f"{release_split(split)}_CoT_0.json"
            raise InputError(
                f"{path}: no such file, but LABELS={self.config.labels!r} and "
                f"RATIONALES={self.config.rationales!r} need teacher outputs for {source.name!r}. "
                "Supply JSON lists of strings in row order, or set LABELS='gold' and "
                "RATIONALES='none'."
            )
        return outputs

    def _augment_file(self) -> epath.Path:
        path = epath.Path(self.config.augment_path).expanduser()
        if not path.is_file():
            raise InputError(
                f"AUGMENT is {self.config.augment!r}, but {path} does not exist. Correct AUGMENT."
            )
        return path

    def _options(self) -> Options:
        config = self.config
        return Options(config.data_seed, config.columns, self._needs_rationales)

    def _require(self, source: Source, split: str) -> None:
        """Refuses a split that the data set lacks, or one whose file is missing."""
        splits = self.splits if source is self.source else source.splits
        is_own = source.name in OWN
        if split not in splits:
            empty = f"{split.upper()}_FILE is empty: " if is_own else ""
            raise InputError(
                f"{empty}DATASET {source.name!r} has no split {split!r}, only "
                f"{', '.join(splits) or 'none'}. {_remedy(split, is_own)}."
            )
        for path in source.files(self.data_dir, split, self._options()):
            if path.is_file():
                continue
            if is_own:
                raise InputError(
                    f"{split.upper()}_FILE: {path} does not exist. "
                    f"Correct {split.upper()}_FILE or DATA_DIR."
                )
            complete = [
                other
                for other in splits
                if all(f.is_file() for f in source.files(self.data_dir, other, self._options()))
            ]
            raise InputError(
                f"{path}: no such file; DATA_DIR has {' and '.join(complete) or 'no split'} of "
                f"{source.name!r}. Run `python -m launch.prepare --download "
                f"--datasets={source.name} --data_dir={self.data_dir}`, or set TRAIN_SPLIT."
            )


def _remedy(split: str, is_own: bool) -> str:
    """What to set where a data set lacks `split`; macros name the files of a user's own data."""
    if split == "test":
        remedy = "remove 'test' from EVAL_SPLITS"
    else:
        remedy = f"set TRAIN_SPLIT={'validation' if split == 'train' else 'train'!r}"
    if is_own:
        return f"Set {split.upper()}_FILE, or {remedy}"
    return f"{remedy[0].upper()}{remedy[1:]}, or supply the file"


def find_data_dir(config: DataConfig, source: Source) -> epath.Path:
    """The folder that a data set's files lie in.

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
