"""Fetching a file of known content: resume, verify, unpack. What there is to fetch: `release`."""

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

# Called as (path under DATA_DIR, bytes so far, bytes in all or None) while data comes in.
Progress = Callable[[str, int, int | None], None]

_CHUNK = 1 << 20
# HTTP answers below 500 after which asking again makes sense.
_PASSING_ANSWERS = (408, 425, 429)
_NOTHING_BEYOND = 416


@dataclasses.dataclass(frozen=True)
class Download:
    """One file of the public web.

    Attributes:
        url: pinned to a commit: the same bytes for ever.
        path: where it lies under DATA_DIR.
        algorithm: `GIT_BLOB` or `SHA256`.
        digest: lower-case hexadecimal, of that algorithm.
        folders: of DATA_DIR that it fills.
    """

    url: str
    path: str
    algorithm: str
    digest: str
    folders: tuple[str, ...]


class _TransferError(Exception):
    """The connection failed in a way that another try may mend."""


def digest(path: epath.PathLike, algorithm: str) -> str:
    """The sum of a file, in lower-case hexadecimal.

    Args:
        path: the file.
        algorithm: `SHA256`, or `GIT_BLOB`: what ``git hash-object`` prints.
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
    attempts: int = 4,
    pause: float = 1.0,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> pathlib.Path:
    """Brings one file to ``data_dir / item.path``, continuing a ``.part`` left by an earlier try.

    Args:
        item: what to fetch.
        data_dir: the folder; made where there is none.
        attempts: tries in a row that bring no new byte before giving up.
        pause: seconds before the second of such tries; doubled for each further one.
        timeout: seconds without an answer that end a try.
        progress: called as data comes in.

    Raises:
        InputError: it could not be fetched or written, or its sum is wrong.
    """
    target = data_dir / item.path
    if target.exists():
        found = digest(target, item.algorithm)
        if found != item.digest:
            raise InputError(f"{target}: {_both_sums(item, found)}; delete it and run again")
        return target
    part = target.with_name(target.name + ".part")
    with _disk_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        continued = part.exists()
        _receive(item, target, part, attempts, pause, timeout, progress)
        if continued and digest(part, item.algorithm) != item.digest:
            # The damaged half may be the one that was found here.
            part.unlink()
            _receive(item, target, part, attempts, pause, timeout, progress)
        found = digest(part, item.algorithm)
        if found != item.digest:
            part.unlink()
            raise InputError(
                f"{item.url}: {_both_sums(item, found)}; thrown away: try again, or fetch it "
                f"another way and place it at {target}"
            )
        part.replace(target)
    return target


def unpack(
    archive: pathlib.Path,
    data_dir: pathlib.Path,
    folders: Collection[str],
    sums: Mapping[str, str | None],
) -> list[str]:
    """Unpacks the archive's `folders` into `data_dir`, file by file, each whole or not at all.

    A leading ``datasets/``, under which the release's archive holds everything, is left off. A
    file that is there with the member's size and CRC-32 is kept; one that differs is never
    overwritten.

    Args:
        archive: a zip archive.
        data_dir: the folder.
        folders: which of the archive's folders to unpack.
        sums: path under `data_dir` -> sha256 that a member must have.

    Returns:
        Paths under `data_dir` that were written.

    Raises:
        InputError: no zip archive, a member that would land outside `data_dir` (nothing is written
            then), a damaged member, a wrong sha256, or a different file in the way.
    """
    written = []
    try:
        with _disk_errors(data_dir), zipfile.ZipFile(archive) as source:
            members = _members(source, archive, folders)
            there = [path for path in members if (data_dir / path).exists()]
            for path in there:
                if not _same(data_dir / path, members[path]):
                    raise InputError(
                        f"{data_dir / path}: differs from the file of that name in {archive.name}; "
                        "delete or move it and run again"
                    )
            for path in sorted(members.keys() - set(there)):
                _extract(source, members[path], data_dir / path, sums.get(path))
                written.append(path)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(
            f"{archive}: damaged archive ({error}); delete it and run again"
        ) from error
    return written


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    return iter(functools.partial(source.read, _CHUNK), b"")


def _both_sums(item: Download, found: str) -> str:
    return f"expected {item.algorithm} {item.digest}, found {found}"


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read or written ({error.strerror or error}); free the disk or name "
            "another --data_dir"
        ) from error


def _receive(
    item: Download,
    target: pathlib.Path,
    part: pathlib.Path,
    attempts: int,
    pause: float,
    timeout: float,
    progress: Progress | None,
) -> None:
    """Fills `part` until the server has no more, over several connections where need be."""
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
                    f"cannot fetch {item.url} ({error}); run again where there is a network, or "
                    f"fetch it another way and place it at {target}: the next run verifies it and "
                    "goes on from there"
                ) from error
            logging.warning("%s: %s; %d bytes so far, trying again", item.url, error, _size(part))
            time.sleep(pause * 2 ** (failures - 1) if failures else 0)


def _receive_once(
    item: Download, part: pathlib.Path, timeout: float, progress: Progress | None
) -> None:
    """One connection, from where `part` ends."""
    start = _size(part)
    response = _connect(item.url, start, timeout)
    if response is None:
        return
    with response:
        # A server without ranges answers with the whole file again.
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
                    progress(item.path, size, total)
    if total is not None and size < total:
        raise _TransferError(f"connection closed after {size} of {total} bytes")


def _connect(url: str, start: int, timeout: float) -> http.client.HTTPResponse | None:
    """The open answer; None where nothing lies beyond `start` (the sum then decides).

    Raises:
        HTTPError: the server refuses for good.
        _TransferError: anything else that went wrong.
    """
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), None, timeout
        )
    except urllib.error.HTTPError as error:
        if error.code == _NOTHING_BEYOND and start:
            return None
        if error.code < 500 and error.code not in _PASSING_ANSWERS:
            raise
        raise _TransferError(str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(str(getattr(error, "reason", error))) from error
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _body(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Chunks of an answer; what goes wrong in here is the network's doing, not the disk's."""
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
    """Path under DATA_DIR -> member, of the files in `folders`; raises for any unsafe name."""
    members = {}
    for member in source.infolist():
        name, parts = member.filename, pathlib.PurePosixPath(member.filename).parts
        unsafe = name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:")
        if unsafe or stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(
                f"{archive}: member {name!r} could land outside the folder; nothing was unpacked: "
                "this is not the release's archive, delete it"
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
    """Writes one member under a temporary name, verifies it and renames it."""
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
                f"{target}: expected sha256 {expected}, found {total.hexdigest()} in the archive; "
                "delete the archive and run again"
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
