"""Examples joined to rationales and labels by id: what a student trains on or is scored on.

`read.SplitReader` reads the files; this module decides what becomes of each example and counts
every decision in a `JoinReport`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping

from stepdistill_jax.data import equation, triage
from stepdistill_jax.data import parse as parser
from stepdistill_jax.data.config import FILE_PREFIX, DataConfig
from stepdistill_jax.data.read import FileExamples, SplitReader
from stepdistill_jax.data.sources import SOURCES, ColumnConfig
from stepdistill_jax.data.sources.base import SPLITS
from stepdistill_jax.data.subsets import derange, take_fraction, without
from stepdistill_jax.data.teacher_outputs import Parsed
from stepdistill_jax.data.triage import Verdict
from stepdistill_jax.records import Annotation, Example, Pair, ParseFailure
from stepdistill_jax.spec import InputError

__all__ = ["ColumnConfig", "DataConfig", "JoinReport", "load_pairs", "source_fingerprint"]

# Increase it whenever the same files and configuration would give other pairs.
VERSION = 1


@dataclasses.dataclass
class JoinReport:
    """What became of every row; ``rows == kept + skipped + sum(dropped.values())``.

    Attributes:
        rows: rows of the files that the split is made from.
        kept: pairs returned.
        dropped: reason -> examples left out on purpose.
        skipped: bad rows, under SKIP_BAD_ROWS.
        repaired: labels of the teacher that needed repair, among the examples considered.
        failures: reason -> teacher outputs without a usable label, likewise.
        no_rationale: reason -> kept pairs without a rationale.
        shuffled_same: examples to which the shuffle, done before FRACTION cuts, deals a rationale
            equal to their own.
        triage: `triage.Tally.counts`.
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    skipped: int = 0
    repaired: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    no_rationale: Counter[str] = dataclasses.field(default_factory=Counter)
    shuffled_same: int = 0
    triage: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """The counts alone, flat, for a manifest or a table."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            **{f"dropped: {reason}": count for reason, count in sorted(self.dropped.items())},
            "skipped": self.skipped,
            "repaired": self.repaired,
            **{f"failed: {reason}": count for reason, count in sorted(self.failures.items())},
            **{f"no rationale: {r}": count for r, count in sorted(self.no_rationale.items())},
            "shuffled_same": self.shuffled_same,
            **self.triage,
        }


def load_pairs(config: DataConfig, split: str) -> tuple[list[Pair], JoinReport]:
    """The pairs of ``train``, ``validation`` or ``test``, in file order.

    Train is TRAIN_SPLIT without the examples whose input is in validation, then cut to FRACTION:
    the same examples whatever LABELS, RATIONALES and TRIAGE are. With LABELS=teacher, those whose
    teacher output has no usable label are then dropped, and those of which TRIAGE leaves nothing.
    Validation and test keep every example that has a gold label.

    Raises:
        InputError: a file is missing or malformed, or nothing is left.
    """
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}.")
    reader = SplitReader(config, split)
    join = _Join(config, split)
    pairs = join.train(reader) if split == "train" else join.evaluation(reader)
    report = join.report
    report.kept, report.dropped = len(pairs), +report.dropped
    if not pairs:
        raise InputError(
            f"DATASET={config.dataset!r} has nothing left for {split}: of {report.rows} rows "
            f"{dict(report.dropped)} were dropped and {report.skipped} skipped. Change the "
            "setting behind the largest of these counts."
        )
    has_rationale = any(pair.rationale for pair in pairs)
    if split == "train" and config.rationales != "none" and not has_rationale:
        passing = f" that passes TRIAGE={config.triage}" if config.triage else ""
        raise InputError(
            f"RATIONALES is {config.rationales!r} but none of the {len(pairs)} training examples "
            f"of {config.dataset!r} has a rationale{passing}. Set RATIONALES='none', or name "
            "another source of rationales."
        )
    return pairs, report


def source_fingerprint(config: DataConfig, split: str) -> str:
    """A sha256 that changes whenever `load_pairs` could return something else.

    Hashes the settings that matter for `split` and the bytes of the files, without parsing them.
    DATA_DIR itself is left out: a moved folder is the same data.

    Raises:
        InputError: a file is missing.
    """
    reader = SplitReader(config, split)
    settings = dataclasses.asdict(config)
    ignored = {"data_dir"}
    if split != "train":
        ignored |= {"labels", "fraction", "augment"}
    if split != "train" or not config.triage:
        ignored |= {"triage", "triage_weight"}
    for name in ignored:
        del settings[name]
    if split == "test":
        del settings["train_split"]
    if config.rationales.startswith(FILE_PREFIX):
        settings["rationales"] = FILE_PREFIX
    elif config.rationales == "shuffled" and split != "train":
        settings["rationales"] = "teacher"
    if split == "train" and config.augment_path:
        settings["augment"] = FILE_PREFIX
    if "triage" in settings:
        settings["triage_version"] = triage.VERSION
    sources = [reader.source.version, SOURCES["asdiv"].version]
    versions = [VERSION, parser.VERSION, equation.VERSION, *sources]
    digest = hashlib.sha256(json.dumps([versions, split, settings], default=str).encode())
    for path in reader.files():
        digest.update(f"\n{path.name}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class _Join:
    """Makes pairs and counts what it decides in `report`."""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config = config
        self.split = split
        self.report = JoinReport()
        self.tally = triage.Tally(config.triage)

    def train(self, reader: SplitReader) -> list[Pair]:
        """Carve, augment, judge and deal rationales, cut to FRACTION, join: in this order."""
        config, report = self.config, self.report
        self.count_rows(reader.file)
        if config.labels == "gold":
            reader.gold(reader.file.examples, "LABELS is 'gold'")
        annotations = reader.annotations()
        examples = list(reader.examples)
        reason = "carved off for validation" if reader.carves else "input is in validation"
        report.dropped[reason] = len(reader.file.examples) - len(examples)
        if config.augment:
            added, added_annotations = reader.augmentation()
            self.count_rows(added)
            examples += self.unseen(reader, added.examples)
            annotations |= added_annotations
        rationales = {e.id: self.rationale(e, annotations.get(e.id)) for e in examples}
        verdicts = {e.id: self.judge(e, annotations.get(e.id), rationales[e.id]) for e in examples}
        rationales |= {key: None for key, v in verdicts.items() if not v.rationale_weight}
        if config.rationales == "shuffled":
            rationales = self.shuffle(rationales)
        chosen = take_fraction(examples, config.fraction, config.data_seed)
        report.dropped["outside FRACTION"] = len(examples) - len(chosen)
        pairs = [
            self.train_pair(e, annotations.get(e.id), rationales[e.id], verdicts[e.id])
            for e in chosen
        ]
        report.triage = self.tally.counts()
        return [pair for pair in pairs if pair is not None]

    def evaluation(self, reader: SplitReader) -> list[Pair]:
        """Every example with a gold label."""
        report = self.report
        self.count_rows(reader.file)
        annotations = reader.annotations()
        examples = reader.examples
        report.dropped["left in train"] = len(reader.file.examples) - len(examples)
        labelled = reader.gold(examples, f"{self.split} is scored by it")
        report.dropped["no gold label"] = len(examples) - len(labelled)
        pairs = []
        for example in labelled:
            annotation = annotations.get(example.id)
            self.count_annotation(annotation)
            rationale = self.rationale(example, annotation)
            pairs.append(self.pair(example, example.label, rationale, annotation, Verdict()))
        return pairs

    def count_rows(self, file: FileExamples) -> None:
        self.report.rows += file.rows
        self.report.skipped += file.skipped

    def unseen(self, reader: SplitReader, examples: list[Example]) -> list[Example]:
        """Those of `examples` whose input is in neither evaluation split."""
        for split, others in (("validation", reader.validation), ("test", reader.test)):
            kept = without(examples, others)
            self.report.dropped[f"input is in {split}"] += len(examples) - len(kept)
            examples = kept
        return examples

    def rationale(self, example: Example, annotation: Parsed | None) -> str | None:
        """The rationale that RATIONALES selects; never counted here."""
        if self.config.rationales == "none":
            return None
        if self.config.rationales != "human":
            return (annotation.rationale or None) if annotation else None
        is_error = self.split == "train" and not self.config.skip_bad_rows
        if example.explanation is None and is_error:
            raise InputError(
                f"{example.where}: no human rationale (id {example.id}), but RATIONALES is "
                "'human'. Fix the row, or set SKIP_BAD_ROWS=True to train on its label alone."
            )
        return example.explanation

    def judge(self, example: Example, annotation: Parsed | None, rationale: str | None) -> Verdict:
        """What TRIAGE decides about an example; never counted here."""
        config = self.config
        trains_teacher_label = config.labels == "teacher"
        if not config.triage or (rationale is None and not trains_teacher_label):
            return Verdict()
        teacher_label = annotation.label if isinstance(annotation, Annotation) else None
        reasons = triage.caught(
            config.triage,
            config.metric,
            rationale=rationale,
            teacher_label=teacher_label,
            gold=example.label,
            target=teacher_label if trains_teacher_label else example.label,
        )
        wrong_label = trains_teacher_label and triage.WRONG in reasons
        # A human's rationale is for the gold label, whatever the teacher's label is.
        of_rationale = [r for r in reasons if r != triage.WRONG or config.rationales != "human"]
        return Verdict(
            judged=True,
            reasons=reasons,
            label_weight=config.triage_weight if wrong_label else 1.0,
            rationale_weight=config.triage_weight if of_rationale else 1.0,
        )

    def shuffle(self, rationales: Mapping[str, str | None]) -> dict[str, str | None]:
        """Deals each rationale to another example."""
        ids = [key for key, text in rationales.items() if text]
        dealt = derange(ids, self.config.data_seed)
        self.report.shuffled_same = sum(rationales[a] == rationales[b] for a, b in dealt.items())
        return {key: rationales[dealt[key]] if text else None for key, text in rationales.items()}

    def train_pair(
        self,
        example: Example,
        annotation: Parsed | None,
        rationale: str | None,
        verdict: Verdict,
    ) -> Pair | None:
        """The example with its targets, or None, counted, where nothing can be trained on."""
        self.count_annotation(annotation)
        dropped = self.report.dropped
        label = example.label
        if self.config.labels == "teacher":
            if not isinstance(annotation, Annotation) or not annotation.label:
                reason = annotation.reason if isinstance(annotation, ParseFailure) else "no output"
                dropped[f"no teacher label: {reason}"] += 1
                return None
            label = annotation.label if verdict.label_weight else None
        self.tally.add(verdict, example.label)
        if label is not None or rationale is not None:
            return self.pair(example, label, rationale, annotation, verdict)
        if verdict.reasons:
            dropped["TRIAGE leaves nothing"] += 1
        elif self.config.augment_path:
            dropped["added without a rationale"] += 1
        elif self.config.skip_bad_rows:
            dropped["neither label nor rationale"] += 1
        else:
            raise InputError(
                f"{example.where}: {example.id} has neither a label nor a rationale. Supply "
                "teacher outputs (for ASDiv asdiv/llm/train_CoT_0.json, a JSON list of strings "
                "in the order of the problems), or set SKIP_BAD_ROWS=True to leave it out."
            )
        return None

    def count_annotation(self, annotation: Parsed | None) -> None:
        if isinstance(annotation, ParseFailure):
            self.report.failures[annotation.reason] += 1
        elif annotation is not None:
            self.report.repaired += annotation.repaired

    def pair(
        self,
        example: Example,
        label: str | None,
        rationale: str | None,
        annotation: Parsed | None,
        verdict: Verdict,
    ) -> Pair:
        if rationale is None and self.config.rationales != "none":
            reason = "none given"
            if not verdict.rationale_weight:
                reason = "dropped by TRIAGE"
            elif isinstance(annotation, ParseFailure) and self.config.rationales != "human":
                reason = f"teacher output: {annotation.reason}"
            self.report.no_rationale[reason] += 1
        return Pair(
            id=example.id,
            input=example.input,
            label=label or "",
            gold=example.label,
            rationale=rationale,
            choices=example.choices,
            label_weight=0.0 if label is None else verdict.label_weight,
            rationale_weight=0.0 if rationale is None else verdict.rationale_weight,
        )
