"""Reads a data set, split by split, into the numbers of `audit`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from etils import epath

from stepdistill_jax.data import audit, inputs, join, lost_text, release, triage
from stepdistill_jax.data.audit import Lengths, SplitAudit, TeacherAudit
from stepdistill_jax.data.config import DATA_DIR_VARIABLE, DataConfig, TokenConfig
from stepdistill_jax.data.read import SplitReader
from stepdistill_jax.data.sources import SOURCES, Options, Source
from stepdistill_jax.data.sources.base import SPLITS, release_split
from stepdistill_jax.data.teacher_outputs import Parsed, output_files, read_released
from stepdistill_jax.data.vocabulary import ENVIRONMENT, Vocabulary, load_vocabulary
from stepdistill_jax.records import Annotation, Example, Pair, ParseFailure
from stepdistill_jax.spec import LABEL, RATIONALE, InputError

# The data sets of the release and ASDiv, in the order of the paper.
RELEASED = ("esnli", "anli", "cqa", "svamp", "asdiv")

# The column of the validation split that training takes from train where a release has none.
CARVED = "validation, carved"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """How texts become tokens: prefixes, limits, and the vocabulary of ``config.vocabulary``."""

    config: TokenConfig
    vocabulary: Vocabulary


def tokenizer(config: TokenConfig, flag: str) -> Tokenizer | None:
    """The tokenizer of --vocabulary (`flag`), else of `config`; None where neither names one.

    Raises:
        InputError: the vocabulary cannot be loaded.
    """
    name = flag or config.vocabulary or os.environ.get(ENVIRONMENT, "")
    if not name:
        return None
    loaded = load_vocabulary(flag, "--vocabulary") if flag else load_vocabulary(config.vocabulary)
    return Tokenizer(dataclasses.replace(config, vocabulary=name), loaded)


@dataclasses.dataclass(frozen=True)
class _Texts:
    """The texts of one split, in row order; None where an example has none.

    Attributes:
        labels: the gold labels.
        targets: the labels to train on.
        choices: empty where labels are free.
        own_labels: those of the rationales' writers; None where they are unknown.
    """

    inputs: Sequence[str]
    labels: Sequence[str | None]
    targets: Sequence[str | None]
    rationales: Sequence[str | None]
    choices: Sequence[tuple[str, ...]]
    own_labels: Sequence[str | None] | None = None


def survey_release(
    data_dir: str,
    datasets: Sequence[str],
    download: bool | None,
    tokens: Tokenizer | None,
) -> list[SplitAudit]:
    """Fetches data sets as `choose` says, and measures each with `survey_released`.

    Args:
        data_dir: "" = the environment's STEPDISTILL_DATA_DIR, else the cache folder.
        datasets, download: see `choose`.
        tokens: None = tokens are not counted.

    Raises:
        InputError: a download fails, or a file is damaged.
    """
    data_dir = data_dir or os.environ.get(DATA_DIR_VARIABLE, "") or str(release.default_folder())
    datasets, folders = choose(data_dir, datasets, download)
    release.download(data_dir, folders)
    audits = (survey_released(data_dir, name, tokens) for name in datasets)
    return [column for of_one in audits for column in of_one]


def choose(
    data_dir: epath.PathLike, names: Sequence[str], download: bool | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(data sets to measure, folders of the release to fetch first).

    Args:
        data_dir: the folder; it need not exist yet.
        names: of `RELEASED`; empty = those in `data_dir`, or all where there is none.
        download: fetch every missing file, none, or (None) only data sets that have no file yet.

    Raises:
        InputError: an unknown name, or no data set and no download.
    """
    if unknown := [name for name in names if name not in RELEASED]:
        raise InputError(
            f"--datasets: got {','.join(unknown)}, expected some of {','.join(RELEASED)}."
        )
    present = tuple(
        name
        for name in RELEASED
        if any(check.state != release.MISSING for check in _checks(data_dir, name))
    )
    if download is False and not present:
        raise InputError(
            f"{data_dir}: contains none of {', '.join(RELEASED)}. Pass another --data_dir, or "
            "leave out --nodownload."
        )
    datasets = tuple(names) or present or RELEASED
    if download is False:
        return datasets, ()
    fetched = datasets if download else tuple(name for name in datasets if name not in present)
    return datasets, tuple(SOURCES[name].folder for name in fetched)


def survey_released(
    data_dir: epath.PathLike, dataset: str, tokens: Tokenizer | None
) -> list[SplitAudit]:
    """One column a split of the release, and one for the validation that is carved from train.

    A split without its file is a column of missing files.

    Raises:
        InputError: a file is damaged (``file:line``), or teacher outputs do not fit their examples.
    """
    data_dir, source = epath.Path(data_dir), SOURCES[dataset]
    checks = _checks(data_dir, dataset)
    surveyed: dict[str, _Texts] = {}
    audits = []
    for split in (split for split in SPLITS if split in source.splits):
        of_split = [check for check in checks if _is_of(check.path, source, split)]
        column = SplitAudit(
            dataset,
            split,
            missing=tuple(check.path for check in of_split if check.state == release.MISSING),
            differs=tuple(check.path for check in of_split if check.state == release.DIFFERS),
        )
        if all(path.exists() for path in source.files(data_dir, split, Options())):
            examples = source.load(data_dir, split, Options())
            texts, teacher = _annotated(data_dir, source, split, examples)
            column = _measured(column, texts, surveyed, source.metric, tokens)
            column = dataclasses.replace(column, teacher=teacher)
            surveyed[split] = texts
        audits.append(column)
    if {"train", "test"} <= surveyed.keys() and "validation" not in source.splits:
        audits.append(_carved(data_dir, dataset, tokens))
    return audits


def survey_pairs(
    config: DataConfig,
    tokens: Tokenizer | None,
    max_decode_length: int = 0,
    *,
    scores_choices: bool = False,
) -> list[SplitAudit]:
    """One column a split that `config` describes, as training sees it.

    Labels of more than `max_decode_length` tokens are counted, unless that is 0. With
    `scores_choices` (EVAL_MODE=choices), labels with equal tokens are refused.

    Splits that the data set lacks are left out. A teacher is measured where RATIONALES names its
    file.

    Raises:
        InputError: the configuration or a file is wrong.
    """
    surveyed: dict[str, _Texts] = {}
    audits = []
    readers = [SplitReader(config, split) for split in SPLITS]
    splits = [reader.split for reader in readers if reader.file_split in reader.splits]
    # Where there is none, the error of reading the first names the setting.
    for split in splits or SPLITS[:1]:
        pairs, report = join.load_pairs(config, split)
        counts, judged = triage.split_counts(report.counts())
        counts = {what: n for what, n in counts.items() if n and what != "kept"}
        counts["rows read"] = counts.pop("rows")
        if tokens and max_decode_length:
            longer = [
                p for p in pairs if len(tokens.vocabulary.encode(p.label)) >= max_decode_length
            ]
            counts["labels longer than MAX_DECODE_LENGTH, never right"] = len(longer)
        column = SplitAudit(
            config.dataset,
            split,
            decisions=counts,
            triage=triage.yields(judged),
            teacher=_teacher_of_file(config, split),
        )
        texts = _of_pairs(pairs)
        column = _measured(column, texts, surveyed, config.metric, tokens, scores_choices)
        audits.append(column)
        surveyed[split] = texts
    return audits


def _checks(data_dir: epath.PathLike, dataset: str) -> list[release.FileCheck]:
    return release.check(data_dir, [SOURCES[dataset].folder])


def _is_of(path: str, source: Source, split: str) -> bool:
    """Whether a file of the release belongs to a split: by its name, or as the only split."""
    name, word = path.split("/")[-1], release_split(split)
    return name.startswith((f"{source.folder}_{word}.", f"{word}_CoT_")) or len(source.splits) == 1


def _annotated(
    data_dir: epath.Path, source: Source, split: str, examples: list[Example]
) -> tuple[_Texts, TeacherAudit | None]:
    """The split's texts, and how good its released teacher outputs are."""
    inputs = [example.input for example in examples]
    golds = [example.label for example in examples]
    choices = [example.choices for example in examples]
    released = read_released(source, data_dir, split, examples, len(examples))
    if not released:
        return _Texts(inputs, golds, golds, [None] * len(examples), choices), None
    outputs = [released[example.id] for example in examples]
    annotations = [output.annotation for output in outputs]
    labels = [a.label if isinstance(a, Annotation) else None for a in annotations]
    published = [output.published_label for output in outputs]
    teacher = audit.audit_teacher(golds, annotations, published, source.metric)
    rationales = [a.rationale for a in annotations]
    return _Texts(inputs, golds, golds, rationales, choices, labels), teacher


def _carved(data_dir: epath.Path, dataset: str, tokens: Tokenizer | None) -> SplitAudit:
    """The validation split that training takes from train by default, against the rest of train."""
    # The carve does not depend on RATIONALES, but training requires the teacher's outputs.
    has_outputs = bool(output_files(SOURCES[dataset], data_dir, "train"))
    rationales = "teacher" if has_outputs else "none"
    config = DataConfig(dataset=dataset, data_dir=str(data_dir), rationales=rationales)
    rest, validation = (
        _of_pairs(join.load_pairs(config, split)[0]) for split in ("train", "validation")
    )
    column = SplitAudit(dataset, CARVED)
    return _measured(column, validation, {"the rest of train": rest}, config.metric, tokens)


def _of_pairs(pairs: Sequence[Pair]) -> _Texts:
    return _Texts(
        [pair.input for pair in pairs],
        [pair.gold for pair in pairs],
        [pair.label for pair in pairs],
        [pair.rationale for pair in pairs],
        [pair.choices for pair in pairs],
    )


def _teacher_of_file(config: DataConfig, split: str) -> TeacherAudit | None:
    """How good the labels in a file of RATIONALES are on a split, before any is dropped.

    A hinted label is the gold one and counts as wrong: a hint follows a wrong label. None where
    there is no file, or no label in it.
    """
    reader = SplitReader(config, split)
    if not reader.rationale_files():
        return None
    annotations = reader.annotations()
    (examples,) = inputs.load(config, (split,), "").values()
    annotated = [example for example in examples if example.id in annotations]
    unaided = [_unaided(annotations[example.id]) for example in annotated]
    if not any(isinstance(annotation, Annotation) for annotation in unaided):
        return None
    return audit.audit_teacher([e.label for e in annotated], unaided, None, config.metric)


def _unaided(annotation: Parsed) -> Parsed:
    """The annotation without its hint."""
    if isinstance(annotation, ParseFailure) or (annotation.label and not annotation.hinted):
        return annotation
    reason = "asked again with a hint" if annotation.hinted else "no label"
    return ParseFailure(annotation.id, reason, annotation.rationale, "")


def _measured(
    column: SplitAudit,
    texts: _Texts,
    others: Mapping[str, _Texts],
    metric: str,
    tokens: Tokenizer | None,
    scores_choices: bool = False,
) -> SplitAudit:
    """`column` with all numbers of its texts alone; `others` are the splits to compare with."""
    if tokens:
        column = _with_lost_text(column, texts, metric, tokens, scores_choices)
    written = [place for place, text in enumerate(texts.rationales) if text and text.strip()]

    def stated(labels: Sequence[str | None]) -> int:
        return sum(
            audit.states(texts.rationales[place] or "", labels[place] or "", metric)
            for place in written
        )

    return dataclasses.replace(
        column,
        rows=len(texts.inputs),
        commonest=audit.commonest(texts.labels),
        duplicates=audit.duplicates(texts.inputs),
        overlaps={
            split: audit.overlap(texts.inputs, other.inputs) for split, other in others.items()
        },
        rationales=len(written),
        states_gold=stated(texts.labels),
        states_own=None if texts.own_labels is None else stated(texts.own_labels),
        lengths=_lengths(texts, tokens) if tokens else {},
    )


def _with_lost_text(
    column: SplitAudit, texts: _Texts, metric: str, tokens: Tokenizer, scores_choices: bool
) -> SplitAudit:
    """`column` with what its texts lose as tokens, and warnings about it and rows left out.

    Raises:
        InputError: `scores_choices`, and two labels have the same tokens.
    """
    rows = zip(texts.inputs, texts.targets, texts.rationales, texts.choices, strict=True)
    lost = lost_text.of_texts(rows, metric, tokens.config, tokens.vocabulary)
    if scores_choices:
        lost_text.refuse_equal_choices(lost, column.split)
    limit = tokens.config.max_label_length
    decisions = {**column.decisions, "rows": column.decisions.get("rows read", 0)}
    warnings = lost_text.warnings(lost, column.split, decisions, limit, decodes=not scores_choices)
    return dataclasses.replace(column, lost=lost.counts(), warnings=tuple(warnings))


def _lengths(texts: _Texts, tokens: Tokenizer) -> dict[str, Lengths]:
    """Tokens of the four features, of the examples that have them: prefix, text and EOS."""
    prefixes = tokens.config.prefix_texts()
    features = {
        "label_inputs": [prefixes[LABEL] + text for text in texts.inputs],
        "label_targets": [text for text in texts.labels if text],
        "rationale_inputs": [prefixes[RATIONALE] + text for text in texts.inputs],
        "rationale_targets": [text for text in texts.rationales if text],
    }
    encode = tokens.vocabulary.encode
    return {
        feature: audit.audit_lengths([len(encode(text)) + 1 for text in features[feature]], limit)
        for feature, limit in tokens.config.feature_lengths().items()
        if features[feature]
    }


def notes(audits: Sequence[SplitAudit], tokens: Tokenizer | None) -> str:
    """What the table's numbers mean and how to fill gaps, for printing below it."""
    teachers = [column.teacher for column in audits if column.teacher]
    lines = ["Inputs that differ only in case and white space count as equal."]
    if any(teacher.release_accuracy is not None for teacher in teachers):
        lines.append(
            "Accuracies are shares of the examples with a gold label; after repair a parse failure "
            "counts as wrong."
        )
    elif teachers:
        lines.append(
            "Teacher accuracy is over the examples in its file that have a gold label; a missing "
            "or hinted label counts as wrong."
        )
    if any(column.commonest for column in audits):
        lines.append(
            "Most frequent label: its share of the examples with a gold label. On test this is the "
            "accuracy of always predicting it. Omitted where labels are free text."
        )
    if any(column.triage for column in audits):
        lines.append(
            "Triage: of the training examples that can be judged, those that pass each filter "
            "alone, and all of them. The others are dropped, or weighted by TRIAGE_WEIGHT."
        )
    if any(column.split == CARVED for column in audits):
        lines.append(f"{CARVED.capitalize()}: what a run with DATA_SEED=0 validates on.")
    if any(column.missing for column in audits):
        lines.append(
            "Missing files: --download fetches them. Where only train is missing, "
            "TRAIN_SPLIT='validation' trains without it."
        )
    if tokens is None:
        lines.append(
            f"Tokens were not counted: no vocabulary. Pass --vocabulary=PATH or set {ENVIRONMENT}."
        )
    else:
        label, rationale = tokens.config.prefix_texts().values()
        lines.append(
            f"Tokens are those of {tokens.config.vocabulary}, including the prefixes {label!r} and "
            f"{rationale!r} and EOS."
        )
    lines += [f"Warning, {column.dataset}: {text}" for column in audits for text in column.warnings]
    return "\n".join(lines)
