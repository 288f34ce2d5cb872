"""Examples joined to rationales and labels by id: what a student trains on or is scored on.

Every decision about a row is counted in a `JoinReport`; nothing is dropped or repaired unsaid.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from stepdistill_jax.data import equation, triage
from stepdistill_jax.data import parse as parser
from stepdistill_jax.data.config import FILE_PREFIX, DataConfig
from stepdistill_jax.data.read import Reader
from stepdistill_jax.data.sources import SOURCES, ColumnConfig
from stepdistill_jax.data.sources.base import SPLITS
from stepdistill_jax.data.subsets import carve_validation, derange, take_fraction, without
from stepdistill_jax.data.teacher_outputs import Parsed
from stepdistill_jax.data.triage import Verdict
from stepdistill_jax.records import Annotation, Example, Pair, ParseFailure
from stepdistill_jax.spec import InputError

__all__ = ["ColumnConfig", "DataConfig", "JoinReport", "load_pairs", "source_fingerprint"]

# Raised whenever the same files and configuration would give other pairs.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class JoinReport:
    """What became of every row; ``rows == kept + len(skipped) + sum(dropped.values())``.

    Attributes:
        dataset, split: as asked for.
        rows: rows of the files that the split is made from.
        kept: pairs returned.
        dropped: reason -> rows left out on purpose.
        skipped: the messages of bad rows, under SKIP_BAD_ROWS.
        repaired: labels of the teacher that needed repair, among the rows considered.
        failures: the teacher outputs without a usable label, among the rows considered.
        no_rationale: reason -> kept pairs without a rationale.
        shuffled_same: rows that the shuffle, done before FRACTION cuts, dealt a rationale of the
            same text as their own.
        triage: `triage.Tally.counts`.
    """

    dataset: str
    split: str
    rows: int
    kept: int
    dropped: Mapping[str, int]
    skipped: tuple[str, ...]
    repaired: int
    failures: tuple[ParseFailure, ...]
    no_rationale: Mapping[str, int]
    shuffled_same: int = 0
    triage: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """The counts alone, flat, for a manifest or a table."""
        failures = collections.Counter(failure.reason for failure in self.failures)
        return {
            "rows": self.rows,
            "kept": self.kept,
            **{f"dropped: {reason}": count for reason, count in sorted(self.dropped.items())},
            "skipped": len(self.skipped),
            "repaired": self.repaired,
            **{f"failed: {reason}": count for reason, count in sorted(failures.items())},
            **{f"no rationale: {r}": count for r, count in sorted(self.no_rationale.items())},
            "shuffled_same": self.shuffled_same,
            **self.triage,
        }


def load_pairs(config: DataConfig, split: str) -> tuple[list[Pair], JoinReport]:
    """The pairs of ``train``, ``validation`` or ``test``, in file order.

    Train is TRAIN_SPLIT without the rows whose input is in validation, then cut to FRACTION: the
    same rows whatever LABELS, RATIONALES and TRIAGE are. With LABELS=teacher, rows whose teacher
    output has no usable label are then dropped, and rows of which TRIAGE leaves nothing. Validation
    and test keep every row, and every row of theirs has a gold label.

    Raises:
        InputError: a file is missing or malformed, or no row is left.
    """
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}.")
    join = _Join(config, split)
    pairs = join.train() if split == "train" else join.evaluation()
    if not pairs:
        raise InputError(
            f"DATASET={config.dataset!r} has no row left for {split}: of {join.reader.rows} rows "
            f"{dict(join.dropped)} were dropped and {len(join.reader.skipped)} skipped; change the "
            "setting behind the largest of these counts"
        )
    has_rationale = any(pair.rationale for pair in pairs)
    if split == "train" and config.rationales != "none" and not has_rationale:
        judged = f" that passes TRIAGE={config.triage}" if config.triage else ""
        raise InputError(
            f"RATIONALES is {config.rationales!r} but none of the {len(pairs)} training rows of "
            f"{config.dataset!r} has one{judged}; set RATIONALES='none' or another source of them"
        )
    return pairs, join.report(len(pairs))


def source_fingerprint(config: DataConfig, split: str) -> str:
    """A sha256 that changes whenever `load_pairs` could return something else.

    Hashes the configuration that matters for `split` and the bytes of the files read, without
    parsing them. DATA_DIR itself is left out: a moved folder is the same data.

    Raises:
        InputError: a file is missing.
    """
    reader = Reader(config, split)
    settings = dataclasses.asdict(config)
    unread = {"data_dir"}
    if split != "train":
        unread |= {"labels", "fraction", "augment"}
    if split != "train" or not config.triage:
        unread |= {"triage", "triage_weight"}
    for name in unread:
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
    """One call of `load_pairs`: reads what it needs and counts what it does."""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config = config
        self.split = split
        self.reader = Reader(config, split)
        self.dropped: collections.Counter[str] = collections.Counter()
        self.repaired = 0
        self.failures: list[ParseFailure] = []
        self.no_rationale: collections.Counter[str] = collections.Counter()
        self.shuffled_same = 0
        self.tally = triage.Tally(config.triage if split == "train" else ())

    def report(self, kept: int) -> JoinReport:
        return JoinReport(
            dataset=self.config.dataset,
            split=self.split,
            rows=self.reader.rows,
            kept=kept,
            dropped=dict(self.dropped),
            skipped=tuple(self.reader.skipped),
            repaired=self.repaired,
            failures=tuple(self.failures),
            no_rationale=dict(self.no_rationale),
            shuffled_same=self.shuffled_same,
            triage=self.tally.counts(),
        )

    def train(self) -> list[Pair]:
        """Carve, augment, judge and deal rationales, cut to FRACTION, join: in this order."""
        config, reader = self.config, self.reader
        examples, rows = reader.read(reader.source, reader.file_split)
        if config.labels == "gold":
            reader.gold(examples, "LABELS is 'gold'")
        parsed = reader.annotations(examples, rows)
        if reader.carves:
            examples, validation = carve_validation(examples, config.data_seed)
            self.dropped["carved off for validation"] = len(validation)
        else:
            validation, _ = reader.read(reader.source, "validation", count=False)
            examples = self.without(examples, validation, "input is in validation")
        if config.augment:
            extra, parsed_extra = self.augmentation(examples, validation)
            examples += extra
            parsed |= parsed_extra
        texts = {e.id: self.rationale(e, parsed.get(e.id)) for e in examples}
        verdicts = {e.id: self.judge(e, parsed.get(e.id), texts[e.id]) for e in examples}
        texts |= {row_id: None for row_id, said in verdicts.items() if not said.rationale_weight}
        if config.rationales == "shuffled":
            texts = self.shuffle(texts)
        chosen = take_fraction(examples, config.fraction, config.data_seed)
        self.dropped["outside FRACTION"] = len(examples) - len(chosen)
        pairs = [self.train_pair(e, parsed.get(e.id), texts[e.id], verdicts[e.id]) for e in chosen]
        self.dropped = +self.dropped
        return [pair for pair in pairs if pair is not None]

    def evaluation(self) -> list[Pair]:
        """Every row, with its gold label."""
        reader = self.reader
        examples, rows = reader.read(reader.source, reader.file_split)
        parsed = reader.annotations(examples, rows)
        if self.split == "validation" and reader.carves:
            train, examples = carve_validation(examples, self.config.data_seed)
            self.dropped["left in train"] = len(train)
        labelled = reader.gold(examples, f"{self.split} is scored by it")
        self.dropped["no gold label"] = len(examples) - len(labelled)
        self.dropped = +self.dropped
        pairs = []
        for example in labelled:
            output = parsed.get(example.id)
            self.count(output)
            rationale = self.rationale(example, output)
            pairs.append(self.pair(example, example.label, rationale, output, Verdict()))
        return pairs

    def augmentation(
        self, known: Sequence[Example], validation: Sequence[Example]
    ) -> tuple[list[Example], dict[str, Parsed]]:
        """The added inputs that are in neither evaluation split, and what their teacher says."""
        reader = self.reader
        parsed: dict[str, Parsed]
        if self.config.augment_path:
            examples, parsed = reader.added([*known, *validation])
        else:
            source = SOURCES[self.config.augment]
            examples, rows = reader.read(source, "train")
            parsed = reader.released(source, "train", examples, rows)
        examples = self.without(examples, validation, "input is in validation")
        if "test" in reader.splits:
            test, _ = reader.read(reader.source, "test", count=False)
            examples = self.without(examples, test, "input is in test")
        return examples, parsed

    def without(
        self, examples: Sequence[Example], others: Sequence[Example], reason: str
    ) -> list[Example]:
        """Those of `examples` whose input is none of the others'."""
        kept = without(examples, others)
        self.dropped[reason] += len(examples) - len(kept)
        return kept

    def rationale(self, example: Example, output: Parsed | None) -> str | None:
        """The rationale that RATIONALES names; never counted here."""
        if self.config.rationales == "none":
            return None
        if self.config.rationales == "human":
            if (
                example.explanation is None
                and self.split == "train"
                and not self.config.skip_bad_rows
            ):
                raise InputError(
                    f"{example.where}: no human rationale (id {example.id}), but RATIONALES is "
                    "'human'; fix the row, or pass SKIP_BAD_ROWS=True to train on its label alone"
                )
            return example.explanation
        return (output.rationale or None) if output else None

    def judge(self, example: Example, output: Parsed | None, rationale: str | None) -> Verdict:
        """What TRIAGE says of a row; never counted here."""
        config = self.config
        is_teachers = config.labels == "teacher"
        if not config.triage or (rationale is None and not is_teachers):
            return Verdict()
        answer = output.label if isinstance(output, Annotation) else None
        reasons = triage.caught(
            config.triage,
            config.metric,
            rationale=rationale,
            answer=answer,
            gold=example.label,
            target=answer if is_teachers else example.label,
        )
        # A human's rationale is for the gold label, whatever the teacher says.
        own = [r for r in reasons if r != triage.WRONG or config.rationales != "human"]
        return Verdict(
            judged=True,
            reasons=reasons,
            label_weight=config.triage_weight if is_teachers and triage.WRONG in reasons else 1.0,
            rationale_weight=config.triage_weight if own else 1.0,
        )

    def shuffle(self, texts: Mapping[str, str | None]) -> dict[str, str | None]:
        """Deals each rationale to another row."""
        dealt = derange([row_id for row_id, text in texts.items() if text], self.config.data_seed)
        self.shuffled_same = sum(texts[a] == texts[b] for a, b in dealt.items())
        return {row_id: texts[dealt[row_id]] if text else None for row_id, text in texts.items()}

    def train_pair(
        self, example: Example, output: Parsed | None, rationale: str | None, verdict: Verdict
    ) -> Pair | None:
        """The row with its targets, or None, counted, where it cannot be trained on."""
        self.count(output)
        label = example.label
        if self.config.labels == "teacher":
            if not isinstance(output, Annotation) or not output.label:
                reason = output.reason if isinstance(output, ParseFailure) else "no output"
                self.dropped[f"no teacher label: {reason}"] += 1
                return None
            label = output.label if verdict.label_weight else None
        self.tally.add(verdict, example.label)
        if label is not None or rationale is not None:
            return self.pair(example, label, rationale, output, verdict)
        if verdict.reasons:
            self.dropped["TRIAGE leaves nothing"] += 1
        elif self.config.augment_path:
            self.dropped["added without a rationale"] += 1
        elif self.config.skip_bad_rows:
            self.dropped["neither label nor rationale"] += 1
        else:
            raise InputError(
                f"{example.where}: {example.id} has neither a label nor a rationale; supply "
                "teacher outputs (for ASDiv asdiv/llm/train_CoT_0.json, a JSON list of strings "
                "in the order of the problems), or pass SKIP_BAD_ROWS=True to leave it out"
            )
        return None

    def count(self, output: Parsed | None) -> None:
        if isinstance(output, ParseFailure):
            self.failures.append(output)
        elif output is not None:
            self.repaired += output.repaired

    def pair(
        self,
        example: Example,
        label: str | None,
        rationale: str | None,
        output: Parsed | None,
        verdict: Verdict,
    ) -> Pair:
        if rationale is None and self.config.rationales != "none":
            reason = "none given"
            if not verdict.rationale_weight:
                reason = "dropped by TRIAGE"
            elif isinstance(output, ParseFailure) and self.config.rationales != "human":
                reason = f"teacher output: {output.reason}"
            self.no_rationale[reason] += 1
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
