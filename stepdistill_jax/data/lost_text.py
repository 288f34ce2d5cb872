"""What a split loses on its way to tokens, counted once for each token cache.

SKIP_BAD_ROWS leaves out rows. A vocabulary may lack characters, write a label back as another text,
or give two texts the same tokens; a limit may cut a label. Nothing of that is an error, and all of
it costs accuracy.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from stepdistill_jax import records
from stepdistill_jax.data.config import DataConfig, TokenConfig
from stepdistill_jax.data.token_cache import TokenCache
from stepdistill_jax.data.vocabulary import Vocabulary, load_vocabulary
from stepdistill_jax.spec import LABEL, UNK_ID, InputError

# In a cache's folder, beside the manifest: a folder without it gets it at the next opening.
LOST_TEXT = "lost_text.json"
_SHOWN = 40
# Of `join.JoinReport.counts`, what only SKIP_BAD_ROWS allows.
_LEFT_OUT = ("skipped", "dropped: no gold label", "dropped: neither label nor rationale")
# Where fewer texts have unknown characters, only the table of `launch.prepare` says so.
_RARE = 0.001
_REMEDY = "use another vocabulary, as in --gin_file=models/pretrained/byt5_small.gin"


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Characters that the vocabulary lacks; a run of them becomes one unknown token.

    Attributes:
        characters: how many.
        texts: texts with one.
        sample: the first run.
    """

    characters: int = 0
    texts: int = 0
    sample: str = ""


@dataclasses.dataclass(frozen=True)
class LostText:
    """What is lost; all counts are of examples, unless said otherwise.

    Attributes:
        examples: all of the split.
        changed_labels: the label decodes to another text, so that no decoded text equals it.
        changed_sample: the first such label, and what it decodes to.
        cut_labels: the label is longer than MAX_LABEL_LENGTH.
        longest_label: tokens of the longest label, EOS included.
        equal_inputs: the input has the tokens of an input with another text.
        equal_inputs_other_label: those whose tokens also occur with another label.
        equal_sample: the starts of two such inputs, if possible with two labels.
        absent_labels: labels that every example offers and none has.
        equal_choices: two labels that one example offers and that have the same tokens.
        inputs, rationales: unknown characters.
    """

    examples: int
    changed_labels: int = 0
    changed_sample: tuple[str, ...] = ()
    cut_labels: int = 0
    longest_label: int = 0
    equal_inputs: int = 0
    equal_inputs_other_label: int = 0
    equal_sample: tuple[str, ...] = ()
    absent_labels: tuple[str, ...] = ()
    equal_choices: tuple[str, ...] = ()
    inputs: Unknown = Unknown()
    rationales: Unknown = Unknown()

    def counts(self) -> dict[str, int]:
        """Those that are not 0, for a table."""
        counts = {
            "labels that the vocabulary changes": self.changed_labels,
            "labels cut by MAX_LABEL_LENGTH": self.cut_labels,
            "unknown characters in inputs": self.inputs.characters,
            "unknown characters in rationales": self.rationales.characters,
            "inputs with the tokens of another text": self.equal_inputs,
            "  and also another label": self.equal_inputs_other_label,
        }
        return {what: count for what, count in counts.items() if count}

    @classmethod
    def from_json(cls, text: str) -> LostText:
        """The inverse of `json.dumps(dataclasses.asdict(...))`.

        Raises:
            ValueError, TypeError, KeyError: the text is another one.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(text).items()
        }
        inputs, rationales = (Unknown(**fields.pop(name)) for name in ("inputs", "rationales"))
        return cls(**fields, inputs=inputs, rationales=rationales)


def of_cache(cache: TokenCache, data: DataConfig, tokens: TokenConfig) -> LostText:
    """What the texts of a token cache lose; counted and stored where that is not yet done."""
    path = cache.folder / LOST_TEXT
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return LostText.from_json(path.read_text("utf-8"))
    vocabulary = load_vocabulary(tokens.vocabulary)
    examples = map(cache.example, range(len(cache)))
    lost = _count(examples, data.metric, vocabulary, tokens.max_label_length)
    # Where the folder may only be read, every opening counts.
    with contextlib.suppress(OSError):
        records.write_atomic(path, json.dumps(dataclasses.asdict(lost), ensure_ascii=False) + "\n")
    return lost


def of_texts(
    texts: Iterable[tuple[str, str | None, str | None, tuple[str, ...]]],
    metric: str,
    tokens: TokenConfig,
    vocabulary: Vocabulary,
) -> LostText:
    """What a split will lose; `texts` has each example's input, label, rationale and choices."""
    limits, prefix = tokens.feature_lengths(), tokens.prefix_texts()[LABEL]

    def ids(text: str, feature: str) -> list[int]:
        return vocabulary.encode(text)[: limits[feature] - 1]

    examples = (
        {
            "input": text,
            "label": label,
            "rationale": rationale,
            "choices": choices,
            "label_inputs": ids(prefix + text, "label_inputs"),
            "rationale_targets": ids(rationale or "", "rationale_targets"),
        }
        for text, label, rationale, choices in texts
    )
    return _count(examples, metric, vocabulary, tokens.max_label_length)


def _count(
    examples: Iterable[Mapping[str, Any]],
    metric: str,
    vocabulary: Vocabulary,
    max_label_length: int,
) -> LostText:
    """Counts what examples lose.

    Args:
        examples: each with the token ids ``label_inputs`` and ``rationale_targets``, cut as they
            are trained on, and the texts ``input``, ``label``, ``rationale`` and ``choices``; label
            and rationale may be None.
        metric: a key of `metrics.METRICS`.
    """
    labels: collections.Counter[str] = collections.Counter()
    offered: set[tuple[str, ...]] = set()
    inputs, rationales = _UnknownCount(vocabulary), _UnknownCount(vocabulary)
    groups: dict[bytes, _Group] = {}
    total = 0
    for example in examples:
        total += 1
        text, label = example["input"], example["label"] or ""
        labels[label] += 1
        offered.add(tuple(example["choices"]))
        ids = example["label_inputs"]
        if UNK_ID in ids:
            inputs.add(text)
        if UNK_ID in example["rationale_targets"]:
            rationales.add(example["rationale"])
        key = _digest(ids)
        if key in groups:
            groups[key].add(text, label)
        else:
            groups[key] = _Group.of(text, label)
    merged = [group for group in groups.values() if group.other_start is not None]
    apart = [group for group in merged if group.has_labels]
    return LostText(
        examples=total,
        equal_inputs=sum(group.count for group in merged),
        equal_inputs_other_label=sum(group.count for group in apart),
        equal_sample=next((group.sample() for group in (*apart, *merged)), ()),
        absent_labels=_absent(offered, labels),
        equal_choices=_equal_choices(offered, vocabulary),
        inputs=inputs.result(),
        rationales=rationales.result(),
        **_labels(labels, metric, vocabulary, max_label_length),
    )


def warnings(
    lost: LostText,
    split: str,
    decisions: Mapping[str, int],
    max_label_length: int,
    *,
    decodes: bool,
) -> list[str]:
    """What to tell the user about a split, a sentence with a remedy each.

    Args:
        decisions: `join.JoinReport.counts`.
        decodes: the student writes labels token by token (EVAL_MODE is decode).
    """
    of_all = f"of the {lost.examples:,} examples of {split}"
    texts = []
    if left_out := sum(decisions.get(reason, 0) for reason in _LEFT_OUT):
        labels = ", ".join(map(_short, lost.absent_labels))
        absent = f", and none of the rest has the label {labels}" if labels else ""
        texts.append(
            f"SKIP_BAD_ROWS leaves out {left_out:,} of the {decisions['rows']:,} rows read for "
            f"{split}{absent}. Set it to False to see the first of them."
        )
    if lost.changed_labels and decodes:
        label, decoded = map(_short, lost.changed_sample)
        texts.append(
            f"VOCABULARY changes the labels of {lost.changed_labels:,} {of_all}, so no prediction "
            f"can equal them: {label} decodes to {decoded}. Change those labels, or {_REMEDY}."
        )
    if lost.cut_labels:
        effect = "no prediction can equal them" if decodes else "the student never sees their ends"
        texts.append(
            f"MAX_LABEL_LENGTH={max_label_length} cuts the labels of {lost.cut_labels:,} {of_all}, "
            f"so {effect}. Set it to at least {lost.longest_label}."
        )
    for name, unknown in (("input", lost.inputs), ("rationale", lost.rationales)):
        if unknown.texts > _RARE * lost.examples:
            texts.append(
                f"VOCABULARY lacks {unknown.characters:,} characters in the {name}s of "
                f"{unknown.texts:,} {of_all}, such as {_short(unknown.sample)}; each run of them "
                f"is one unknown token. To keep them, {_REMEDY}."
            )
    if lost.equal_inputs:
        one, other = map(_short, lost.equal_sample)
        texts.append(
            f"{lost.equal_inputs:,} {of_all} have the same input tokens as another text, "
            f"{lost.equal_inputs_other_label:,} of these also with another label: {one} and "
            f"{other}. Raise MAX_INPUT_LENGTH if they are cut, or {_REMEDY}."
        )
    return texts


def refuse_equal_choices(lost: LostText, split: str) -> None:
    """Refuses labels that EVAL_MODE=choices cannot tell apart.

    Raises:
        InputError: naming two of them.
    """
    if lost.equal_choices:
        one, other = map(repr, lost.equal_choices)
        raise InputError(
            f"EVAL_MODE='choices': labels {one} and {other} of {split} have the same tokens, so "
            f"the first would always win. Change one of them, or {_REMEDY}."
        )


@dataclasses.dataclass(slots=True)
class _Group:
    """The examples whose inputs have the same tokens; of texts only hash and start are held.

    Attributes:
        text, label: of the first.
        start: of its text.
        other_start: of one that differs from it; with another label, once there is one.
        has_labels: some labels differ.
    """

    text: int
    label: str
    start: str
    count: int = 1
    other_start: str | None = None
    has_labels: bool = False

    @classmethod
    def of(cls, text: str, label: str) -> _Group:
        return cls(hash(text), label, text[: _SHOWN + 1])

    def add(self, text: str, label: str) -> None:
        is_first = label != self.label and not self.has_labels
        if hash(text) != self.text and (self.other_start is None or is_first):
            self.other_start = text[: _SHOWN + 1]
        self.count += 1
        self.has_labels |= label != self.label

    def sample(self) -> tuple[str, ...]:
        return self.start, self.other_start or ""


class _UnknownCount:
    """Adds up unknown characters."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._characters, self._texts, self._sample = 0, 0, ""

    def add(self, text: str) -> None:
        runs = self._vocabulary.unknown_runs(text)
        self._characters += sum(map(len, runs))
        self._texts += bool(runs)
        self._sample = self._sample or "".join(runs[:1])

    def result(self) -> Unknown:
        return Unknown(self._characters, self._texts, self._sample)


def _labels(
    counts: Mapping[str, int], metric: str, vocabulary: Vocabulary, limit: int
) -> dict[str, Any]:
    """The fields of `LostText` about labels; `counts` has the examples of each."""

    def compared(text: str) -> str:
        # An equation is scored by its value, which white space does not change.
        return re.sub(r"\s", "", text) if metric == "equation" else text.strip()

    ids = {label: vocabulary.encode(label) for label in counts}
    decoded = {label: vocabulary.decode(of_label) for label, of_label in ids.items()}
    changed = [label for label in counts if compared(decoded[label]) != compared(label)]
    lengths = {label: len(of_label) + 1 for label, of_label in ids.items()}
    return {
        "changed_labels": sum(counts[label] for label in changed),
        "changed_sample": (changed[0], decoded[changed[0]]) if changed else (),
        "cut_labels": sum(counts[label] for label in counts if lengths[label] > limit),
        "longest_label": max(lengths.values(), default=0),
    }


def _absent(offered: set[tuple[str, ...]], labels: Container[str]) -> tuple[str, ...]:
    """Labels of a label set that all examples share, without those that an example has."""
    (choices, *others) = offered or {()}
    return () if others else tuple(choice for choice in choices if choice not in labels)


def _equal_choices(offered: Iterable[tuple[str, ...]], vocabulary: Vocabulary) -> tuple[str, ...]:
    """Two different choices of one example with the same tokens, if there are any."""
    for choices in sorted(offered):
        texts: dict[tuple[int, ...], str] = {}
        for choice in choices:
            first = texts.setdefault(tuple(vocabulary.encode(choice)), choice)
            if first != choice:
                return first, choice
    return ()


def _digest(ids: Iterable[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16).digest()


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
