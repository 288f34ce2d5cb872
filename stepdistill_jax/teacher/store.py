"""The folder of an extraction: append-only logs of paid responses and of sent requests.

``rows/<unit>.jsonl`` holds one line per request, written whole with one system call as soon as the
response arrives, so a process killed at any moment loses none. ``rows/sent.jsonl``, the journal, is
written before a request is sent: a request without a response may have been paid for. Worker 1 of 4
has its own files, ``rows/train-1-of-4.jsonl`` and ``rows/sent-1-of-4.jsonl``; a reader of a unit
reads all its files. Files of other names are ignored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import append_log
from stepdistill_jax.teacher.budget import NO_TOKENS, Tokens, shared_start
from stepdistill_jax.teacher.config import SPLITS
from stepdistill_jax.teacher.requests import (
    Completion,
    Decoding,
    Request,
    RequestError,
    Slot,
    is_cut,
)

# A replay reads the logs of a folder on a store too.
_Folder = TypeVar("_Folder", pathlib.Path, epath.Path)
ROWS_FOLDER = "rows"
SUMMARY_FILE = "summary.json"
_SENT = "sent"
_NAME = re.compile(r"([a-z]+)(?:-(\d+)-of-(\d+))?\.jsonl")
# In an error: characters of a text, and of those before the place where two texts differ.
_SHOWN, _BEFORE = 60, 20


@dataclasses.dataclass(frozen=True)
class Share:
    """The examples that one of several workers asks about."""

    worker: int = 0
    workers: int = 1

    def has(self, example_id: str) -> bool:
        """Whether an example is this worker's: by its id alone, so all machines agree."""
        digest = hashlib.sha256(example_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.workers == self.worker

    @property
    def suffix(self) -> str:
        """In the names of this worker's files."""
        return f"-{self.worker}-of-{self.workers}" if self.workers > 1 else ""


ALONE = Share()


@dataclasses.dataclass(frozen=True)
class Response:
    """A line of the log: one request and its outcome.

    Attributes:
        answered_by: the model's name at the endpoint, where it differs from `model`.
        text, finish_reason: of the completion; "" where there is an error.
        prompt_tokens, completion_tokens: the endpoint's counts; None where it reports none.
        seconds: from sending to the last byte.
        at: time of arrival, in seconds since 1970.
        cached: from the response cache; nothing was sent.
        send: name of the sending, as in the journal; "" where nothing was sent.
        charged: tokens that count as paid for: the endpoint's counts, else the bound.
        error, detail: of a `RequestError`.
        source: address of the endpoint, where there is an error; "" in older logs.
        omitted: see `Completion`.
        where: ``file:line``.
        share: whose file the line is in.
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
    charged: Tokens = NO_TOKENS
    answered_by: str = ""
    error: str = ""
    detail: str = ""
    source: str = ""
    omitted: str = ""
    where: str = dataclasses.field(default="", compare=False)
    share: Share = dataclasses.field(default=ALONE, compare=False)

    @classmethod
    def of(
        cls,
        request: Request,
        prompt_hash: str,
        outcome: Completion | RequestError,
        *,
        charged: Tokens = NO_TOKENS,
        send: str = "",
        cached: bool = False,
        at: float = 0.0,
        source: str = "",
    ) -> Response:
        """The line for the outcome of a request."""
        response = cls(
            id=request.example_id,
            purpose=request.purpose,
            sample=request.sample,
            key=request.key,
            prompt_hash=prompt_hash,
            model=request.model,
            decoding=request.decoding,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            send=send,
            charged=charged,
            at=round(at, 3),
        )
        if isinstance(outcome, RequestError):
            detail = _encodable(outcome.detail)
            return dataclasses.replace(response, error=outcome.reason, detail=detail, source=source)
        return dataclasses.replace(
            response,
            text=_encodable(outcome.text),
            finish_reason=_encodable(outcome.finish_reason),
            seconds=round(outcome.seconds, 4),
            cached=cached,
            answered_by="" if outcome.model == request.model else _encodable(outcome.model),
            omitted=outcome.omitted,
        )

    @property
    def slot(self) -> Slot:
        """The request that it answers: there is one answer each."""
        return (self.id, self.purpose, self.sample)

    def row(self) -> dict[str, Any]:
        """The line as a JSON object; fields that do not apply are left out."""
        row = dataclasses.asdict(self)
        unused = ("text", "finish_reason") if self.error else ("error", "detail")
        empty = (name for name in ("answered_by", "send", "source", "omitted") if not row[name])
        for name in ("where", "share", *unused, *empty):
            del row[name]
        return row

    @classmethod
    def read(cls, where: str, share: Share, row: Mapping[str, Any]) -> Response:
        """The response of a line.

        Raises:
            InputError: the line is of another kind.
        """
        try:
            typed = {"decoding": Decoding(**row["decoding"]), "charged": Tokens(*row["charged"])}
            return cls(**{**row, **typed, "where": where, "share": share})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{where}: not a line of an extraction's log ({error}). Fix or remove the line."
            ) from error


def _encodable(text: str) -> str:
    """Replaces a lone surrogate, which JSON can carry and UTF-8 cannot, by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _files(folder: _Folder) -> list[tuple[str, Share, _Folder]]:
    """(unit or "sent", worker, file) of every log; the files of a lone process come first."""
    files = []
    for path in (folder / ROWS_FOLDER).glob("*.jsonl"):
        match = _NAME.fullmatch(path.name)
        share = Share(int(match[2] or 0), int(match[3] or 1)) if match else ALONE
        if match and share.worker < share.workers:
            files.append((match[1], share, path))
    return sorted(files, key=lambda file: (file[0], file[1].workers, file[1].worker))


def log_files(folder: _Folder) -> list[_Folder]:
    """Every file of responses."""
    return [path for unit, _, path in _files(folder) if unit != _SENT]


def units(folder: pathlib.Path) -> list[str]:
    """The units of which a folder has responses, in their order."""
    return in_order(unit for unit, _, _ in _files(folder) if unit != _SENT)


def in_order(names: Iterable[str]) -> list[str]:
    """Each unit once: train, validation, test, then inputs."""
    splits = [*SPLITS]
    return sorted({*names}, key=lambda name: (splits.index(name) if name in splits else 3, name))


def missing_workers(folders: Iterable[pathlib.Path]) -> list[Share]:
    """Workers without a file in any folder, where another of as many workers has one."""
    present: dict[int, set[int]] = {}
    for folder in folders:
        for _, share, _ in _files(folder):
            present.setdefault(share.workers, set()).add(share.worker)
    return [
        Share(worker, workers)
        for workers, numbers in sorted(present.items())
        for worker in range(workers)
        if worker not in numbers
    ]


def has_completions(folder: pathlib.Path) -> bool:
    """Whether a log has a response that is not a failure."""
    rows = (row for path in log_files(folder) for _, row in append_log.read(path))
    return any(not row.get("error") for row in rows)


def _lines(folder: pathlib.Path, unit: str) -> Iterator[tuple[str, Share, dict[str, Any]]]:
    """(where, worker, object) of every line on a unit, or of the journal."""
    for name, share, path in _files(folder):
        if name == unit:
            for where, row in append_log.read(path):
                yield where, share, row


def read_responses(folder: pathlib.Path, unit: str) -> list[Response]:
    """Every line on a unit, of all workers.

    Raises:
        InputError: a line in the middle of a file is damaged.
    """
    return [Response.read(*line) for line in _lines(folder, unit)]


def latest(responses: Iterable[Response]) -> dict[Slot, Response]:
    """(id, purpose, sample) -> its response.

    A completion replaces an error, and a later error an earlier one. A completion that reached its
    MAX_NEW_TOKENS is replaced by a later response under another MAX_NEW_TOKENS.

    Raises:
        InputError: two different completions for one request, naming both lines.
    """
    by_slot: dict[Slot, Response] = {}
    for response in sorted(responses, key=lambda each: each.at):
        other = by_slot.get(response.slot)
        if other is None or other.error or _was_sent_again(other, response):
            by_slot[response.slot] = response
        elif not response.error and (other.key, other.text) != (response.key, response.text):
            raise InputError(
                f"{other.where} and {response.where}: different responses to one request: id "
                f"{response.id}, {response.purpose} {response.sample}: "
                f"{_difference(other, response)}. Remove one of the lines."
            )
    return by_slot


def _was_sent_again(earlier: Response, later: Response) -> bool:
    """Whether a completion that reached MAX_NEW_TOKENS was asked for again under another one."""
    has_other_limit = earlier.decoding.max_new_tokens != later.decoding.max_new_tokens
    return is_cut(earlier.finish_reason) and has_other_limit


def _difference(one: Response, other: Response) -> str:
    """The two texts around the place where they differ."""
    if one.text == other.text:
        return "equal texts, to requests of different content (example, model or prompt)"
    start = max(0, shared_start(one.text, other.text) - _BEFORE)
    end = start + _SHOWN
    return " and ".join(
        f"{'…' * bool(start)}{text[start:end]!r}{'…' * (end < len(text))}"
        for text in (one.text, other.text)
    )


@dataclasses.dataclass(frozen=True)
class Sending:
    """A line of the journal: a request that was about to be sent.

    Attributes:
        send: its name.
        bound: worst-case tokens.
        batch: it goes into an offline batch, whose completions outlive the process.
        where: ``file:line``; "" for a sending of this process.
        share: whose file the line is in.
    """

    send: str
    slot: Slot
    bound: Tokens
    key: str = ""
    batch: bool = False
    where: str = ""
    share: Share = ALONE


def unanswered(folder: pathlib.Path, responses: Iterable[Response]) -> list[Sending]:
    """Requests that were sent and have no response, of all workers."""
    sent: dict[str, Sending] = {}
    settled = {response.send for response in responses}
    for where, share, row in _lines(folder, _SENT):
        try:
            if "bound" in row:
                slot = (row["id"], row["purpose"], row["sample"])
                bound = Tokens(*row["bound"])
                key, batch = row.get("key", ""), row.get("batch", False)
                sent[row["send"]] = Sending(row["send"], slot, bound, key, batch, where, share)
            else:
                settled.add(row["send"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{where}: not a line of a journal. Remove the line.") from error
    return [sending for send, sending in sent.items() if send not in settled]


class Store:
    """The files that one worker writes.

    Attributes:
        torn: messages about torn last lines that were cut off.
    """

    def __init__(self, folder: pathlib.Path, names: Sequence[str], share: Share) -> None:
        """Opens the journal and the logs of the units `names`.

        Raises:
            InputError: another process has them open, or they cannot be locked.
        """
        rows = folder / ROWS_FOLDER
        self._journal = append_log.AppendLog(rows / f"{_SENT}{share.suffix}.jsonl")
        self._logs = {
            name: append_log.AppendLog(rows / f"{name}{share.suffix}.jsonl") for name in names
        }
        self.torn = [
            f"{log.path}: cut off a torn last line ({log.cut} bytes); its request is sent again"
            for log in self._logs.values()
            if log.cut
        ]

    def sending(self, request: Request, bound: Tokens, batch: bool = False) -> Sending:
        """Notes that a request is about to be sent, or to be put into an offline batch."""
        sending = Sending(uuid.uuid4().hex[:16], request.slot, bound, request.key, batch)
        row: dict[str, Any] = {"send": sending.send}
        row |= zip(("id", "purpose", "sample"), request.slot, strict=True)
        row |= {"bound": list(bound), "key": request.key} | ({"batch": True} if batch else {})
        self._journal.append(row)
        return sending

    def unpaid(self, sending: Sending) -> None:
        """Notes that the endpoint charged nothing for a request."""
        self._journal.append({"send": sending.send, "unpaid": True})

    def append(self, unit: str, response: Response) -> None:
        """Adds a response to its log."""
        self._logs[unit].append(response.row())

    def close(self) -> None:
        """Closes the files."""
        for log in (self._journal, *self._logs.values()):
            log.close()


def merge(folders: Sequence[pathlib.Path], out: pathlib.Path) -> dict[str, int]:
    """Joins the logs of several folders, or of one folder's workers, into those of a lone process.

    The lines of `out` come first, so the same merge again changes nothing.

    Returns:
        Unit -> number of lines.

    Raises:
        InputError: two different responses to one request, naming both lines; nothing is written.
    """
    sources = [out, *(f for f in folders if f.resolve() != out.resolve())]
    merged: dict[str, list[dict[str, Any]]] = {}
    for name in [*in_order(unit for folder in sources for unit in units(folder)), _SENT]:
        lines = [
            (f"{folder}/{where}", share, row)
            for folder in sources
            for where, share, row in _lines(folder, name)
        ]
        if name != _SENT:
            latest(Response.read(*line) for line in lines)
        distinct: dict[str, dict[str, Any]] = {}
        for _, _, row in lines:
            distinct.setdefault(json.dumps(row, sort_keys=True), row)
        merged[name] = [*distinct.values()]
    for name, rows in merged.items():
        records.write_jsonl(out / ROWS_FOLDER / f"{name}.jsonl", rows)
    return {unit: len(rows) for unit, rows in merged.items() if unit != _SENT}
