"""Reads the numbers of an extraction: ``summary.json`` and the examples to check."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.settings import fits
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.budget import paid_rows
from stepdistill_jax.teacher.quality import Assessment
from stepdistill_jax.teacher.store import SUMMARY_FILE

# Examples to check that the report shows for each split.
SHOWN = 10
_TYPE_NAMES = {
    str: "a text", int: "a whole number", float: "a number", list: "a list", bool: "true or false",
}  # fmt: skip

_Data = TypeVar("_Data")
_NAME = re.compile(r"[\w-]+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class PromptSummary:
    """The few-shot prompt; None = unknown."""

    hash: str | None = None
    exemplars: int | None = None
    tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class AnnotatedSplit:
    """One split, or the added inputs; None = unknown.

    Attributes:
        rows: examples to annotate.
        answered: examples with an annotation or a failure.
        requests: paid ones, hints and samples included.
        cached: answers from another extraction's cache, at no cost.
        prompt_tokens, completion_tokens: read and written in all requests.
        cost: of all requests, in the currency of the prices.
        seconds: with requests in flight.
    """

    rows: int | None = None
    answered: int | None = None
    requests: int | None = None
    cached: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None
    quality: Assessment | None = None

    @property
    def _paid(self) -> float | None:
        return paid_rows(self.answered, self.requests, self.cached)

    @property
    def price(self) -> float | None:
        """Cost of an example, as if no answer had come from the cache; None if unknown."""
        return None if self.cost is None or not self._paid else self.cost / self._paid

    @property
    def pace(self) -> float | None:
        """Examples a second, as if none had come from the cache; None if unknown."""
        return self._paid / self.seconds if self._paid and self.seconds else None


@dataclasses.dataclass(frozen=True)
class LostRequests:
    """Requests lost in flight, over all splits; tokens and cost are upper bounds."""

    requests: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None


@dataclasses.dataclass(frozen=True)
class Suspect:
    """An example to check, as `teacher.quality.worst` writes it."""

    id: str
    reasons: list[str]
    score: float
    input: str
    gold: str | None
    label: str | None
    rationale: str
    raw: str | None
    hinted: bool = False


@dataclasses.dataclass(frozen=True)
class _SummaryFile:
    dataset: str
    model: str
    prompt: PromptSummary | None = None
    lost: LostRequests | None = None


@dataclasses.dataclass(frozen=True)
class ExtractionSummary:
    """The numbers of one extraction.

    Attributes:
        name: unique in the report, and independent of the folder's place if possible.
        dataset: `data.config.DataConfig.name`.
        model: the teacher.
        splits: name -> numbers.
        worst: split -> examples to check, at most `SHOWN`.
        lost: requests that may have been charged without an answer.
    """

    name: str
    dataset: str
    model: str
    prompt: PromptSummary
    splits: Mapping[str, AnnotatedSplit]
    worst: Mapping[str, Sequence[Suspect]]
    lost: LostRequests = LostRequests()

    @property
    def _answered(self) -> list[tuple[AnnotatedSplit, int]]:
        return [(split, split.answered) for split in self.splits.values() if split.answered]

    @property
    def price(self) -> float | None:
        """Mean cost of an example; None if that of a split is unknown."""
        total, count = 0.0, 0
        for split, answered in self._answered:
            if split.price is None:
                return None
            total, count = total + split.price * answered, count + answered
        return total / count if count else None

    @property
    def label_price(self) -> float | None:
        """Cost of an example with label and rationale; those without are paid for too."""
        if self.price is None or not all(split.quality for split, _ in self._answered):
            return None
        usable = sum(split.quality.usable for split, _ in self._answered if split.quality)
        return self.price * sum(n for _, n in self._answered) / usable if usable else None


def read_extractions(folders: Sequence[epath.PathLike]) -> list[ExtractionSummary]:
    """The numbers of each extraction; each folder counts once.

    Raises:
        InputError: a folder holds no extraction, or a file in it is damaged.
    """
    paths = [*dict.fromkeys(os.path.realpath(os.fspath(folder)) for folder in folders)]
    return [_read(epath.Path(path), name) for path, name in zip(paths, _names(paths), strict=True)]


def _names(paths: Sequence[str]) -> list[str]:
    """The shortest end of each path that no other path has."""
    ends = [
        [os.sep.join(path.split(os.sep)[-n:]) for n in range(1, path.count(os.sep) + 2)]
        for path in paths
    ]
    counts = collections.Counter(itertools.chain(*ends))
    return [next(end for end in of_path if counts[end] == 1) for of_path in ends]


def _read(folder: epath.Path, name: str) -> ExtractionSummary:
    path = folder / SUMMARY_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: no {SUMMARY_FILE} in it. Name the EXTRACT_DIR of a launch.extract that has "
            "received answers."
        )
    text = records.decode_utf8(path.read_bytes(), str(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not JSON ({records.json_fault(error)}). Run launch.extract "
            "again, which rewrites the file."
        ) from error
    summary = _data(_SummaryFile, content, str(path))
    splits = content.get("units", {})
    if not isinstance(splits, dict):
        raise InputError(f"{path}: units: got {_shown(splits)}, expected an object.")
    for split in splits:
        if not _NAME.fullmatch(split):
            raise InputError(
                f"{path}: units: got the name {split!r}, expected letters, digits, - and _."
            )
    return ExtractionSummary(
        name=name,
        dataset=summary.dataset,
        model=summary.model,
        prompt=summary.prompt or PromptSummary(),
        splits={
            split: _data(AnnotatedSplit, value, f"{path}: units.{split}")
            for split, value in splits.items()
        },
        worst={split: _worst(folder / f"worst_{split}.jsonl") for split in splits},
        lost=summary.lost or LostRequests(),
    )


def _worst(path: epath.Path) -> list[Suspect]:
    if not path.exists():
        return []
    try:
        rows = itertools.islice(records.read_jsonl(path), SHOWN)
        return [_data(Suspect, row, where) for where, row in rows]
    except InputError as error:
        raise InputError(f"{path.parent}: {error}") from error


def _data(kind: type[_Data], value: Any, where: str) -> _Data:
    """A dataclass from a JSON object; unknown keys are ignored.

    Raises:
        InputError: a field is missing or has the wrong type.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: got {_shown(value)}, expected an object.")
    hints = typing.get_type_hints(kind)
    fields = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        if field.name in value:
            at = f"{where}: {field.name}" if ": " not in where else f"{where}.{field.name}"
            fields[field.name] = _value(hints[field.name], value[field.name], at)
        elif field.default is dataclasses.MISSING:
            raise InputError(f"{where}: no {field.name}. Write the file again with launch.extract.")
    return kind(**fields)


def _value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,)
    if value is None and type(None) in options:
        return None
    (expected,) = (option for option in options if option is not type(None))
    if dataclasses.is_dataclass(expected):
        return _data(typing.cast(type[Any], expected), value, where)
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is list and isinstance(value, list):
        return [_value(args[0], item, where) for item in value]
    if origin is Mapping and isinstance(value, dict):
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in value.items()}
    plain = origin is None and fits(value, expected)
    if not plain or (isinstance(value, float) and not math.isfinite(value)):
        kind = _TYPE_NAMES.get(origin or expected, "an object")
        raise InputError(f"{where}: got {_shown(value)}, expected {kind}.")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
