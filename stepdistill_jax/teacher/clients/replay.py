"""Answers that were given before: the paper's own teacher's, or those of another extraction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from stepdistill_jax.data.config import FILE_PREFIX, DataConfig
from stepdistill_jax.data.read import Reader
from stepdistill_jax.data.sources import SOURCES
from stepdistill_jax.data.sources.base import Source
from stepdistill_jax.data.teacher_outputs import load_annotations, load_texts
from stepdistill_jax.records import Example, read_jsonl
from stepdistill_jax.spec import SEPARATOR, InputError
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import ANSWER, Completion, Request, RequestError

RELEASE = "release"
REPLAYED = "replayed"
NOT_RECORDED = "not recorded"


@dataclasses.dataclass(frozen=True)
class _Recorded:
    """One answer of before.

    Attributes:
        text: as it came.
        model: that gave it.
        key: of its request, "" where that is not known.
        parts: texts that its row's question holds.
        error, detail: of a request that had no answer.
        where: ``file:line``, or the split.
    """

    text: str
    model: str
    key: str = ""
    parts: tuple[str, ...] = ()
    error: str = ""
    detail: str = ""
    where: str = ""


class Replay:
    """Answers by row, purpose and sample; costs nothing, so its token counts are 0.

    Row ids are unique within a split alone. Where several answers have the wanted id, the one is
    taken whose request is equal, else the one whose row's input is in the question; where that
    leaves several or none, the row fails with NOT_RECORDED.
    """

    def __init__(self, extract: ExtractConfig, data: DataConfig) -> None:
        """Raises InputError where REPLAY names nothing that can be replayed."""
        found = _released(extract, data) if extract.replay == RELEASE else _logged(extract.replay)
        self._recorded: dict[tuple[str, str, int], list[_Recorded]] = {}
        for slot, recorded in found:
            self._recorded.setdefault(slot, []).append(recorded)
        if not self._recorded:
            raise InputError(f"REPLAY is {extract.replay!r}, which holds no answer; correct REPLAY")

    async def complete(self, request: Request) -> Completion:
        """See `requests.Client`."""
        slot = (request.row_id, request.purpose, request.sample)
        found = _choose(self._recorded.get(slot, []), request)
        if len(found) != 1:
            what = f"{len(found) or 'no'} recorded answers to {slot[1]} {slot[2]}"
            raise RequestError(NOT_RECORDED, f"{what} for id {slot[0]}")
        (recorded,) = found
        if recorded.error:
            raise RequestError(recorded.error, recorded.detail)
        return Completion(recorded.text, REPLAYED, 0, 0, recorded.model, 0.0)

    async def close(self) -> None:
        """Nothing is held."""


def _choose(found: Sequence[_Recorded], request: Request) -> Sequence[_Recorded]:
    if len(found) < 2:
        return found
    equal = [recorded for recorded in found if recorded.key == request.key]
    if equal:
        return equal[:1]
    asked = request.messages[-1].content if request.messages else request.prompt
    return [r for r in found if r.parts and all(part in asked for part in r.parts)]


_Line = tuple[tuple[str, str, int], _Recorded]


def _released(extract: ExtractConfig, data: DataConfig) -> Iterator[_Line]:
    """The release's outputs for the splits that are asked about, checked against their rows."""
    read: set[tuple[str, str]] = set()
    for split in extract.extract_splits:
        reader = Reader(data, split)
        if (reader.source.name, reader.file_split) not in read:
            read.add((reader.source.name, reader.file_split))
            yield from _outputs(reader, reader.source, reader.file_split)
    if extract.extract_inputs in SOURCES:
        yield from _outputs(Reader(data, "train"), SOURCES[extract.extract_inputs], "train")


def _outputs(reader: Reader, source: Source, split: str) -> Iterator[_Line]:
    examples, rows = reader.read(source, split, count=False)
    given = (source, reader.data_dir, split, examples, rows)
    # Parsing is what tells outputs that are about other rows.
    if not source.teacher_format or not load_annotations(*given):
        raise InputError(
            f"REPLAY is {RELEASE!r}, but there are no released outputs for the {split} split of "
            f"{source.name!r}; set EXTRACT_SPLITS or EXTRACT_INPUTS to what was released, or "
            "REPLAY='file:PATH'"
        )
    texts = load_texts(*given)
    for example in examples:
        recorded = _Recorded(texts[example.id], RELEASE, parts=_parts(example), where=split)
        yield (example.id, ANSWER, 0), recorded


def _parts(example: Example) -> tuple[str, ...]:
    return tuple(part.strip() for part in example.input.split(SEPARATOR))


def _logged(replay: str) -> Iterator[_Line]:
    """The answers in a log of rows, or in all logs of an extraction's folder."""
    if not replay.startswith(FILE_PREFIX):
        raise InputError(
            f"REPLAY is {replay!r}: expected {RELEASE!r}, or '{FILE_PREFIX}PATH' of an "
            "extraction's folder or of one file of its rows"
        )
    path = epath.Path(replay.removeprefix(FILE_PREFIX)).expanduser()
    files: Iterable[epath.Path] = [path]
    if path.is_dir():
        logs = sorted((path / "rows").glob("*.jsonl"))
        files = [log for log in logs if not log.name.startswith("sent")]
    for file in files:
        # An answer takes the place of an error that came before it.
        latest: dict[tuple[str, str, int], _Recorded] = {}
        for where, row in read_jsonl(file):
            slot, recorded = _line(where, row)
            if slot in latest and not latest[slot].error:
                continue
            latest[slot] = recorded
        yield from latest.items()


def _line(where: str, row: dict[str, Any]) -> _Line:
    try:
        slot = (str(row["id"]), str(row["purpose"]), int(row["sample"]))
        error = row.get("error") or ""
        text = "" if error else row["text"]
        model = row.get("answered_by") or row["model"]
        recorded = _Recorded(
            text, model, row["key"], error=error, detail=row.get("detail", ""), where=where
        )
        if not all(isinstance(value, str) for value in (text, model, recorded.key, error)):
            raise TypeError("a field is no text")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: no line of an extraction's rows ({type(error).__name__}: {error}); "
            "correct REPLAY, or mend the line"
        ) from error
    return slot, recorded
