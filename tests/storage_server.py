"""A small server of Google Cloud Storage's JSON API, in memory, for tests on the loopback.

It has what tensorstore, gcsfs and Google's own client ask of a bucket: objects written whole, in
parts and resumably, ranges, generations and preconditions, listings by prefix and delimiter in
pages, copies, deletions, and the permissions of a bucket. The emulators on the package index know
no generations or preconditions, without which tensorstore reads nothing back.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import re
import struct
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import google_crc32c

PAGE = 100  # objects a listing answers at once, few enough that tests come to the second page
PERMISSIONS = tuple(
    f"storage.{name}"
    for name in ("buckets.get", "objects.list", "objects.get", "objects.create", "objects.delete")
)


@dataclasses.dataclass
class Stored:
    """An object: its bytes and the number of its writing."""

    data: bytes
    generation: int


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class StorageServer:
    """Buckets of objects, each a dictionary, served by threads of this process.

    Attributes:
        buckets: name -> object name -> object; what a test puts here is there.
        permissions: bucket -> what anybody may do in it; all of it where none is said.
        writes: ``BUCKET/OBJECT`` of every object written or refused, in their order.
        refused: objects ``BUCKET/OBJECT`` of whose writing it is answered 503, as when it is busy.
    """

    Error = RefusedError

    def __init__(self, *buckets: str) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {name: {} for name in buckets}
        self.permissions: dict[str, tuple[str, ...]] = {}
        self.writes: list[str] = []
        self.refused = re.compile("(?!)")
        self.lock = threading.RLock()
        self.written = threading.Condition(self.lock)
        self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
        self.numbers = itertools.count(1)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> StorageServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """What sends every client of a process here, without credentials, and nowhere else."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "NO_GCE_CHECK": "true",
            # Asks the storage control service, which speaks another protocol.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def names(self, bucket: str, pattern: str = ".*") -> list[str]:
        """Names of a bucket's objects that match wholly, sorted."""
        with self.lock:
            return sorted(filter(re.compile(pattern).fullmatch, self.buckets[bucket]))

    def wait_for_write(self, pattern: str, timeout: float) -> bool:
        """Whether somebody writes, or tries to, an object ``BUCKET/OBJECT`` of such a name."""
        matches = re.compile(pattern).fullmatch
        with self.written:
            return self.written.wait_for(lambda: any(map(matches, self.writes)), timeout)

    def read(self, bucket: str, name: str) -> bytes:
        """An object's bytes."""
        with self.lock:
            return self.buckets[bucket][name].data

    def bucket(self, name: str, permission: str) -> dict[str, Stored]:
        """A bucket's objects, for a request that needs a permission."""
        if name not in self.buckets:
            raise RefusedError(404, "The specified bucket does not exist.")
        if permission and permission not in self.permissions.get(name, PERMISSIONS):
            raise RefusedError(
                403, f"Caller does not have {permission} access to the bucket {name}."
            )
        return self.buckets[name]

    def write(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> Stored:
        """Writes an object whole, where the preconditions hold."""
        with self.written:
            objects = self.bucket(bucket, "storage.objects.create")
            self.writes.append(f"{bucket}/{name}")
            self.written.notify_all()
            if self.refused.fullmatch(f"{bucket}/{name}"):
                raise RefusedError(503, "Service Unavailable")
            _check(objects.get(name), query)
            objects[name] = Stored(data, next(self.numbers))
            return objects[name]


def _check(found: Stored | None, query: dict[str, str]) -> None:
    """Refuses where a precondition on the generation does not hold; 0 = there is no object."""
    generation = found.generation if found else 0
    if int(query.get("ifGenerationMatch", generation)) != generation:
        raise RefusedError(412, "At least one of the pre-conditions you specified did not hold.")
    if int(query.get("ifGenerationNotMatch", -1)) == generation:
        raise RefusedError(304, "Not Modified")


def _resource(bucket: str, name: str, stored: Stored) -> dict[str, Any]:
    crc32c = base64.b64encode(struct.pack(">I", google_crc32c.value(stored.data))).decode()
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(stored.data)),
        "generation": str(stored.generation),
        "metageneration": "1",
        "crc32c": crc32c,
        "contentType": "application/octet-stream",
        "timeCreated": "2024-01-01T00:00:00.000Z",
        "updated": "2024-01-01T00:00:00.000Z",
        "storageClass": "STANDARD",
    }


def _listing(bucket: str, objects: dict[str, Stored], query: dict[str, str]) -> dict[str, Any]:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    first, end = query.get("startOffset", ""), query.get("endOffset", "")
    entries: dict[str, dict[str, Any] | None] = {}
    for name in sorted(objects):
        if not name.startswith(prefix) or name < first or (end and name >= end):
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            entries[name[: cut + len(delimiter)]] = None  # what lies deeper, once
        else:
            entries[name] = _resource(bucket, name, objects[name])
    rest = [name for name in entries if name > query.get("pageToken", "")]
    page = rest[: min(int(query.get("maxResults", PAGE)), PAGE)]
    found: dict[str, Any] = {
        "kind": "storage#objects",
        "items": [entries[name] for name in page if entries[name] is not None],
        "prefixes": [name for name in page if entries[name] is None],
    }
    if len(page) < len(rest):
        found["nextPageToken"] = page[-1]
    return found


def _two_parts(body: bytes) -> tuple[bytes, bytes]:
    """The contents of a multipart body: what the object is called, and its bytes."""
    first, _, _ = body.partition(b"\n")
    end = b"\r\n" if first.endswith(b"\r") else b"\n"
    boundary = end + first.rstrip(b"\r")
    about, rest = body[len(first) + 1 :].split(boundary + end, 1)
    data = rest[: rest.rindex(boundary + b"--")]
    return about.split(end + end, 1)[1], data.split(end + end, 1)[1]


def _handler(server: StorageServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def log_message(self, *_: object) -> None:
            return

        def _serve(self) -> None:
            body = self._body()
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
            if parts[0] in ("upload", "download", "resumable"):
                parts = parts[1:]
            # storage/v1/b/BUCKET/o/OBJECT/...
            bucket, name = parts[3] if len(parts) > 3 else "", parts[5] if len(parts) > 5 else ""
            with server.lock:
                try:
                    self._answer(parts[4:5] or [""], bucket, name, parts[6:], query, body)
                except RefusedError as refused:
                    error = {"code": refused.code, "message": str(refused)}
                    self._reply({"error": error} if refused.code != 304 else None, refused.code)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - names of the library's

        def _answer(
            self,
            kind: list[str],
            bucket: str,
            name: str,
            rest: list[str],
            query: dict[str, str],
            body: bytes,
        ) -> None:
            if "uploadType" in query:
                self._upload(bucket, query, body)
            elif kind == ["iam"]:
                server.bucket(bucket, "")
                allowed = server.permissions.get(bucket, PERMISSIONS)
                self._reply({"permissions": [p for p in self._asked() if p in allowed]})
            elif kind == [""]:
                server.bucket(bucket, "storage.buckets.get")
                self._reply({"kind": "storage#bucket", "name": bucket, "location": "US"})
            elif not name:
                self._reply(_listing(bucket, server.bucket(bucket, "storage.objects.list"), query))
            elif self.command == "DELETE":
                objects = server.bucket(bucket, "storage.objects.delete")
                self._existing(objects, name, query)
                del objects[name]
                self._reply(None, 204)
            elif rest and rest[0] in ("rewriteTo", "copyTo"):
                objects = server.bucket(bucket, "storage.objects.get")
                data = self._existing(objects, name, {}).data
                copied = _resource(rest[2], rest[4], server.write(rest[2], rest[4], data, query))
                size = copied["size"]
                done = {"done": True, "resource": copied, "objectSize": size}
                done |= {"totalBytesRewritten": size}
                self._reply(done if rest[0] == "rewriteTo" else copied)
            else:
                found = self._existing(server.bucket(bucket, "storage.objects.get"), name, query)
                if query.get("alt") == "media":
                    self._media(found)
                else:
                    self._reply(_resource(bucket, name, found))

        def _existing(self, objects: dict[str, Stored], name: str, query: dict[str, str]) -> Stored:
            if name not in objects:
                raise RefusedError(404, f"No such object: {name}")
            _check(objects[name], query)
            return objects[name]

        def _asked(self) -> list[str]:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            return query.get("permissions", [])

        def _media(self, found: Stored) -> None:
            size = len(found.data)
            headers = {"x-goog-generation": str(found.generation), "x-goog-metageneration": "1"}
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if match is None:
                self._send(200, found.data, headers)
                return
            first, last = match.groups()
            start = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            if start >= size:
                raise RefusedError(416, "The requested range cannot be satisfied.")
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            self._send(206, found.data[start:end], headers)

        def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
            if query["uploadType"] == "media":
                self._write(bucket, query["name"], body, query)
            elif query["uploadType"] == "multipart":
                about, data = _two_parts(body)
                self._write(bucket, query.get("name") or json.loads(about)["name"], data, query)
            elif "upload_id" not in query:
                server.bucket(bucket, "storage.objects.create")
                name = query.get("name") or json.loads(body)["name"]
                number = str(next(server.numbers))
                server.uploads[number] = (bucket, name, query, bytearray())
                place = urllib.parse.urlencode({"uploadType": "resumable", "upload_id": number})
                where = f"{server.url}/upload/storage/v1/b/{bucket}/o?{place}"
                self._send(200, b"", {"Location": where})
            elif self.command == "DELETE":
                server.uploads.pop(query["upload_id"], None)
                self._reply(None, 499)
            else:
                self._continue(query["upload_id"], body)

        def _continue(self, number: str, body: bytes) -> None:
            bucket, name, query, data = server.uploads[number]
            data += body
            total = self.headers.get("Content-Range", "/").rpartition("/")[2]
            if total == "*" or (total and int(total) > len(data)):
                self._send(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})
                return
            del server.uploads[number]
            self._write(bucket, name, bytes(data), query)

        def _write(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> None:
            self._reply(_resource(bucket, name, server.write(bucket, name, data, query)))

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _reply(self, value: dict[str, Any] | None, code: int = 200) -> None:
            body = b"" if value is None else json.dumps(value).encode()
            self._send(code, body, {"Content-Type": "application/json"})

        def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            # A client that was killed no longer reads.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

    return Handler
