"""A small endpoint that speaks OpenAI's protocol on a free port of this machine, with faults.

    with TeacherServer(answer=lambda asked: f"So the answer is {len(asked.last)}.") as server:
        server.plan(too_many("0"), BROKEN, None)    # the next three requests; None = an answer
        ...  TEACHER_URL=server.url, TEACHER_MODEL=server.models[0] ...
        assert server.received == 3 and len(server.answered) == 1

What it does with a request for an answer (chat/completions, completions):

1. refuses a wrong key (`key` is not "") or a model that is not one of `models`;
2. takes the next planned fault, else what `faults(asked)` gives: set `server.faults = f` for faults
   by row, such as ``lambda asked: BROKEN if "row 7" in asked.last else None``;
3. waits `latency` seconds, and answers ``answer(asked)``. `answer` is a pure function of the
   question, so that equal questions get equal answers.

What it counts, all under one lock:

- `asked`: every request for an answer, in order of arrival (`received` is their number);
- `answered`: those that got a good answer;
- `by_key`, `answered_by_key`: the same by Idempotency-Key;
- `most_in_flight`: at any moment;
- `paths`: every request of any kind, as "POST /v1/files".

Tokens of `usage` are words: of all that the request says, and of the answer. It also serves
/v1/models (with `model_fields` in every entry), /props (`props`), /tokenize (if `tokenizes`), and
files and batches: a batch is over after it was looked at `batch_looks` times and ends as
`batch_ends` (completed, failed, expired, cancelled); an expired one has answered every second row.
"""

from __future__ import annotations

import collections
import dataclasses
import email.parser
import email.policy
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request for an answer: what it says and under which headers."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")

    @property
    def last(self) -> str:
        """The prompt, or the last message."""
        return (
            self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]
        )

    @property
    def text(self) -> str:
        """All that it says."""
        if "prompt" in self.body:
            return self.body["prompt"]
        return "\n".join(message["content"] for message in self.body["messages"])


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens in place of an answer.

    Attributes:
        status: of HTTP; 0 closes the connection without a word.
        error: the error object's fields.
        headers: more of them.
        raw: the whole body, in place of an error object.
        change: makes the body of a good answer a bad one.
        seconds: waited before the answer, or, with `dribbles`, spent on sending its bytes.
        dribbles: headers are sent at once, and the body byte by byte.
    """

    status: int = 200
    error: dict[str, Any] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    raw: str | None = None
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    seconds: float = 0.0
    dribbles: bool = False


def too_many(retry_after: str = "0", header: str = "retry-after") -> Fault:
    error = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}
    return Fault(429, error, ((header, retry_after),) if retry_after else ())


def slow(seconds: float) -> Fault:
    """A good answer, late."""
    return Fault(seconds=seconds)


def dribble(seconds: float) -> Fault:
    """A good answer whose bytes take `seconds`."""
    return Fault(seconds=seconds, dribbles=True)


def _with_text(
    text: str | None, reason: str = "stop"
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(body: dict[str, Any]) -> dict[str, Any]:
        (choice,) = body["choices"]
        choice["finish_reason"] = reason
        if "message" in choice:
            choice["message"]["content"] = text
        else:
            choice["text"] = text
        return body

    return change


BROKEN = Fault(500, {"message": "The server had an error", "type": "server_error", "code": None})
OVERLOADED = Fault(503, raw="<html>upstream connect error</html>")
DROPPED = Fault(0)
MALFORMED = Fault(raw='{"id": "cut off", "choices": [{"mess')
HTML = Fault(raw="<html>Welcome to the proxy</html>", headers=(("content-type", "text/html"),))
NO_CHOICES = Fault(change=lambda body: {**body, "choices": []})
NO_FIELDS = Fault(raw="{}")
EMPTY = Fault(change=_with_text(""))
NULL = Fault(change=_with_text(None))
CUT = Fault(change=_with_text("cut sho", "length"))
FILTERED = Fault(change=_with_text("I can", "content_filter"))
REFUSED_BY_FILTER = Fault(
    400, {"message": "flagged by our policy", "code": "content_filter", "param": "prompt"}
)
TOO_LONG = Fault(
    400,
    {
        "message": "This model's maximum context length is 2048 tokens, however you requested 3000",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
        "param": "messages",
    },
)
BAD_PARAMETER = Fault(
    400,
    {
        "message": "Unsupported value: 'temperature' does not support 0",
        "type": "invalid_request_error",
        "code": "unsupported_value",
        "param": "temperature",
    },
)
REFUSED = Fault(400, {"message": "cannot read this", "type": "invalid_request_error", "code": None})
QUOTA = Fault(
    429,
    {
        "message": "You exceeded your current quota, please check your plan and billing details",
        "type": "insufficient_quota",
        "code": "insufficient_quota",
    },
)
NO_PERMISSION = Fault(403, {"message": "Project does not have access", "code": None})


def by_hash(asked: Asked) -> str:
    """A few words that depend on the whole question."""
    return f"answer {hashlib.sha256(asked.text.encode()).hexdigest()[:12]}"


class TeacherServer:
    """See the module's docstring."""

    def __init__(
        self,
        answer: Callable[[Asked], str] = by_hash,
        models: tuple[str, ...] = ("teacher",),
        key: str = "",
        latency: float = 0.0,
        usage: bool = True,
    ) -> None:
        self.answer = answer
        self.models = models
        self.key = key
        self.latency = latency
        self.usage = usage
        self.faults: Callable[[Asked], Fault | None] = lambda asked: None
        self.model_fields: dict[str, Any] = {}
        self.props: dict[str, Any] | None = None
        self.tokenizes = False
        self.batch_looks = 1
        self.batch_ends = "completed"
        self.asked: list[Asked] = []
        self.answered: list[Asked] = []
        self.paths: list[str] = []
        self.most_in_flight = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self._looked: collections.Counter[str] = collections.Counter()
        self._planned: collections.deque[Fault | None] = collections.deque()
        self._in_flight = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.teacher = self
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> TeacherServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        """What TEACHER_URL is set to."""
        return f"{self.root}/v1"

    @property
    def received(self) -> int:
        return len(self.asked)

    @property
    def by_key(self) -> collections.Counter[str]:
        with self._lock:
            return collections.Counter(asked.key for asked in self.asked)

    @property
    def answered_by_key(self) -> collections.Counter[str]:
        with self._lock:
            return collections.Counter(asked.key for asked in self.answered)

    def plan(self, *faults: Fault | None) -> None:
        """Gives the next requests these, in order of arrival; None is a good answer."""
        with self._lock:
            self._planned.extend(faults)

    # What the handler calls: each method returns (status, headers, body), or None to hang up.

    def reply(
        self, method: str, path: str, headers: dict[str, str], content: bytes
    ) -> tuple[int, dict[str, str], bytes, float] | None:
        with self._lock:
            self.paths.append(f"{method} {path.split('?')[0]}")
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            # As careless as an endpoint can be: it repeats what it was sent.
            sent = headers.get("authorization", "")
            return _error(401, f"Incorrect API key provided: {sent}", "invalid_api_key")
        if path in ("/v1/chat/completions", "/v1/completions"):
            return self._complete(Asked(path, json.loads(content), headers))
        if path == "/v1/models":
            entries = [{"id": name, "object": "model", **self.model_fields} for name in self.models]
            return _json({"object": "list", "data": entries})
        if path == "/props" and self.props is not None:
            return _json(self.props)
        if path == "/tokenize" and self.tokenizes:
            body = json.loads(content)
            return _json({"tokens": body.get("content", body.get("prompt", "")).split()})
        if path.split("?")[0].startswith(("/v1/files", "/v1/batches")):
            with self._lock:
                return self._offline(method, path, headers, content)
        return _error(404, "Not Found", None)

    def _complete(self, asked: Asked) -> tuple[int, dict[str, str], bytes, float] | None:
        with self._lock:
            self.asked.append(asked)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            if asked.body["model"] not in self.models:
                name = asked.body["model"]
                return _error(404, f"The model `{name}` does not exist", "model_not_found")
            with self._lock:
                planned = self._planned.popleft() if self._planned else self.faults(asked)
            fault = planned or Fault()
            self._closing.wait(self.latency + (0 if fault.dribbles else fault.seconds))
            if fault.status == 0:
                return None
            headers = {"content-type": "application/json", **dict(fault.headers)}
            if fault.raw is not None:
                return fault.status, headers, fault.raw.encode(), 0.0
            if fault.error is not None:
                return fault.status, headers, json.dumps({"error": fault.error}).encode(), 0.0
            body = self.completion(asked)
            body = fault.change(body) if fault.change else body
            if not fault.change:
                with self._lock:
                    self.answered.append(asked)
            seconds = fault.seconds if fault.dribbles else 0.0
            return fault.status, headers, json.dumps(body).encode(), seconds
        finally:
            with self._lock:
                self._in_flight -= 1

    def completion(self, asked: Asked) -> dict[str, Any]:
        """The body of a good answer."""
        text = self.answer(asked)
        chat = asked.path.endswith("chat/completions")
        message = {"role": "assistant", "content": text}
        choice = {"message": message} if chat else {"text": text}
        body: dict[str, Any] = {
            "id": "answer",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": asked.body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", **choice}],
        }
        if self.usage:
            read, written = len(asked.text.split()), len(text.split())
            body["usage"] = {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            }
        return body

    def _offline(
        self, method: str, path: str, headers: dict[str, str], content: bytes
    ) -> tuple[int, dict[str, str], bytes, float]:
        path, _, query = path.partition("?")
        parts = path.split("/")[2:]
        if method == "POST" and parts == ["files"]:
            name = f"file-{len(self.files)}"
            self.files[name] = _multipart(headers, content)["file"]
            return _json(
                {"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": 0}
            )
        if method == "GET" and parts[0] == "files" and parts[2:] == ["content"]:
            kind = {"content-type": "application/octet-stream"}
            return 200, kind, self.files[parts[1]], 0.0
        if method == "POST" and parts == ["batches"]:
            return _json(self._new_batch(json.loads(content)))
        if method == "GET" and parts == ["batches"]:
            return _json(self._batch_page(query))
        if method == "GET" and parts[0] == "batches" and parts[1] in self.batches:
            return _json(self._look(self.batches[parts[1]]))
        return _error(404, f"No such object: {path}", "not_found")

    def _new_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "created_at": 0,
            "completion_window": body["completion_window"],
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "metadata": body.get("metadata"),
            "status": "validating",
        }
        return self.batches[name]

    def _batch_page(self, query: str) -> dict[str, Any]:
        """Two a page, newest first, as cursors go."""
        fields = dict(item.split("=") for item in query.split("&") if item)
        names = list(self.batches)[::-1]
        start = names.index(fields["after"]) + 1 if "after" in fields else 0
        page = names[start : start + 2]
        more = start + 2 < len(names)
        data = [self.batches[name] for name in page]
        return {"object": "list", "data": data, "has_more": more, "last_id": page[-1:] or None}

    def _look(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._looked[batch["id"]] += 1
        if batch["status"] not in ("validating", "in_progress"):
            return batch
        if self._looked[batch["id"]] < self.batch_looks:
            batch["status"] = "in_progress"
            return batch
        batch["status"] = self.batch_ends
        if self.batch_ends == "failed":
            error = {"code": "model_not_found", "message": "The provided model is not supported"}
            batch["errors"] = {"object": "list", "data": [{**error, "line": 1, "param": None}]}
            return batch
        self._run_batch(batch)
        return batch

    def _run_batch(self, batch: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        good, bad = [], []
        for number, line in enumerate(lines):
            asked = Asked(line["url"], line["body"], {})
            if self.batch_ends != "completed" and number % 2:
                error = {"code": "batch_expired", "message": "This request could not be executed"}
                bad.append({"custom_id": line["custom_id"], "response": None, "error": error})
                continue
            self.asked.append(asked)
            fault = self.faults(asked)
            if fault is not None and fault.error is not None:
                response = {"status_code": fault.status, "body": {"error": fault.error}}
                bad.append({"custom_id": line["custom_id"], "response": response, "error": None})
                continue
            body = self.completion(asked)
            body = fault.change(body) if fault and fault.change else body
            self.answered.append(asked)
            response = {"status_code": 200, "request_id": "x", "body": body}
            good.append({"custom_id": line["custom_id"], "response": response, "error": None})
        good.reverse()  # the order of an output file is not that of its input
        for field, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[field] = f"file-{len(self.files)}"
                self.files[batch[field]] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        counts = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        batch["request_counts"] = counts


def _json(body: dict[str, Any], status: int = 200) -> tuple[int, dict[str, str], bytes, float]:
    return status, {"content-type": "application/json"}, json.dumps(body).encode(), 0.0


def _error(status: int, message: str, code: str | None) -> tuple[int, dict[str, str], bytes, float]:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return _json({"error": error}, status)


def _multipart(headers: dict[str, str], content: bytes) -> dict[str, bytes]:
    head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
    fields = {}
    for part in form.iter_parts():
        name = part.get_param("name", header="content-disposition")
        fields[str(name)] = part.get_payload(decode=True)
    return fields


class _Http(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    block_on_close = False
    teacher: TeacherServer


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.teacher.reply(method, self.path, headers, content)
        if reply is None:
            self.close_connection = True
            return
        status, fields, body, seconds = reply
        try:
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            pieces = [body] if not seconds else [body[i : i + 1] for i in range(len(body))]
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(seconds / len(body) if seconds else 0)
        except OSError:
            # The one who asked has gone: it was killed, or its time was up.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test prints what it has to say."""
