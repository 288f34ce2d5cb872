"""The folder of an extraction: an append-only log of paid answers, and what is made of it.

``rows/<unit>.jsonl`` holds one line a request, written whole with one system call the moment its
answer is there, so that a process killed at any moment loses no answer. ``rows/sent.jsonl`` is
written before a request is sent: what was sent and never answered may have been paid for. Worker 1
of 4 has files of its own, ``rows/train-1-of-4.jsonl`` and ``rows/sent-1-of-4.jsonl``; whoever reads
a unit reads all of its files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepdistill_jax import records
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import append_log
from stepdistill_jax.teacher.budget import NOTHING, Tokens
from stepdistill_jax.teacher.config import SPLITS
from stepdistill_jax.teacher.requests import Completion, Decoding, Request, RequestError

ROWS_FOLDER = "rows"
PROMPT_FILE = "prompt.json"
SUMMARY_FILE = "summary.json"
_SENT = "sent"
_NAME = re.compile(r"([a-z]+)(?:-(\d+)-of-(\d+))?\.jsonl")


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the rows that one of several machines asks about."""

    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.worker < self.workers:
            raise InputError(
                f"worker {self.worker} of {self.workers}: expected 0 to {self.workers - 1}; set "
                "--worker and --workers, or EXTRACT_WORKER and EXTRACT_WORKERS in the environment"
            )

    def has(self, row_id: str) -> bool:
        """Whether a row is this worker's: by its id alone, so that machines agree."""
        digest = hashlib.sha256(row_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.workers == self.worker

    @property
    def suffix(self) -> str:
        """In the names of this worker's files."""
        return f"-{self.worker}-of-{self.workers}" if self.workers > 1 else ""


@dataclasses.dataclass(frozen=True)
class Response:
    """A line of the log: one request and what came of it.

    Attributes:
        id, purpose, sample, key: of the request.
        prompt_hash: of the prompt that it was made with.
        model: asked; `answered_by` where the endpoint calls it something else.
        decoding: how it was written.
        text, finish_reason: as they came; "" where there is an error.
        prompt_tokens, completion_tokens: by the endpoint's count; None where it says none.
        seconds: from sending to the last byte.
        at: when it came, in seconds since 1970.
        cached: from the cache of answers; nothing was sent.
        send: names the sending, in the journal too; "" where nothing was sent.
        charged: tokens that count as paid for: the endpoint's count, else the bound.
        error, detail: of a `RequestError`.
        where: ``file:line``.
    """

    id: str
    purpose: str
    sample: int
    key: str
    prompt_hash: str
    model: str
    decoding: Decoding
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    at: float = 0.0
    cached: bool = False
    send: str = ""
    charged: Tokens = NOTHING
    answered_by: str = ""
    error: str = ""
    detail: str = ""
    where: str = dataclasses.field(default="", compare=False)

    @classmethod
    def of(
        cls,
        request: Request,
        prompt_hash: str,
        came: Completion | RequestError,
        *,
        charged: Tokens = NOTHING,
        send: str = "",
        cached: bool = False,
        at: float = 0.0,
    ) -> Response:
        """What came of a request."""
        answer = cls(
            id=request.row_id,
            purpose=request.purpose,
            sample=request.sample,
            key=request.key,
            prompt_hash=prompt_hash,
            model=request.model,
            decoding=request.decoding,
            prompt_tokens=came.prompt_tokens,
            completion_tokens=came.completion_tokens,
            send=send,
            charged=charged,
            at=round(at, 3),
        )
        if isinstance(came, RequestError):
            detail = _writable(came.detail)
            return dataclasses.replace(answer, error=came.reason, detail=detail)
        return dataclasses.replace(
            answer,
            text=_writable(came.text),
            finish_reason=_writable(came.finish_reason),
            seconds=round(came.seconds, 4),
            cached=cached,
            answered_by="" if came.model == request.model else _writable(came.model),
        )

    @property
    def slot(self) -> tuple[str, str, int]:
        """The question that it answers: there is one answer each."""
        return (self.id, self.purpose, self.sample)

    def row(self) -> dict[str, Any]:
        """The line as a JSON object; fields that say nothing are left out."""
        found = dataclasses.asdict(self)
        del found["where"]
        lacking = ("text", "finish_reason") if self.error else ("error", "detail")
        optional = ("answered_by", "send")
        gone = {*lacking, *(name for name in optional if not found[name])}
        return {name: value for name, value in found.items() if name not in gone}


def _writable(text: str) -> str:
    """Half a character, which JSON can carry and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _answer(where: str, row: Mapping[str, Any]) -> Response:
    try:
        decoding = Decoding(**row["decoding"])
        charged = Tokens(*row["charged"])
        return Response(**{**row, "decoding": decoding, "charged": charged, "where": where})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where}: no line of an extraction's log ({error}); mend or remove the line"
        ) from error


def _files(folder: pathlib.Path, unit: str) -> list[pathlib.Path]:
    """The files of a unit, or of the journal; that of a lone process first."""
    found = []
    for path in (folder / ROWS_FOLDER).glob("*.jsonl"):
        match = _NAME.fullmatch(path.name)
        if match and match[1] == unit:
            found.append((int(match[3] or 0), int(match[2] or 0), path))
    return [path for _, _, path in sorted(found)]


def share_of(where: str) -> Share:
    """Whose file a line is in."""
    match = _NAME.fullmatch(where.rpartition("/")[2].partition(":")[0])
    return Share(int(match[2]), int(match[3])) if match and match[2] else Share()


def units(folder: pathlib.Path) -> list[str]:
    """The units of which a folder holds answers: splits in their usual order, then inputs."""
    names = [_NAME.fullmatch(path.name) for path in (folder / ROWS_FOLDER).glob("*.jsonl")]
    return in_order(match[1] for match in names if match and match[1] != _SENT)


def in_order(names: Iterable[str]) -> list[str]:
    """Each unit once: train, validation, test, then what is no split."""
    splits = [*SPLITS]
    return sorted({*names}, key=lambda name: (splits.index(name) if name in splits else 3, name))


def absent(folders: Iterable[pathlib.Path]) -> list[Share]:
    """Workers of whom no file lies in the folders, where another of as many workers has one."""
    present: dict[int, set[int]] = {}
    for folder in folders:
        for path in (folder / ROWS_FOLDER).glob("*.jsonl"):
            share = share_of(path.name)
            present.setdefault(share.workers, set()).add(share.worker)
    return [
        Share(worker, workers)
        for workers, found in sorted(present.items())
        for worker in range(workers)
        if worker not in found
    ]


def has_answers(folder: pathlib.Path) -> bool:
    """Whether any line is there."""
    files = (path for unit in units(folder) for path in _files(folder, unit))
    return any(path.stat().st_size for path in files)


def read_answers(folder: pathlib.Path, unit: str) -> list[Response]:
    """Every line on a unit, of all workers.

    Raises:
        InputError: a line in the middle of a file is damaged.
    """
    return [_answer(*line) for path in _files(folder, unit) for line in append_log.read(path)]


def answered(answers: Iterable[Response]) -> dict[tuple[str, str, int], Response]:
    """(id, purpose, sample) -> its answer; an answer takes the place of an error.

    Raises:
        InputError: two different answers to one question, naming both lines.
    """
    found: dict[tuple[str, str, int], Response] = {}
    for answer in answers:
        other = found.setdefault(answer.slot, answer)
        if other is answer or answer.error:
            continue
        if other.error:
            found[answer.slot] = answer
        elif (other.key, other.text) != (answer.key, answer.text):
            raise InputError(
                f"{other.where} and {answer.where} answer one question differently: id "
                f"{answer.id}, {answer.purpose} {answer.sample}: "
                f"{_difference(other, answer)}; remove one of the lines"
            )
    return found


# Characters of a text that are shown, and of those before the place where two part.
_SHOWN, _BEFORE = 60, 20


def _difference(one: Response, other: Response) -> str:
    """The two texts about where they part."""
    if one.text == other.text:
        return "the same text to requests of another content (the row, the model or the prompt)"
    pairs = enumerate(zip(one.text, other.text, strict=False))
    ends = min(len(one.text), len(other.text))
    start = max(0, next((at for at, (a, b) in pairs if a != b), ends) - _BEFORE)
    return " and ".join(_excerpt(answer.text, start) for answer in (one, other))


def _excerpt(text: str, start: int) -> str:
    cut = text[start : start + _SHOWN]
    before = "…" if start else ""
    return f"{before}{cut!r}{'…' if start + _SHOWN < len(text) else ''}"


@dataclasses.dataclass(frozen=True)
class Sending:
    """A line of the journal: a request that was about to be sent.

    Attributes:
        send: its name.
        slot: (id, purpose, sample) of the request.
        bound: tokens that it may come to.
        key: of the request.
        batch: it goes into an offline batch, whose answers outlive the process.
        where: ``file:line``; "" of this process.
    """

    send: str
    slot: tuple[str, str, int]
    bound: Tokens
    key: str = ""
    batch: bool = False
    where: str = ""


def unanswered(folder: pathlib.Path, answers: Iterable[Response]) -> list[Sending]:
    """What was sent and never answered, of all workers."""
    sent: dict[str, Sending] = {}
    settled = {answer.send for answer in answers}
    for path in _files(folder, _SENT):
        for where, row in append_log.read(path):
            try:
                if "bound" in row:
                    slot = (row["id"], row["purpose"], row["sample"])
                    bound = Tokens(*row["bound"])
                    key, batch = row.get("key", ""), row.get("batch", False)
                    sent[row["send"]] = Sending(row["send"], slot, bound, key, batch, where)
                else:
                    settled.add(row["send"])
            except (KeyError, TypeError) as error:
                raise InputError(f"{where}: no line of a journal; remove the line") from error
    return [sending for send, sending in sent.items() if send not in settled]


class Store:
    """What one worker writes into an extraction's folder.

    Attributes:
        torn: messages on torn last lines that were cut off.
    """

    def __init__(self, folder: pathlib.Path, names: Sequence[str], share: Share) -> None:
        """Opens the logs of some units.

        Raises:
            InputError: another process is at them, or the folder is no local one.
        """
        self.folder = folder
        rows = folder / ROWS_FOLDER
        self._journal = append_log.AppendLog(rows / f"{_SENT}{share.suffix}.jsonl")
        self._logs = {
            name: append_log.AppendLog(rows / f"{name}{share.suffix}.jsonl") for name in names
        }
        self.torn = [
            f"{opened.path}: the last line was torn, {opened.cut} bytes are cut off; "
            "it is asked again"
            for opened in self._logs.values()
            if opened.cut
        ]

    def sending(self, request: Request, bound: Tokens, batch: bool = False) -> Sending:
        """Notes that a request is about to be sent, or to be put into an offline batch."""
        slot = (request.row_id, request.purpose, request.sample)
        made = Sending(uuid.uuid4().hex[:16], slot, bound, request.key, batch)
        row: dict[str, Any] = {"send": made.send, "id": request.row_id, "purpose": request.purpose}
        row |= {"sample": request.sample, "bound": list(bound), "key": request.key}
        self._journal.append({**row, **({"batch": True} if batch else {})})
        return made

    def unpaid(self, sending: Sending) -> None:
        """Notes that the endpoint took nothing for a request."""
        self._journal.append({"send": sending.send, "unpaid": True})

    def append(self, unit: str, answer: Response) -> None:
        """Adds an answer to its log."""
        self._logs[unit].append(answer.row())

    def close(self) -> None:
        """Lets go of the files."""
        for opened in (self._journal, *self._logs.values()):
            opened.close()


def merge(folders: Sequence[pathlib.Path], out: pathlib.Path) -> dict[str, int]:
    """Joins the logs of several folders, or of one folder's workers, into those of a lone process.

    What lies in `out` comes first, so that the same merge again changes nothing.

    Returns:
        Unit -> lines.

    Raises:
        InputError: two different answers to one question, naming both lines; nothing is written.
    """
    sources = [out, *(f for f in folders if f.resolve() != out.resolve())]
    merged: dict[str, list[dict[str, Any]]] = {}
    for unit in in_order(unit for folder in sources for unit in units(folder)):
        found: dict[str, dict[str, Any]] = {}
        answers = []
        for folder in sources:
            for path in _files(folder, unit):
                for where, row in append_log.read(path):
                    answers.append(_answer(f"{folder}/{where}", row))
                    found.setdefault(json.dumps(row, sort_keys=True), row)
        answered(answers)
        merged[unit] = list(found.values())
    journal: dict[str, dict[str, Any]] = {}
    for folder in sources:
        for path in _files(folder, _SENT):
            for _, row in append_log.read(path):
                journal.setdefault(json.dumps(row, sort_keys=True), row)
    for unit, rows in {**merged, _SENT: list(journal.values())}.items():
        records.write_jsonl(out / ROWS_FOLDER / f"{unit}.jsonl", rows)
    return {unit: len(rows) for unit, rows in merged.items()}
