"""The offline batch interface: half the price, an answer within a day.

State is ``batches.json`` in a folder, written before and after every step that costs something, so
that a process killed at any moment submits nothing twice. A batch carries its part's name as
metadata: one submitted right before a kill is found again by listing the account's batches.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import openai
from etils import epath

from stepdistill_jax.records import read_jsonl, write_atomic
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.clients import endpoint as endpoints
from stepdistill_jax.teacher.clients import failures, protocol
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Completion, EndpointError, Request, RequestError

STATE_FILE = "batches.json"
# The interface's limits on one file.
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
# Metadata of a batch that names its part.
_TAG = "stepdistill_part"

COMPLETED, FAILED = "completed", "failed"
# Statuses after which a batch no longer changes -> the reason of rows without an answer.
_OVER = {
    COMPLETED: failures.UNAVAILABLE,
    FAILED: failures.REFUSED,
    "expired": failures.EXPIRED,
    "cancelled": failures.CANCELLED,
}
_Result = TypeVar("_Result")


@dataclasses.dataclass
class Part:
    """One batch: a file of requests and what became of it.

    Attributes:
        name: of the part and its file; unique over all extractions.
        requests: in the file.
        batch_id: "" until the endpoint has taken it.
        status: as the endpoint calls it; "written" before that.
        completed, failed: requests, by the endpoint's count.
        output_files: ids of the files of answers and errors.
        errors: what was wrong with the batch as a whole, "" for nothing.
        collected: all answers were handed over.
    """

    name: str
    requests: int
    batch_id: str = ""
    status: str = "written"
    completed: int = 0
    failed: int = 0
    output_files: tuple[str, ...] = ()
    errors: str = ""
    collected: bool = False

    @property
    def is_over(self) -> bool:
        """Nothing of it will change."""
        return self.status in _OVER


@dataclasses.dataclass(frozen=True)
class BatchStatus:
    """Requests of all batches that are not collected yet; `over`: there is nothing to wait for."""

    batches: int
    requests: int
    completed: int
    failed: int
    over: bool


class Batch:
    """Submits requests, looks how far they are, and collects answers; in any process, any time."""

    def __init__(self, extract: ExtractConfig, folder: epath.PathLike) -> None:
        """Continues what lies in `folder`.

        Raises:
            InputError: the endpoint's key is missing, or the state is damaged.
        """
        self._folder = epath.Path(folder)
        self._endpoint = endpoints.find(extract)
        self._client = openai.OpenAI(**self._endpoint.options(extract.timeout, extract.retries))
        self._parts = self._read_state()

    def submit(self, requests: Iterable[Request]) -> int:
        """Submits all that is not waiting already; returns how many requests are new.

        Equal requests (by key) are submitted once. What a kill left unsent goes out first.

        Raises:
            EndpointError: with all that was submitted on record.
        """
        waiting = self.waiting()
        for part in self._open_parts():
            if not part.batch_id:
                self._send(part, is_new=False)
        new = {request.key: request for request in requests if request.key not in waiting}
        for lines in self._split(new.values()):
            part = Part(f"{len(self._parts):04d}-{uuid.uuid4().hex[:16]}", len(lines))
            write_atomic(self._input_file(part), b"".join(lines))
            self._parts.append(part)
            self._write_state()
            self._send(part, is_new=True)
        return len(new)

    def waiting(self) -> frozenset[str]:
        """Keys of all requests whose outcome was not collected."""
        return frozenset(key for part in self._open_parts() for key in self._keys(part))

    def poll(self) -> BatchStatus:
        """Asks the endpoint how far the batches are.

        Raises:
            EndpointError: it does not answer, or does not know a batch of ours.
        """
        for part in self._open_parts():
            if not part.batch_id:
                self._send(part, is_new=False)
            elif not part.is_over:
                retrieve = functools.partial(self._client.batches.retrieve, part.batch_id)
                self._note(part, self._call(retrieve))
        self._write_state()
        parts = self._open_parts()
        return BatchStatus(
            batches=len(parts),
            requests=sum(part.requests for part in parts),
            completed=sum(part.completed for part in parts),
            failed=sum(part.failed for part in parts),
            over=all(part.is_over for part in parts),
        )

    def collect(self) -> Iterator[tuple[str, Completion | RequestError]]:
        """Yields ``(Request.key, what came)`` for every request of the batches that are over.

        A batch counts as collected when the next one, or the end, is asked for: killed before, its
        answers are yielded again. `Completion.seconds` is 0.

        Raises:
            EndpointError: a file cannot be fetched, or, after all others were yielded, a batch was
                refused as a whole. It is then forgotten: what it asked can be submitted again.
        """
        refused = ""
        for part in self._open_parts():
            if not part.is_over:
                continue
            if part.status == FAILED:
                refused = refused or f"batch {part.batch_id} was refused: {part.errors}"
            else:
                yield from self._answers(part)
            part.collected = True
            self._write_state()
            self._input_file(part).unlink(missing_ok=True)
        if refused:
            raise EndpointError(f"{self._endpoint.shown}: {refused}; correct this and start again")

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    # -- one part

    def _send(self, part: Part, is_new: bool) -> None:
        """Uploads and submits; first looks whether a killed process did."""
        batch = None if is_new else self._find(part)
        if batch is None:
            with self._input_file(part).open("rb") as file:
                first = json.loads(file.readline())
                file.seek(0)
                upload = (f"{part.name}.jsonl", file.read())
            uploaded = self._call(lambda: self._client.files.create(file=upload, purpose="batch"))
            batch = self._call(
                lambda: self._client.batches.create(
                    input_file_id=uploaded.id,
                    endpoint=first["url"],
                    completion_window="24h",
                    metadata={_TAG: part.name},
                    extra_headers={"Idempotency-Key": part.name},
                )
            )
        self._note(part, batch)
        self._write_state()

    def _find(self, part: Part) -> Any:
        """The batch that carries the part's name, None where there is none."""

        def look() -> Any:
            return next(
                (
                    batch
                    for batch in self._client.batches.list(limit=100)
                    if (batch.metadata or {}).get(_TAG) == part.name
                ),
                None,
            )

        return self._call(look)

    @staticmethod
    def _note(part: Part, batch: Any) -> None:
        """Takes over what the endpoint says of a batch."""
        counts = batch.request_counts
        files = (batch.output_file_id, batch.error_file_id)
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        part.batch_id = batch.id
        part.status = batch.status
        part.completed = counts.completed if counts else 0
        part.failed = counts.failed if counts else 0
        part.output_files = tuple(file for file in files if file)
        part.errors = "; ".join(failures.one_line(f"{e.code}: {e.message}") for e in errors[:3])

    def _answers(self, part: Part) -> Iterator[tuple[str, Completion | RequestError]]:
        left = dict.fromkeys(self._keys(part))
        for file in part.output_files:
            content = self._call(functools.partial(self._client.files.content, file)).read()
            for line in content.splitlines():
                key, came = self._read_line(line)
                # One that is not ours, or that came before, is nobody's answer.
                if key in left:
                    del left[key]
                    yield key, came
        for key in left:
            yield key, RequestError(_OVER[part.status], f"batch {part.batch_id} has no line for it")

    def _read_line(self, line: bytes) -> tuple[str, Completion | RequestError]:
        try:
            row = json.loads(line)
            key, error, response = row["custom_id"], row.get("error"), row.get("response")
            if error:
                reason = failures.EXPIRED if error.get("code") == "batch_expired" else None
                said = failures.one_line(error.get("message") or error)
                return key, RequestError(reason or failures.UNAVAILABLE, said)
            status, body = response["status_code"], response["body"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EndpointError(
                f"{self._endpoint.shown}: a line of a batch's answers is not of the protocol: "
                f"{failures.one_line(line.decode('utf-8', 'replace'))}"
            ) from None
        try:
            if status == 200:
                return key, protocol.read(body, "", 0.0)
        except protocol.MalformedError as error:
            return key, RequestError(failures.MALFORMED, str(error), None, None)
        except RequestError as error:
            return key, error
        body = body.get("error", body) if isinstance(body, dict) else body
        judged = failures.judge(status, body, {}, self._endpoint)
        if isinstance(judged, failures.Again):
            return key, RequestError(judged.reason, judged.detail)
        if isinstance(judged, EndpointError):
            return key, RequestError(failures.REFUSED, str(judged))
        return key, judged

    # -- files

    def _split(self, requests: Iterable[Request]) -> Iterator[list[bytes]]:
        """Lines of files within the limits; a file has one model and one address."""
        grouped: dict[tuple[str, str], list[Request]] = {}
        for request in requests:
            grouped.setdefault((request.model, protocol.path(request)), []).append(request)
        for group in grouped.values():
            lines: list[bytes] = []
            size = 0
            for request in group:
                line = self._line(request)
                if lines and (len(lines) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
                    yield lines
                    lines, size = [], 0
                lines.append(line)
                size += len(line)
            yield lines

    def _line(self, request: Request) -> bytes:
        body = protocol.body(request, self._endpoint.is_openai)
        url = f"/v1{protocol.path(request)}"
        row = {"custom_id": request.key, "method": "POST", "url": url, "body": body}
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()

    def _input_file(self, part: Part) -> epath.Path:
        return self._folder / f"batch-{part.name}.jsonl"

    def _keys(self, part: Part) -> list[str]:
        return [row["custom_id"] for _, row in read_jsonl(self._input_file(part))]

    def _open_parts(self) -> list[Part]:
        return [part for part in self._parts if not part.collected]

    def _read_state(self) -> list[Part]:
        path = self._folder / STATE_FILE
        if not path.exists():
            return []
        try:
            rows = json.loads(path.read_text())
            return [Part(**{**row, "output_files": tuple(row["output_files"])}) for row in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}: not the state of this program's batches ({type(error).__name__}); "
                "restore the file, or move it away and look at the account for batches that run"
            ) from error

    def _write_state(self) -> None:
        rows = [dataclasses.asdict(part) for part in self._parts]
        write_atomic(self._folder / STATE_FILE, json.dumps(rows, indent=1) + "\n")

    # -- the endpoint

    def _call(self, ask: Callable[[], _Result]) -> _Result:
        """What `ask` returns; the library has its own retries.

        Raises:
            EndpointError: in place of the library's errors, which hold requests and their headers.
        """
        shown = self._endpoint.shown
        try:
            return ask()
        except openai.APIStatusError as error:
            judged = failures.judge(
                error.status_code, error.body, error.response.headers, self._endpoint
            )
            if isinstance(judged, EndpointError):
                failure = judged
            else:
                failure = EndpointError(f"{shown} does not take the batch ({judged.detail})")
        except openai.APIConnectionError as error:
            cause = failures.one_line(error.__cause__ or error)
            failure = EndpointError(
                f"{shown}: no connection ({cause}); start again when there is one, and the batches "
                "go on from where they are"
            )
        except json.JSONDecodeError:
            failure = EndpointError(f"{shown}: the answer about a batch is not JSON")
        raise failure
