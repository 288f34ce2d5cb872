"""Downloads a file of known content: resumes, verifies and unpacks. `release` lists the files.

pooch is not used: it cannot resume a download, and it does not know git's blob ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import os
import pathlib
import stat
import time
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import BinaryIO

from absl import logging
from etils import epath

from stepdistill_jax.spec import InputError

GIT_BLOB = "git blob id"
SHA256 = "sha256"

# Called with (bytes so far, total bytes or None) while data comes in.
Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 20
# HTTP codes below 500 that may pass: timeout, too early, too many requests.
_TRANSIENT_CODES = (408, 425, 429)
_RANGE_NOT_SATISFIABLE = 416


@dataclasses.dataclass(frozen=True)
class Download:
    """One file of the public web.

    Attributes:
        url: pinned to a commit, so that the bytes never change.
        path: of the downloaded file, under DATA_DIR.
        algorithm: `GIT_BLOB` or `SHA256`.
        digest: lower-case hexadecimal, of that algorithm.
        folders: the folders of DATA_DIR that it fills.
    """

    url: str
    path: str
    algorithm: str
    digest: str
    folders: tuple[str, ...]


class _TransferError(Exception):
    """The connection failed; another attempt may succeed."""


def digest(path: epath.PathLike, algorithm: str) -> str:
    """The digest of a file, in lower-case hexadecimal.

    Args:
        path: the file.
        algorithm: `SHA256`, or `GIT_BLOB` for what ``git hash-object`` prints.
    """
    path = epath.Path(path)
    if algorithm == SHA256:
        total = hashlib.sha256()
    else:
        total = hashlib.sha1(usedforsecurity=False)
        total.update(b"blob %d\0" % path.stat().length)
    with path.open("rb") as source:
        for chunk in _chunks(source):
            total.update(chunk)
    return total.hexdigest()


def fetch(
    item: Download,
    data_dir: pathlib.Path,
    *,
    attempts: int = 3,
    pause: float = 1.0,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> pathlib.Path:
    """Downloads one file to ``data_dir / item.path``; resumes a ``.part`` of an earlier attempt.

    Args:
        item: the file; one that is already there is only verified.
        data_dir: created if needed.
        attempts: consecutive attempts without a new byte before giving up.
        pause: seconds before the second of these attempts; doubled for each further one.
        timeout: seconds without a response that end an attempt.
        progress: called as data comes in.

    Raises:
        InputError: the file cannot be downloaded or written, or its digest is wrong.
    """
    target = data_dir / item.path
    if target.exists():
        if problem := _wrong_digest(item, target):
            raise InputError(f"{target}: {problem}. Delete the file and run again.")
        return target
    part = target.with_name(target.name + ".part")
    with disk_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _receive(item, target, part, attempts, pause, timeout, progress)
        if resumed and _wrong_digest(item, part):
            # The earlier attempt may have left the damage.
            part.unlink()
            _receive(item, target, part, attempts, pause, timeout, progress)
        if problem := _wrong_digest(item, part):
            part.unlink()
            raise InputError(f"{item.url}: {problem}. Run again, or save the file as {target}.")
        part.replace(target)
    return target


def unpack(
    archive: pathlib.Path,
    data_dir: pathlib.Path,
    folders: Collection[str],
    sums: Mapping[str, str | None],
) -> list[str]:
    """Unpacks `folders` of an archive into `data_dir`, each file atomically.

    The leading ``datasets/`` of the release's archive is removed. A file that exists with the
    member's size and CRC-32 is kept; one that differs is never overwritten.

    Args:
        archive: a zip archive.
        folders: the folders of the archive to unpack.
        sums: path under `data_dir` -> sha256 that a member must have.

    Returns:
        Paths under `data_dir` that were written.

    Raises:
        InputError: not a zip archive, a member that would land outside `data_dir` (nothing is
            written then), a damaged member, a wrong sha256, or a different file in the way.
    """
    try:
        with disk_errors(data_dir), zipfile.ZipFile(archive) as source:
            members = _members(source, archive, folders)
            existing = [path for path in members if (data_dir / path).exists()]
            for path in existing:
                if not _same(data_dir / path, members[path]):
                    raise InputError(
                        f"{data_dir / path}: differs from the file in {archive.name}. Delete or "
                        "move it and run again."
                    )
            written = sorted(members.keys() - set(existing))
            for path in written:
                _extract(source, members[path], data_dir / path, sums.get(path))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(
            f"{archive}: damaged archive ({error}). Delete it and run again."
        ) from error
    return written


@contextlib.contextmanager
def disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns an OSError into an InputError about `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read or written ({error.strerror or error}). Free disk space or "
            "correct the permissions."
        ) from error


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    return iter(functools.partial(source.read, _CHUNK), b"")


def _wrong_digest(item: Download, path: pathlib.Path) -> str:
    """What is wrong with the digest of the file at `path`; "" if it is right."""
    actual = digest(path, item.algorithm)
    if actual == item.digest:
        return ""
    return f"wrong {item.algorithm}: got {actual}, expected {item.digest}"


def _receive(
    item: Download,
    target: pathlib.Path,
    part: pathlib.Path,
    attempts: int,
    pause: float,
    timeout: float,
    progress: Progress | None,
) -> None:
    """Fills `part` until the server has no more, over several connections if needed."""
    furthest = _size(part)
    failures = 0
    while True:
        try:
            return _receive_once(item, part, timeout, progress)
        except (_TransferError, urllib.error.HTTPError) as error:
            failures = failures + 1 if _size(part) <= furthest else 0
            furthest = max(furthest, _size(part))
            if failures >= attempts or isinstance(error, urllib.error.HTTPError):
                raise InputError(
                    f"{item.url}: download failed ({error}). Save the file as {target} and run "
                    "again, or set DATA_DIR to a folder with the data."
                ) from error
            logging.warning("%s: %s; trying again from byte %d", item.url, error, _size(part))
            time.sleep(pause * 2 ** (failures - 1) if failures else 0)


def _receive_once(
    item: Download, part: pathlib.Path, timeout: float, progress: Progress | None
) -> None:
    """One connection, from the end of `part` on."""
    start = _size(part)
    response = _connect(item.url, start, timeout)
    if response is None:
        return
    with response:
        # A server without ranges sends the whole file again.
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        size = start
        with part.open("ab" if start else "wb") as out:
            for chunk in _body(response):
                out.write(chunk)
                size += len(chunk)
                if progress:
                    progress(size, total)
    if total is not None and size < total:
        raise _TransferError(f"connection closed after {size} of {total} bytes")


def _connect(url: str, start: int, timeout: float) -> http.client.HTTPResponse | None:
    """The open response; None if the file ends at `start` or before (the digest then decides).

    Raises:
        HTTPError: a permanent refusal of the server.
        _TransferError: any other failure.
    """
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), None, timeout
        )
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE and start:
            return None
        if error.code < 500 and error.code not in _TRANSIENT_CODES:
            raise
        raise _TransferError(str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(str(getattr(error, "reason", error))) from error
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _body(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Chunks of a response; errors in here are the network's, not the disk's."""
    try:
        while chunk := response.read1(_CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(str(error) or type(error).__name__) from error


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _members(
    source: zipfile.ZipFile, archive: pathlib.Path, folders: Collection[str]
) -> dict[str, zipfile.ZipInfo]:
    """Path under DATA_DIR -> member, of the files in `folders`; refuses any unsafe name."""
    members = {}
    for member in source.infolist():
        name, parts = member.filename, pathlib.PurePosixPath(member.filename).parts
        unsafe = name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:")
        if unsafe or stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(
                f"{archive}: member {name!r} could land outside the folder; nothing was unpacked. "
                "Delete the archive, which is not the release's, and run again."
            )
        if parts[:1] == ("datasets",):
            parts = parts[1:]
        hidden = any(part.startswith(".") for part in parts)
        if not member.is_dir() and not hidden and parts and parts[0] in folders:
            members["/".join(parts)] = member
    return members


def _same(path: pathlib.Path, member: zipfile.ZipInfo) -> bool:
    if path.stat().st_size != member.file_size:
        return False
    total = 0
    with path.open("rb") as source:
        for chunk in _chunks(source):
            total = zlib.crc32(chunk, total)
    return total == member.CRC


def _extract(
    source: zipfile.ZipFile, member: zipfile.ZipInfo, target: pathlib.Path, expected: str | None
) -> None:
    """Writes one member to a temporary file, verifies it and renames it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex}")
    total = hashlib.sha256()
    try:
        with source.open(member) as packed, temporary.open("wb") as out:
            while chunk := packed.read(_CHUNK):
                total.update(chunk)
                out.write(chunk)
        if expected not in (None, total.hexdigest()):
            raise InputError(
                f"{target}: wrong sha256 in the archive: got {total.hexdigest()}, expected "
                f"{expected}. Delete the archive and run again."
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
