"""Reads the numbers of an extraction: ``summary.json`` and the examples to check."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pydantic
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.report.runs import unique_names
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.budget import paid_rows
from stepdistill_jax.teacher.quality import Assessment
from stepdistill_jax.teacher.store import SUMMARY_FILE

# Examples to check that the report shows for each split.
SHOWN = 10

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
    units: Mapping[str, AnnotatedSplit] = dataclasses.field(default_factory=dict)
    lost: LostRequests | None = None


_STRICT = pydantic.with_config(pydantic.ConfigDict(strict=True, allow_inf_nan=False))
_SUMMARY = pydantic.TypeAdapter(_STRICT(_SummaryFile))
_SUSPECT = pydantic.TypeAdapter(_STRICT(Suspect))


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
    names = unique_names({os.path.realpath(folder): 1 for folder in folders})
    return [_read(epath.Path(path), name) for path, name in names.items()]


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
    summary = _checked(_SUMMARY, content, str(path))
    for split in summary.units:
        if not _NAME.fullmatch(split):
            raise InputError(
                f"{path}: units: got the name {split!r}, expected letters, digits, - and _."
            )
    return ExtractionSummary(
        name=name,
        dataset=summary.dataset,
        model=summary.model,
        prompt=summary.prompt or PromptSummary(),
        splits=summary.units,
        worst={split: _worst(folder / f"worst_{split}.jsonl") for split in summary.units},
        lost=summary.lost or LostRequests(),
    )


def _worst(path: epath.Path) -> list[Suspect]:
    if not path.exists():
        return []
    try:
        rows = itertools.islice(records.read_jsonl(path), SHOWN)
        return [_checked(_SUSPECT, row, where) for where, row in rows]
    except InputError as error:
        raise InputError(f"{path.parent}: {error}") from error


def _checked(kind: pydantic.TypeAdapter[_Data], content: Any, where: str) -> _Data:
    """A dataclass from JSON; unknown keys are ignored.

    Raises:
        InputError: a field is missing or has the wrong type.
    """
    try:
        return kind.validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        # Empty where the whole content is wrong, as with a list instead of an object.
        path = [str(part) for part in first["loc"]]
        if first["type"] == "missing":
            place = ": ".join([where, *filter(None, [".".join(path[:-1])])])
            raise InputError(
                f"{place}: no {path[-1]}. Run launch.extract again, which rewrites the file."
            ) from error
        expected = first["msg"].removeprefix("Input should be ")
        value = f"{content!r}" if not path else repr(first["input"])
        value = value if len(value) <= 40 else f"{value[:40]}…"
        place = ": ".join([where, *filter(None, [".".join(path)])])
        raise InputError(f"{place}: got {value}, expected {expected}.") from error
