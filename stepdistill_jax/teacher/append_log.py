"""A file of JSON lines that is only ever added to: every line whole, whatever happens."""

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
    """A file that is only ever added to, by one process at a time.

    Attributes:
        cut: bytes of a torn last line that were cut off on opening.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens and locks the file, and cuts off a torn last line.

        Raises:
            InputError: another process has it, or the disk's files cannot be locked.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise InputError(
                f"{path} is being written by another process; let it end, or give each process a "
                "share of its own with --worker and --workers"
            ) from error
        except OSError as error:
            os.close(self._descriptor)
            raise InputError(
                f"{path} cannot be locked ({error.strerror}); choose an EXTRACT_DIR on another disk"
            ) from error
        content = path.read_bytes()
        whole = _whole(content)
        self.cut = len(content) - whole
        if self.cut:
            os.ftruncate(self._descriptor, whole)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a line, whole or not at all.

        Raises:
            OSError: the disk takes no more.
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
        """Lets go of the file and its lock."""
        os.close(self._descriptor)


def _whole(content: bytes) -> int:
    """Bytes up to the end of the last line that is whole."""
    end = content.rfind(b"\n") + 1
    last = content[content.rfind(b"\n", 0, max(0, end - 1)) + 1 : end]
    try:
        json.loads(last or b"{}")
    except ValueError:
        # Blocks of a file whose length was saved before its content, as after a loss of power.
        return end - len(last)
    return end


def read(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(file:line, object)`` of all whole lines; another process may be writing the last."""
    content = path.read_bytes()
    name = f"{path.parent.name}/{path.name}"
    for number, line in enumerate(content[: _whole(content)].splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{name}:{number}: damaged ({error}); mend or remove it") from error
        yield f"{name}:{number}", row
