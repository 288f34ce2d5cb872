"""A file of JSON lines that only grows: every line is whole, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from stepdistill_jax.spec import InputError


class AppendLog:
    """Adds lines to a file that one process at a time has open.

    Attributes:
        cut: bytes of a torn last line that were cut off on opening.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens and locks the file, and cuts off a torn last line.

        Raises:
            InputError: another process has it open, or the disk cannot lock files.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if isinstance(error, BlockingIOError):
                raise InputError(
                    f"{path}: another process is writing it. Wait for it, or give each process "
                    "its own share with --worker and --workers."
                ) from error
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}). Set EXTRACT_DIR to a folder on "
                "another disk."
            ) from error
        content = path.read_bytes()
        whole = _whole(content)
        self.cut = len(content) - whole
        if self.cut:
            os.ftruncate(self._descriptor, whole)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a line, whole or not at all.

        Raises:
            OSError: the disk is full or fails.
        """
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if written < len(line):
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Closes and unlocks the file."""
        os.close(self._descriptor)


def _whole(content: bytes) -> int:
    """Bytes up to the end of the last whole line."""
    end = content.rfind(b"\n") + 1
    last = content[content.rfind(b"\n", 0, max(0, end - 1)) + 1 : end]
    try:
        json.loads(last or b"{}")
    except ValueError:
        # After a loss of power a file's length may be on disk before its content.
        return end - len(last)
    return end


def read(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(file:line, object)`` of all whole lines; another process may be writing the last one.

    Raises:
        InputError: a line in the middle is damaged.
    """
    content = path.read_bytes()
    name = f"{path.parent.name}/{path.name}"
    for number, line in enumerate(content[: _whole(content)].splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{name}:{number}: damaged ({error}). Fix or remove the line."
            ) from error
        yield f"{name}:{number}", row
