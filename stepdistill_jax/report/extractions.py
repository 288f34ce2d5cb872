"""Reads what an extraction says of itself: ``summary.json`` and the rows to look at."""

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
from stepdistill_jax.teacher.quality import Assessment
from stepdistill_jax.teacher.store import SUMMARY_FILE
from stepdistill_jax.teacher.summary import paid_rows

# Of the rows to look at, shown a unit.
SHOWN = 10

_Data = TypeVar("_Data")
_UNIT = re.compile(r"[\w-]+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The few-shot prompt; None where it is not known."""

    hash: str | None = None
    exemplars: int | None = None
    tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Unit:
    """One split's rows, or the added inputs; None where a number is not known.

    Attributes:
        rows: to be asked about.
        answered: of those, with an outcome.
        requests: paid, hints and samples included.
        cached: answers that cost nothing, as another extraction had paid for them.
        prompt_tokens, completion_tokens: read and written over them.
        cost: of them, in the money of the prices.
        seconds: at work.
        quality: of the answers.
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
    def _paid_rows(self) -> float | None:
        return paid_rows(self.answered, self.requests, self.cached)

    @property
    def price(self) -> float | None:
        """Of a row, as if no answer had come from the cache; None where it is not known."""
        rows = self._paid_rows
        return None if self.cost is None or not rows else self.cost / rows

    @property
    def pace(self) -> float | None:
        """Rows a second, likewise."""
        rows = self._paid_rows
        return rows / self.seconds if rows and self.seconds else None


@dataclasses.dataclass(frozen=True)
class Lost:
    """Requests that were lost in flight, over all units; tokens and cost are their bounds."""

    requests: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A row to look at, as `teacher.quality.worst` writes it."""

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
class _Summary:
    dataset: str
    model: str
    prompt: Prompt | None = None
    lost: Lost | None = None


@dataclasses.dataclass(frozen=True)
class Extraction:
    """One extraction's folder.

    Attributes:
        name: unique in the report; the same wherever the folder lies, where that is possible.
        dataset: `data.config.DataConfig.name`.
        model: the teacher.
        prompt: that it was asked with.
        units: name -> numbers.
        worst: unit -> rows to look at, `SHOWN` at most.
        lost: requests that may have been paid for without an answer.
    """

    name: str
    dataset: str
    model: str
    prompt: Prompt
    units: Mapping[str, Unit]
    worst: Mapping[str, Sequence[Suspect]]
    lost: Lost = Lost()

    @property
    def price(self) -> float | None:
        """Of a row, mean over the units by their rows; None where a unit's is not known."""
        units = [unit for unit in self.units.values() if unit.answered]
        prices = [unit.price for unit in units if unit.price is not None]
        if not units or len(prices) < len(units):
            return None
        rows = [unit.answered or 0 for unit in units]
        return sum(p * n for p, n in zip(prices, rows, strict=True)) / sum(rows)

    @property
    def label_price(self) -> float | None:
        """Of a row with a label and a rationale: those without are paid for too."""
        units = [unit for unit in self.units.values() if unit.answered]
        usable = sum(unit.quality.usable for unit in units if unit.quality)
        if self.price is None or not usable or not all(unit.quality for unit in units):
            return None
        return self.price * sum(unit.answered or 0 for unit in units) / usable


def read_extractions(folders: Sequence[epath.PathLike]) -> list[Extraction]:
    """What each of `folders` says; a folder that is named twice counts once.

    Raises:
        InputError: a folder is no extraction's, or something in it is damaged.
    """
    paths = [*dict.fromkeys(os.path.realpath(os.fspath(folder)) for folder in folders)]
    return [_read(epath.Path(path), name) for path, name in zip(paths, _names(paths), strict=True)]


def _names(paths: Sequence[str]) -> list[str]:
    """The shortest end of each path that no other has."""
    ends = [
        [os.sep.join(path.split(os.sep)[-n:]) for n in range(1, path.count(os.sep) + 2)]
        for path in paths
    ]
    counts = collections.Counter(itertools.chain(*ends))
    return [next(end for end in own if counts[end] == 1) for own in ends]


def _read(folder: epath.Path, name: str) -> Extraction:
    path = folder / SUMMARY_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: no {SUMMARY_FILE} in it; name the EXTRACT_DIR of a launch.extract that "
            "has answered something"
        )
    text = records.decode_utf8(path.read_bytes(), str(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not JSON ({records.json_fault(error)}); run "
            "launch.extract again, which writes it anew"
        ) from error
    summary = _data(_Summary, content, str(path))
    units = content.get("units", {})
    if not isinstance(units, dict):
        raise InputError(f"{path}: units is {_shown(units)}, expected an object")
    for unit in units:
        if not _UNIT.fullmatch(unit):
            raise InputError(
                f"{path}: a unit is called {unit!r}, expected a name of letters, digits, - and _"
            )
    return Extraction(
        name=name,
        dataset=summary.dataset,
        model=summary.model,
        prompt=summary.prompt or Prompt(),
        units={unit: _data(Unit, found, f"{path}: units.{unit}") for unit, found in units.items()},
        worst={unit: _worst(folder / f"worst_{unit}.jsonl") for unit in units},
        lost=summary.lost or Lost(),
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
    """A dataclass from a JSON object; other keys are left alone.

    Raises:
        InputError: a field lacks or is of another type.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: {_shown(value)}, expected an object")
    hints = typing.get_type_hints(kind)
    given = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        if field.name in value:
            at = f"{where}: {field.name}" if ": " not in where else f"{where}.{field.name}"
            given[field.name] = _value(hints[field.name], value[field.name], at)
        elif field.default is dataclasses.MISSING:
            raise InputError(f"{where}: no {field.name}; make the file anew with launch.extract")
    return kind(**given)


def _value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,)
    if value is None and type(None) in options:
        return None
    (wanted,) = (option for option in options if option is not type(None))
    if dataclasses.is_dataclass(wanted):
        return _data(typing.cast(type[Any], wanted), value, where)
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is list and isinstance(value, list):
        return [_value(args[0], item, where) for item in value]
    if origin is Mapping and isinstance(value, dict):
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in value.items()}
    plain = origin is None and fits(value, wanted)
    if not plain or (isinstance(value, float) and not math.isfinite(value)):
        name = {str: "a text", int: "a whole number", float: "a number", list: "a list"}
        raise InputError(
            f"{where} is {_shown(value)}, expected {name.get(origin or wanted, 'an object')}"
        )
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
