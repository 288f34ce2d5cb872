"""The plain data that modules exchange, and strict JSON lines in and out."""

from __future__ import annotations

import codecs
import dataclasses
import fcntl
import json
import os
import pathlib
import shlex
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.spec import InputError


@dataclasses.dataclass(frozen=True)
class Example:
    """One item of a data set, before any teacher.

    Attributes:
        id: unique within the data set's split; the release's own where it has one, else the row
            number as text.
        input: the text without a task prefix.
        label: gold label; None in unlabelled data.
        explanation: a human's rationale; None if there is none.
        choices: the closed label set; empty where labels are free text.
        where: ``file:line``, for error messages.
    """

    id: str
    input: str
    label: str | None
    explanation: str | None = None
    choices: tuple[str, ...] = ()
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What a teacher wrote for one example.

    Attributes:
        id: of the example.
        rationale: empty only where the teacher wrote none.
        label: the teacher's, of the example's choices if it has any.
        repaired: the label was not in the agreed format, but certain.
        hinted: the teacher was shown the gold label, so `label` is that one.
    """

    id: str
    rationale: str
    label: str
    repaired: bool = False
    hinted: bool = False


@dataclasses.dataclass(frozen=True)
class ParseFailure:
    """A teacher output that yields no usable label.

    Attributes:
        reason: a short constant, for counting (`no answer marker`, `label not in set`, ...).
        rationale: the text before the answer if this much is certain, else "".
        raw: the output.
    """

    id: str
    reason: str
    rationale: str
    raw: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """An input with its label and rationale targets, for training or evaluation.

    Attributes:
        label: the training target (gold or the teacher's); "" with `label_weight` 0 if unknown.
        gold: the gold label, for scoring; None in unlabelled data.
        rationale: the rationale target; None if there is none (its weight is then 0).
        label_weight, rationale_weight: factors on every token of the target in the loss, >= 0.
    """

    id: str
    input: str
    label: str
    gold: str | None
    rationale: str | None
    choices: tuple[str, ...] = ()
    label_weight: float = 1.0
    rationale_weight: float = 1.0


# Remedies for a damaged line.
MEND = "Fix or remove the line."
FETCH = "Fetch the file again."


# What `json.loads` raises: for a fault in the text, too many digits, or too many brackets.
JSON_ERRORS = (ValueError, RecursionError)

_CSV = "csv.DictReader(open(0,encoding='utf-8-sig',newline=''){})"
_PARQUET = (
    "python -c \"import io,pandas; print(pandas.read_parquet(io.BytesIO(open(0,'rb').read()))"
    ".to_json(orient='records',lines=True),end='')\""
)


def _python(modules: str, rows: str) -> str:
    return f'python -c "import {modules}; [print(json.dumps(row)) for row in {rows}]"'


# First bytes of a file -> its format, and the command that turns it into JSON lines ("" = none).
_SIGNATURES = {
    b"\x1f\x8b": ("a gzip file", "gunzip -c"),
    b"BZh": ("a bzip2 file", "bunzip2 -c"),
    b"\xfd7zXZ": ("an xz file", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "zstd -dc"),
    b"PK\x03\x04": ("a ZIP archive or a spreadsheet", ""),
    b"PAR1": ("a Parquet file", _PARQUET),
    b"ARROW1": ("an Arrow file", ""),
    b"SQLite format 3": ("an SQLite database", ""),
    b"\xff\xfe": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    b"{\0": ("UTF-16 text", "iconv -f UTF-16LE -t UTF-8"),
    b"\0{": ("UTF-16 text", "iconv -f UTF-16BE -t UTF-8"),
    b"{'": (
        "Python's text of dicts",
        _python("ast,json", "map(ast.literal_eval,open(0,encoding='utf-8-sig'))"),
    ),
    b"version https://git-lfs": ("a Git LFS pointer", ""),
    b"<": ("an HTML or XML file", ""),
    b"[": ("a JSON array", _python("json", "json.load(open(0,encoding='utf-8-sig'))")),
}
_DELIMITERS = {",": "", ";": ",delimiter=';'", "\t": r",delimiter='\t'"}


def read_jsonl(path: epath.PathLike, remedy: str = MEND) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ``("file:line", object)`` for every line of a JSON-lines file.

    A byte order mark, as Windows writes it, is skipped.

    Args:
        remedy: `FETCH` for a downloaded file.

    Raises:
        InputError: the file is missing or of another format, or a line is not one JSON object in
            UTF-8 (naming the line).
    """
    path = epath.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            where = f"{path.name}:{number}"
            if number == 1:
                _refuse_other_format(path, raw, remedy)
            line = decode_utf8(raw, path.name, number).removeprefix("\ufeff")
            if not line.strip():
                raise InputError(f"{where}: got an empty line, expected a JSON object. Remove it.")
            try:
                row = json.loads(line)
                if "\\u" in line:
                    refuse_surrogates(row, where)
            except InputError:
                raise
            except JSON_ERRORS as error:
                is_fault = isinstance(error, json.JSONDecodeError)
                damaged = "; the line is damaged or truncated" if is_fault else ""
                raise InputError(
                    f"{where}: not a JSON object ({json_fault(error)}){damaged}. {remedy}"
                ) from error
            if not isinstance(row, dict):
                raise InputError(
                    f"{where}: got {type(row).__name__}, expected a JSON object. {remedy}"
                )
            yield where, row


def _refuse_other_format(path: epath.Path, first: bytes, remedy: str) -> None:
    """Refuses a file of another format, which its first line shows, with a way to convert it."""
    start = first.removeprefix(codecs.BOM_UTF8).strip()
    name, command = next(
        (value for signature, value in _SIGNATURES.items() if start.startswith(signature)), ("", "")
    )
    header = start.decode("utf-8", errors="replace")
    if start == b"{":
        name, command = "JSON over several lines", "jq -c ."
    elif not name and header[:1] not in ("{", "") and not header.endswith("}"):
        delimiter = max(_DELIMITERS, key=header.count)
        if delimiter in header:
            name = "a CSV file" if delimiter != "\t" else "a TSV file"
            command = _python("csv,json", _CSV.format(_DELIMITERS[delimiter]))
    if not name:
        return
    if remedy == MEND:
        remedy = "Convert it, and name the new file."
        if command:
            target = path.with_name(f"{path.name.partition('.')[0]}_lines.jsonl")
            remedy = f"Convert it, and name the new file: {command} < {_quoted(path)} > "
            remedy += _quoted(target)
    raise InputError(f"{path.name}: {name}, expected JSON lines (an object a line). {remedy}")


def _quoted(path: epath.Path) -> str:
    return shlex.quote(str(path))


def json_fault(error: Exception) -> str:
    """What is wrong with a JSON text by one of `JSON_ERRORS`, and where in its line if known."""
    if isinstance(error, RecursionError):
        return "its brackets are nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return "a number has too many digits"  # Python's limit is 4,300
    line = error.doc.split("\n")[error.lineno - 1]
    where = f"column {error.colno}" if error.colno <= len(line) else "the end of the line"
    # Some of the library's messages end in "at", for a position to follow.
    return f"{error.msg.removesuffix(' at')} at {where}"


def decode_utf8(raw: bytes, name: str, line: int = 1) -> str:
    """The text of `raw`, which begins at `line` of the file `name`.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise InputError(
            f"{name}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8. Convert the file to UTF-8."
        ) from error


def refuse_surrogates(value: Any, where: str) -> None:
    """Refuses a JSON value with half a character in a text, which cannot be encoded as UTF-8.

    Raises:
        InputError: naming `where`.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise InputError(
            f"{where}: a text contains \\u{code:04x} alone, half a character (a lone surrogate). "
            "Write the whole character, or remove it."
        ) from error


def write_atomic(path: epath.PathLike, text: str | bytes) -> None:
    """Writes `text` under a temporary name and renames: readers see all of it or nothing."""
    path = epath.Path(path)
    data = text.encode() if isinstance(text, str) else text
    if storage.is_remote(path):
        # A store shows only complete objects, and renames by copying.
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}"
    temporary.write_bytes(data)
    temporary.replace(path)


def require_writable(flag: str, folder: epath.PathLike) -> None:
    """Checks before a long computation that its results can be written; creates the folder.

    Args:
        flag: ``--NAME=value``, for the error.
        folder: on a disk or a store.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = epath.Path(folder)
    if storage.is_remote(folder):
        storage.check(flag.partition("=")[0], folder, write=True)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in the way" if in_the_way else error.strerror
        raise InputError(
            f"{flag}: cannot write to {folder}: {reason}. Choose another folder."
        ) from error


def write_jsonl(path: epath.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class LineWriter:
    """A text file that grows by lines; on a disk, each line is written at once.

    A store cannot append: there the whole file is rewritten, at most every `REWRITE_SECONDS` and at
    `flush`. A killed process loses the lines since then.
    """

    REWRITE_SECONDS = 30.0

    def __init__(self, path: epath.PathLike, lines: Iterable[str] = ()) -> None:
        """Starts a new file with `lines`, each with its line end."""
        self._path = epath.Path(path)
        self._lines = list(lines)
        write_atomic(self._path, "".join(self._lines))
        self._written, self._count = time.monotonic(), len(self._lines)
        self._file = None
        if not storage.is_remote(self._path):
            self._lines.clear()
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - see `close`

    def write(self, line: str) -> None:
        """Appends a line; `line` has its line end."""
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            return
        self._lines.append(line)
        if time.monotonic() - self._written >= self.REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Makes every line readable by other processes."""
        if self._file is None and len(self._lines) > self._count:
            write_atomic(self._path, "".join(self._lines))
            self._written, self._count = time.monotonic(), len(self._lines)

    def close(self) -> None:
        """Flushes and ends the file."""
        self.flush()
        if self._file is not None:
            self._file.close()


def lock(path: pathlib.Path) -> int | None:
    """Locks a file on a disk for this process and those that inherit the descriptor.

    The lock is free again when all of them have ended, however they ended. It works across
    machines if the shared file system supports locks (NFS 4, Lustre, GPFS). The file names the
    process that holds it.

    Returns:
        The open descriptor, which the caller closes; None if another process holds the lock.

    Raises:
        OSError: the folder cannot be written, or its disk has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor
