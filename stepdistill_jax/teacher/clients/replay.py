"""Responses of the past: those of the paper's teacher, or of another extraction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from stepdistill_jax.data.config import FILE_PREFIX, DataConfig
from stepdistill_jax.data.read import SplitReader
from stepdistill_jax.data.sources import SOURCES
from stepdistill_jax.data.sources.base import Source
from stepdistill_jax.data.teacher_outputs import read_released
from stepdistill_jax.records import Example, read_jsonl
from stepdistill_jax.spec import SEPARATOR, InputError
from stepdistill_jax.teacher import store
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    ANSWER,
    Client,
    Completion,
    Request,
    RequestError,
    Slot,
)

RELEASE = "release"
REPLAYED = "replayed"
NOT_RECORDED = "not recorded"


@dataclasses.dataclass(frozen=True)
class _Recorded:
    """One response.

    Attributes:
        key: of its request; "" where unknown.
        parts: texts that its example's question contains.
        error, detail: of a request that failed.
    """

    text: str
    model: str
    key: str = ""
    parts: tuple[str, ...] = ()
    error: str = ""
    detail: str = ""


class Replay(Client):
    """Responses by example, purpose and sample; they cost nothing, so their token counts are 0.

    Example ids are unique within a split only. Of several responses with the requested id, the one
    to an equal request is used, else the one whose example's input is in the question. Where that
    leaves several or none, the request fails with NOT_RECORDED.
    """

    def __init__(self, extract: ExtractConfig, data: DataConfig) -> None:
        """Raises InputError where REPLAY names nothing that can be replayed."""
        replay = extract.replay
        recorded = _released(extract, data) if replay == RELEASE else _logged(replay)
        self._recorded: dict[Slot, list[_Recorded]] = {}
        for slot, response in recorded:
            self._recorded.setdefault(slot, []).append(response)
        if not self._recorded:
            raise InputError(f"REPLAY={replay!r}: no responses there. Correct REPLAY.")

    async def complete(self, request: Request) -> Completion:
        """See `Client`."""
        chosen = _choose(self._recorded.get(request.slot, []), request)
        if len(chosen) != 1:
            what = f"{len(chosen) or 'no'} recorded responses to {request.purpose} {request.sample}"
            raise RequestError(NOT_RECORDED, f"{what} for id {request.example_id}")
        (recorded,) = chosen
        if recorded.error:
            raise RequestError(recorded.error, recorded.detail)
        return Completion(recorded.text, REPLAYED, 0, 0, recorded.model, 0.0)


def _choose(recorded: Sequence[_Recorded], request: Request) -> Sequence[_Recorded]:
    if len(recorded) < 2:
        return recorded
    equal = [each for each in recorded if each.key == request.key]
    if equal:
        return equal[:1]
    question = request.messages[-1].content if request.messages else request.prompt
    return [r for r in recorded if r.parts and all(part in question for part in r.parts)]


def _released(extract: ExtractConfig, data: DataConfig) -> Iterator[tuple[Slot, _Recorded]]:
    """The released outputs for the selected splits, checked against their examples."""
    read: set[tuple[str, str]] = set()
    for split in extract.extract_splits:
        reader = SplitReader(data, split)
        if (reader.source.name, reader.file_split) not in read:
            read.add((reader.source.name, reader.file_split))
            yield from _outputs(reader, reader.source, reader.file_split)
    if extract.extract_inputs in SOURCES:
        yield from _outputs(SplitReader(data, "train"), SOURCES[extract.extract_inputs], "train")


def _outputs(reader: SplitReader, source: Source, split: str) -> Iterator[tuple[Slot, _Recorded]]:
    outputs = {}
    if source.teacher_format:
        file = reader.read(source, split)
        outputs = read_released(source, reader.data_dir, split, file.examples, file.rows)
    if not outputs:
        raise InputError(
            f"REPLAY={RELEASE!r}: no released outputs for the {split} split of {source.name!r}. "
            "Select released ones with EXTRACT_SPLITS or EXTRACT_INPUTS, or set "
            "REPLAY='file:PATH'."
        )
    for example in file.examples:
        recorded = _Recorded(outputs[example.id].text, RELEASE, parts=_parts(example))
        yield (example.id, ANSWER, 0), recorded


def _parts(example: Example) -> tuple[str, ...]:
    return tuple(part.strip() for part in example.input.split(SEPARATOR))


def _logged(replay: str) -> Iterator[tuple[Slot, _Recorded]]:
    """The responses in one log, or in all logs of an extraction's folder."""
    if not replay.startswith(FILE_PREFIX):
        raise InputError(
            f"REPLAY={replay!r}: expected {RELEASE!r}, or '{FILE_PREFIX}PATH' of an extraction's "
            "folder or of one file of its rows."
        )
    path = epath.Path(replay.removeprefix(FILE_PREFIX)).expanduser()
    for file in store.log_files(path) if path.is_dir() else [path]:
        # A later line replaces an earlier one, but an error replaces no completion.
        latest: dict[Slot, _Recorded] = {}
        for where, row in read_jsonl(file):
            slot, recorded = _line(where, row)
            if slot in latest and recorded.error and not latest[slot].error:
                continue
            latest[slot] = recorded
        yield from latest.items()


def _line(where: str, row: dict[str, Any]) -> tuple[Slot, _Recorded]:
    try:
        slot = (str(row["id"]), str(row["purpose"]), int(row["sample"]))
        error = row.get("error") or ""
        text = "" if error else row["text"]
        model = row.get("answered_by") or row["model"]
        recorded = _Recorded(text, model, row["key"], error=error, detail=row.get("detail", ""))
        if not all(isinstance(value, str) for value in (text, model, recorded.key, error)):
            raise TypeError("a field is not text")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: not a line of an extraction's rows ({type(error).__name__}: {error}). "
            "Correct REPLAY, or fix the line."
        ) from error
    return slot, recorded
