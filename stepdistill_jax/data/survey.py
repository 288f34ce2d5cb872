"""Reads a data set, split by split, into the numbers of `audit`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from stepdistill_jax.data import audit, inputs, join, release, triage
from stepdistill_jax.data.audit import Lengths, SplitAudit, TeacherAudit
from stepdistill_jax.data.config import DataConfig, TokenConfig
from stepdistill_jax.data.parse import parse_release
from stepdistill_jax.data.read import Reader
from stepdistill_jax.data.sources import SOURCES, Options, Source
from stepdistill_jax.data.sources.base import SPLITS, release_split, row_number
from stepdistill_jax.data.teacher_outputs import (
    Parsed,
    load_annotations,
    output_files,
    read_outputs,
)
from stepdistill_jax.data.vocabulary import ENVIRONMENT, Vocabulary
from stepdistill_jax.records import Annotation, Example, Pair, ParseFailure
from stepdistill_jax.spec import LABEL, RATIONALE, InputError

# The data sets of the release and ASDiv, in the order of the paper.
RELEASED = ("esnli", "anli", "cqa", "svamp", "asdiv")

# The column of the validation split that training takes from train where a release has none.
CARVED = "validation, carved"

# (metric, prediction, gold) -> whether it is right: `eval.metrics.correct`, which lies beside this
# package and is handed in.
Correct = Callable[[str, str, str], bool]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """How texts become tokens.

    Attributes:
        config: prefixes and limits.
        vocabulary: of `config.vocabulary`.
    """

    config: TokenConfig
    vocabulary: Vocabulary


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The texts of one split, in row order; None where a row has none.

    `own_labels` are those that the writers of the rationales gave; None where nothing is known.
    """

    inputs: Sequence[str]
    labels: Sequence[str | None]
    rationales: Sequence[str | None]
    own_labels: Sequence[str | None] | None


def present(data_dir: epath.PathLike) -> tuple[str, ...]:
    """The data sets of `RELEASED` of which any file lies in `data_dir`."""
    return tuple(
        name
        for name in RELEASED
        if any(check.state != release.MISSING for check in _checks(data_dir, name))
    )


def choose(
    data_dir: epath.PathLike, wanted: Sequence[str], download: bool | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which data sets to look at, and which folders of the release to fetch before.

    Args:
        data_dir: the folder; it need not exist yet.
        wanted: names of `RELEASED`; empty = those in `data_dir`, or all where there is none.
        download: fetch whatever the data sets lack, never, or (None) only data sets of which no
            file is there.

    Raises:
        InputError: an unknown name, or nothing there and nothing to be fetched.
    """
    if unknown := [name for name in wanted if name not in RELEASED]:
        raise InputError(f"--datasets={','.join(unknown)}: expected some of {','.join(RELEASED)}")
    there = present(data_dir)
    if download is False and not there:
        raise InputError(
            f"{data_dir}: none of {', '.join(RELEASED)} lies there; name another --data_dir, or "
            "leave out --nodownload"
        )
    datasets = tuple(wanted) or there or RELEASED
    fetched = datasets if download else tuple(name for name in datasets if name not in there)
    if download is False:
        fetched = ()
    return datasets, tuple(SOURCES[name].folder for name in fetched)


def survey_released(
    data_dir: epath.PathLike, dataset: str, tokens: Tokens | None, correct: Correct
) -> list[SplitAudit]:
    """One column a split of the release, and one for the validation that is carved from train.

    A split whose file is not there is a column that says so.

    Raises:
        InputError: a file is damaged (``file:line``), or teacher outputs do not fit their rows.
    """
    data_dir, source = epath.Path(data_dir), SOURCES[dataset]
    checks = _checks(data_dir, dataset)
    known: dict[str, _Rows] = {}
    audits = []
    for split in (split for split in SPLITS if split in source.splits):
        of_split = [check for check in checks if _is_of(check.path, source, split)]
        audit_ = SplitAudit(
            dataset,
            split,
            missing=tuple(check.path for check in of_split if check.state == release.MISSING),
            differs=tuple(check.path for check in of_split if check.state == release.DIFFERS),
        )
        if all(path.exists() for path in source.files(data_dir, split, Options())):
            examples = source.load(data_dir, split, Options())
            rows, teacher = _taught(data_dir, source, split, examples, correct)
            audit_ = _measured(audit_, rows, known, source.metric, tokens)
            audit_ = dataclasses.replace(audit_, teacher=teacher)
            known[split] = rows
        audits.append(audit_)
    if {"train", "test"} <= known.keys() and "validation" not in source.splits:
        audits.append(_carved(data_dir, dataset, source.metric, tokens))
    return audits


def survey_pairs(config: DataConfig, tokens: Tokens | None, correct: Correct) -> list[SplitAudit]:
    """One column a split that `config` describes, as training would see it.

    Splits that the data set lacks are left out. A teacher is measured where RATIONALES names a file
    of it.

    Raises:
        InputError: the configuration or a file is wrong.
    """
    known: dict[str, _Rows] = {}
    audits = []
    readers = [Reader(config, split) for split in SPLITS]
    there = [reader.split for reader in readers if reader.file_split in reader.splits]
    # Where there is none at all, reading the first says what to set.
    for split in there or SPLITS[:1]:
        pairs, report = join.load_pairs(config, split)
        rows = _of_pairs(pairs)
        counts, judged = triage.split_counts(report.counts())
        counts = {what: n for what, n in counts.items() if n and what != "kept"}
        counts["rows read"] = counts.pop("rows")
        lines = triage.yields(judged)
        teacher = _of_file(config, split, correct)
        audit_ = SplitAudit(config.dataset, split, decisions=counts, triage=lines, teacher=teacher)
        audits.append(_measured(audit_, rows, known, _metric(config), tokens))
        known[split] = rows
    return audits


def _checks(data_dir: epath.PathLike, dataset: str) -> list[release.FileCheck]:
    return release.check(data_dir, [SOURCES[dataset].folder])


def _is_of(path: str, source: Source, split: str) -> bool:
    """Whether a file of the release belongs to a split: by its name, or being the only one."""
    name, word = path.split("/")[-1], release_split(split)
    return name.startswith((f"{source.folder}_{word}.", f"{word}_CoT_")) or len(source.splits) == 1


def _taught(
    data_dir: epath.Path, source: Source, split: str, examples: list[Example], correct: Correct
) -> tuple[_Rows, TeacherAudit | None]:
    """The split's texts, and what its released teacher outputs are worth."""
    inputs = [example.input for example in examples]
    golds = [example.label for example in examples]
    parsed = load_annotations(source, data_dir, split, examples, len(examples))
    if not parsed:
        nothing = [None] * len(examples)
        return _Rows(inputs, golds, nothing, None), None
    answers = [parsed[example.id] for example in examples]
    own = [answer.label if isinstance(answer, Annotation) else None for answer in answers]
    raw = [text for path in output_files(source, data_dir, split) for text in read_outputs(path)]
    released = [
        parse_release(source.teacher_format, raw[int(row_number(example.where))])[1]
        for example in examples
    ]
    right = functools.partial(correct, source.metric)
    teacher = audit.audit_teacher(golds, answers, released, right)
    return _Rows(inputs, golds, [answer.rationale for answer in answers], own), teacher


def _carved(data_dir: epath.Path, dataset: str, metric: str, tokens: Tokens | None) -> SplitAudit:
    """The validation split that training takes from train by default, against the rest of train."""
    # The carve does not depend on RATIONALES, and training would refuse to lack the teacher's.
    taught = output_files(SOURCES[dataset], data_dir, "train")
    rationales = "teacher" if taught else "none"
    config = DataConfig(dataset=dataset, data_dir=str(data_dir), rationales=rationales)
    rest, validation = (
        _of_pairs(join.load_pairs(config, split)[0]) for split in ("train", "validation")
    )
    column = SplitAudit(dataset, CARVED)
    return _measured(column, validation, {"the rest of train": rest}, metric, tokens)


def _of_pairs(pairs: Sequence[Pair]) -> _Rows:
    return _Rows(
        [pair.input for pair in pairs],
        [pair.gold for pair in pairs],
        [pair.rationale for pair in pairs],
        None,
    )


def _of_file(config: DataConfig, split: str, correct: Correct) -> TeacherAudit | None:
    """What the labels in a file of RATIONALES are worth on a split's rows, before any is dropped.

    A label that was given as a hint is the gold one: it was asked for since the teacher's own was
    wrong, and counts as that. None where there is no file, or no label in it.
    """
    reader = Reader(config, split)
    if not reader.rationale_files():
        return None
    examples, rows = reader.read(reader.source, reader.file_split)
    found = reader.annotations(examples, rows)
    (own,) = inputs.load(config, (split,), "").values()
    written = [example for example in own if example.id in found]
    answers = [_unaided(found[example.id]) for example in written]
    if not any(isinstance(answer, Annotation) for answer in answers):
        return None
    golds = [example.label for example in written]
    return audit.audit_teacher(golds, answers, None, functools.partial(correct, config.metric))


def _unaided(answer: Parsed) -> Parsed:
    """An answer without its hint."""
    if isinstance(answer, ParseFailure) or (answer.label and not answer.hinted):
        return answer
    reason = "asked again with a hint" if answer.hinted else "no label"
    return ParseFailure(answer.id, reason, answer.rationale, "")


def _metric(config: DataConfig) -> str:
    return config.columns.metric if config.columns else SOURCES[config.dataset].metric


def _measured(
    column: SplitAudit,
    rows: _Rows,
    known: Mapping[str, _Rows],
    metric: str,
    tokens: Tokens | None,
) -> SplitAudit:
    """`column` with all that the texts alone tell; `known` are the splits to compare with."""
    written = [place for place, text in enumerate(rows.rationales) if text and text.strip()]

    def stated(labels: Sequence[str | None]) -> int:
        return sum(
            audit.states(rows.rationales[place] or "", labels[place] or "", metric)
            for place in written
        )

    return dataclasses.replace(
        column,
        rows=len(rows.inputs),
        commonest=audit.commonest(rows.labels),
        duplicates=audit.duplicates(rows.inputs),
        overlaps={
            split: audit.overlap(rows.inputs, other.inputs) for split, other in known.items()
        },
        rationales=len(written),
        states_gold=stated(rows.labels),
        states_own=None if rows.own_labels is None else stated(rows.own_labels),
        lengths=_lengths(rows, tokens) if tokens else {},
    )


def _lengths(rows: _Rows, tokens: Tokens) -> dict[str, Lengths]:
    """Tokens of the four features, of the rows that have them: prefix, text and EOS."""
    prefixes = tokens.config.prefix_texts()
    texts = {
        "label_inputs": [prefixes[LABEL] + text for text in rows.inputs],
        "label_targets": [text for text in rows.labels if text],
        "rationale_inputs": [prefixes[RATIONALE] + text for text in rows.inputs],
        "rationale_targets": [text for text in rows.rationales if text],
    }
    encode = tokens.vocabulary.encode
    return {
        feature: audit.audit_lengths([len(encode(text)) + 1 for text in texts[feature]], limit)
        for feature, limit in tokens.config.feature_lengths().items()
        if texts[feature]
    }


def notes(audits: Sequence[SplitAudit], tokens: Tokens | None) -> str:
    """What the table's numbers mean and what to do about gaps, for printing below it."""
    lines = ["Inputs that differ only in case and white space count as equal."]
    if any(column.teacher and column.teacher.release_accuracy is not None for column in audits):
        lines.append(
            "Accuracies are shares of the rows with a gold label; after repair a parse failure "
            "counts as wrong."
        )
    elif any(column.teacher for column in audits):
        lines.append(
            "Teacher accuracy is over the rows of its file with a gold label; one without a label "
            "of its own counts as wrong."
        )
    if any(column.commonest for column in audits):
        lines.append(
            "Commonest label: its share of the rows with a gold label, which on test is the "
            "accuracy of always guessing it; left out where labels are free text."
        )
    if any(column.triage for column in audits):
        lines.append(
            "Triage: of the training rows with something to judge, those that pass each filter "
            "alone, and all of them; the others are dropped, or weigh TRIAGE_WEIGHT."
        )
    if any(column.split == CARVED for column in audits):
        lines.append(f"{CARVED.capitalize()}: what a run with DATA_SEED=0 validates on.")
    if any(column.missing for column in audits):
        lines.append(
            "Missing files: --download fetches them; where only train is missing, "
            "TRAIN_SPLIT='validation' trains without it."
        )
    if tokens is None:
        lines.append(
            "Tokens were not counted: no vocabulary was given; pass --vocabulary=PATH or set "
            f"{ENVIRONMENT}."
        )
    else:
        label, rationale = tokens.config.prefix_texts().values()
        lines.append(
            f"Tokens are of {tokens.config.vocabulary}, prefixes {label!r} and {rationale!r} and "
            "EOS included."
        )
    return "\n".join(lines)
