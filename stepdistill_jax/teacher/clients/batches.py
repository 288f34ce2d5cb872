"""Offline batches: half the price, completions within a day.

Their state is ``batches.json`` in EXTRACT_DIR, written before and after every step that costs
something, so a process killed at any moment submits nothing twice. A batch carries the name of its
part as metadata: one submitted right before a kill is found by listing the account's batches.
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
# The API's limits on one file.
MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
# Metadata of a batch that names its part.
_TAG = "stepdistill_part"

COMPLETED, FAILED = "completed", "failed"
# Final statuses of a batch -> the failure of requests without a completion.
_FINAL = {
    COMPLETED: failures.UNAVAILABLE,
    FAILED: failures.REFUSED,
    "expired": failures.EXPIRED,
    "cancelled": failures.CANCELLED,
}
_Result = TypeVar("_Result")


@dataclasses.dataclass
class Part:
    """One batch: a file of requests and its state at the endpoint.

    Attributes:
        name: of the part and its file; unique over all extractions.
        batch_id: "" until the endpoint has accepted the batch.
        status: the endpoint's word; "written" before that.
        completed, failed: requests, counted by the endpoint.
        output_files: ids of the files of completions and errors.
        errors: why the endpoint refused the batch as a whole; "" if it did not.
        collected: all responses are on disk.
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


@dataclasses.dataclass(frozen=True)
class BatchStatus:
    """Requests of all batches that are not collected; `finished` ones succeeded or failed."""

    requests: int
    finished: int
    is_over: bool


class Batches:
    """Submits requests, polls, and collects completions; any process can continue any step.

    Attributes:
        dialect: the fields of a request.
    """

    def __init__(self, extract: ExtractConfig) -> None:
        """Continues the state in EXTRACT_DIR.

        Raises:
            InputError: the endpoint's key is missing, or the state is damaged.
        """
        self._folder = epath.Path(extract.extract_dir)
        self._endpoint = endpoints.find(extract)
        self.dialect = protocol.Dialect(extract, self._endpoint.is_openai)
        self._client = openai.OpenAI(**self._endpoint.options(extract.timeout, extract.retries))
        self._parts = self._read_state()

    def submit(self, requests: Iterable[Request]) -> int:
        """Submits requests that are in no batch yet; returns how many.

        Equal requests (by key) are submitted once. Parts that a kill left unsent go out first.

        Raises:
            EndpointError: everything submitted before it is on record.
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
        """Keys of all requests in batches that are not collected."""
        return frozenset(key for part in self._open_parts() for key in self._keys(part))

    def poll(self) -> BatchStatus:
        """Asks the endpoint for the state of all batches.

        Raises:
            EndpointError: it does not respond, or does not know one of our batches.
        """
        for part in self._open_parts():
            if not part.batch_id:
                self._send(part, is_new=False)
            elif part.status not in _FINAL:
                retrieve = functools.partial(self._client.batches.retrieve, part.batch_id)
                self._update(part, self._call(retrieve))
        self._write_state()
        parts = self._open_parts()
        return BatchStatus(
            requests=sum(part.requests for part in parts),
            finished=sum(part.completed + part.failed for part in parts),
            is_over=all(part.status in _FINAL for part in parts),
        )

    def collect(self) -> Iterator[tuple[Part, dict[str, Completion | RequestError]]]:
        """Yields each ended batch with ``Request.key -> outcome`` for every request in it.

        Call `mark_collected` when the outcomes are on disk; until then they are yielded again.

        Raises:
            EndpointError: a file cannot be fetched, or, after all others were yielded, a batch was
                refused as a whole. That one is forgotten, so its requests can be submitted again.
        """
        refused = ""
        for part in self._open_parts():
            if part.status == FAILED:
                refused = refused or f"batch {part.batch_id} was refused: {part.errors}"
                self.mark_collected(part)
            elif part.status in _FINAL:
                yield part, dict(self._outcomes(part))
        if refused:
            raise EndpointError(
                f"{self._endpoint.shown}: {refused}. Fix the cause and start again."
            )

    def mark_collected(self, part: Part) -> None:
        """Notes that nothing more is needed from a batch."""
        part.collected = True
        self._write_state()
        self._input_file(part).unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    # -- one part

    def _send(self, part: Part, is_new: bool) -> None:
        """Uploads and submits a part, unless a killed process has done so."""
        batch = None if is_new else self._call(functools.partial(self._find, part))
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
        self._update(part, batch)
        self._write_state()

    def _find(self, part: Part) -> Any:
        """The batch that carries the part's name; None if there is none."""
        listed = self._client.batches.list(limit=100)
        return next((b for b in listed if (b.metadata or {}).get(_TAG) == part.name), None)

    @staticmethod
    def _update(part: Part, batch: Any) -> None:
        """Copies the endpoint's state of a batch."""
        counts = batch.request_counts
        files = (batch.output_file_id, batch.error_file_id)
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        part.batch_id = batch.id
        part.status = batch.status
        part.completed = counts.completed if counts else 0
        part.failed = counts.failed if counts else 0
        part.output_files = tuple(file for file in files if file)
        part.errors = "; ".join(failures.one_line(f"{e.code}: {e.message}") for e in errors[:3])

    def _outcomes(self, part: Part) -> Iterator[tuple[str, Completion | RequestError]]:
        missing = dict.fromkeys(self._keys(part))
        for file in part.output_files:
            content = self._call(functools.partial(self._client.files.content, file)).read()
            for line in content.splitlines():
                key, outcome = self._read_line(line)
                # Lines of other requests, and repeated lines, are ignored.
                if key in missing:
                    del missing[key]
                    yield key, outcome
        for key in missing:
            yield (
                key,
                RequestError(_FINAL[part.status], f"batch {part.batch_id} has no line for it"),
            )

    def _read_line(self, line: bytes) -> tuple[str, Completion | RequestError]:
        try:
            row = json.loads(line)
            key, error, response = row["custom_id"], row.get("error"), row.get("response")
            if error:
                is_expired = error.get("code") == "batch_expired"
                message = failures.one_line(error.get("message") or error)
                reason = failures.EXPIRED if is_expired else failures.UNAVAILABLE
                return key, RequestError(reason, message)
            status, body = response["status_code"], response["body"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EndpointError(
                f"{self._endpoint.shown}: a line of a batch's output does not follow the protocol: "
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
        failure = failures.classify(status, body, {}, self._endpoint)
        if isinstance(failure, failures.Again):
            return key, RequestError(failure.reason, failure.detail)
        if isinstance(failure, EndpointError):
            return key, RequestError(failures.REFUSED, str(failure))
        return key, failure

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
                if lines and (len(lines) == MAX_REQUESTS or size + len(line) > MAX_BYTES):
                    yield lines
                    lines, size = [], 0
                lines.append(line)
                size += len(line)
            yield lines

    def _line(self, request: Request) -> bytes:
        body = protocol.body(request, self.dialect)
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
                f"{path}: damaged state of offline batches ({type(error).__name__}). Restore the "
                "file, or move it away and look for running batches in your account."
            ) from error

    def _write_state(self) -> None:
        rows = [dataclasses.asdict(part) for part in self._parts]
        write_atomic(self._folder / STATE_FILE, json.dumps(rows, indent=1) + "\n")

    # -- the endpoint

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Calls `function`; the library retries its requests, since none of them is paid for.

        Raises:
            EndpointError: in place of the library's errors, which hold requests and their headers.
        """
        shown = self._endpoint.shown
        try:
            return function()
        except openai.APIStatusError as error:
            judged = failures.classify(
                error.status_code, error.body, error.response.headers, self._endpoint
            )
            if isinstance(judged, EndpointError):
                failure = judged
            else:
                failure = EndpointError(f"{shown} rejects the batch ({judged.detail}).")
        except openai.APIConnectionError as error:
            cause = failures.one_line(error.__cause__ or error)
            failure = EndpointError(
                f"{shown}: no connection ({cause}). Start again when it is back: submitted batches "
                "continue."
            )
        except json.JSONDecodeError:
            failure = EndpointError(f"{shown}: the response about a batch is not JSON.")
        raise failure
