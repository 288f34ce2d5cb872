"""The files of a token cache: ArrayRecord shards of msgpack rows, a table of lengths, a manifest.

    manifest.json                       written last
    lengths.npy                         int32 [4, pairs], in the order of `spec.FEATURES`
    tokens-00000-of-00002.array_record  one record a pair

A record is one pair, as a list: the four features as little-endian int32 bytes, the two weights,
and the packed texts, which training does not unpack.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
import pathlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module

from stepdistill_jax.spec import FEATURES, UNK_ID

# Increase it whenever the same ingredients would give other files.
FORMAT = 1
MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"
PERCENTILES = (50, 95, 99, 100)

# Appended to a feature's name: its tokens before truncation, EOS included.
FULL_LENGTH = "_full_length"

_PAIRS_PER_SHARD = 1 << 16


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name in the folder, its pairs and its size in bytes."""

    name: str
    rows: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a token cache.

    Attributes:
        fingerprint: sha256 over all ingredients.
        rows: pairs in the split.
        vocabulary: the vocabulary's fingerprint.
        prefixes: stream -> prefix.
        max_lengths: feature -> maximal tokens, EOS included.
        percentiles: feature -> {"50", "95", "99", "100"} -> tokens before truncation, EOS and
            prefix included; over all pairs, including those without a rationale.
        mean: feature -> tokens before truncation.
        truncated: feature -> pairs cut to the maximum.
        unknown: feature -> tokens outside the vocabulary.
        report: `join.JoinReport.counts`.
        lengths_sha256: of the table of stored lengths.
        shards: in order.
    """

    format: int
    fingerprint: str
    dataset: str
    split: str
    rows: int
    vocabulary: str
    prefixes: dict[str, str]
    max_lengths: dict[str, int]
    percentiles: dict[str, dict[str, int]]
    mean: dict[str, float]
    truncated: dict[str, int]
    unknown: dict[str, int]
    report: dict[str, int]
    lengths_sha256: str
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: the text is not a manifest.
        """
        fields = json.loads(text)
        # Written by earlier versions; `lost_text` counts it now.
        fields.pop("lost_labels", None)
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        return cls(**fields, shards=shards)


def file_sha256(path: pathlib.Path) -> str:
    """Sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack_row(example: Mapping[str, Any], features: Sequence[np.ndarray]) -> bytes:
    """One record, from a SeqIO example of numpy values and its features in order."""

    def text(name: str) -> str:
        return bytes(example[name]).decode("utf-8")

    texts = {
        "id": text("id"),
        "input": text("input"),
        "label": text("label"),
        "gold": text("gold") if example["has_gold"] else None,
        "rationale": text("rationale") if example["has_rationale"] else None,
        "choices": [bytes(choice).decode("utf-8") for choice in example["choices"]],
    }
    weights = [float(example["label_weight"]), float(example["rationale_weight"])]
    tokens = [feature.astype("<i4").tobytes() for feature in features]
    return bytes(msgpack.packb([*tokens, *weights, msgpack.packb(texts)]))


def unpack_tokens(record: bytes) -> dict[str, Any]:
    """Four int32 features (read-only arrays), ``label_weight`` and ``rationale_weight``.

    Raises:
        ValueError: the record is damaged.
    """
    *features, label_weight, rationale_weight, _ = msgpack.unpackb(record)
    row: dict[str, Any] = {
        name: np.frombuffer(ids, "<i4") for name, ids in zip(FEATURES, features, strict=True)
    }
    row["label_weight"], row["rationale_weight"] = label_weight, rationale_weight
    return row


def unpack_texts(record: bytes) -> dict[str, Any]:
    """``id``, ``input`` (no prefix), ``label``, ``gold``, ``rationale`` and ``choices``.

    Raises:
        ValueError: the record is damaged.
    """
    texts: dict[str, Any] = msgpack.unpackb(msgpack.unpackb(record)[-1])
    return {**texts, "choices": tuple(texts["choices"])}


class ShardReader:
    """Random access to the records of several shards, thread-safe.

    The library's data source starts a thread pool for every batch, which costs more than reading
    such short records.
    """

    def __init__(self, folder: pathlib.Path, shards: Sequence[Shard]) -> None:
        self._paths = [str(folder / shard.name) for shard in shards]
        self._ends = list(itertools.accumulate(shard.rows for shard in shards))
        self._readers: list[Any] = [None] * len(shards)
        self._lock = threading.Lock()

    def read(self, index: int) -> bytes:
        """The record of one pair.

        Raises:
            IndexError: out of range.
            ValueError, RuntimeError: a shard is damaged.
        """
        if not 0 <= index < self._ends[-1]:
            raise IndexError(f"pair {index} of {self._ends[-1]} pairs")
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        (record,) = self._reader(shard).read([index - start])
        return bytes(record)

    def _reader(self, shard: int) -> Any:
        if self._readers[shard] is None:
            with self._lock:
                if self._readers[shard] is None:
                    self._readers[shard] = array_record_module.ArrayRecordReader(
                        self._paths[shard],
                        options="readahead_buffer_size:0,max_parallelism:0",
                        file_reader_buffer_size=1 << 15,
                    )
        return self._readers[shard]


class ShardWriter:
    """Writes pairs to shards in a folder and collects the manifest's statistics."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._rows: list[int] = []
        self._lengths: list[list[int]] = []
        self._full_lengths: list[list[int]] = []
        self._unknown: Counter[str] = Counter()

    def add(self, example: Mapping[str, Any]) -> None:
        """Appends one example of `preprocessors.seqio_task`, as numpy values."""
        if not self._rows or self._rows[-1] == _PAIRS_PER_SHARD:
            self._next_shard()
        features = [np.asarray(example[name]) for name in FEATURES]
        self._writer.write(pack_row(example, features))
        self._rows[-1] += 1
        self._lengths.append([len(feature) for feature in features])
        self._full_lengths.append([int(example[name + FULL_LENGTH]) for name in FEATURES])
        for name, feature in zip(FEATURES, features, strict=True):
            self._unknown[name] += int(np.count_nonzero(feature == UNK_ID))

    def _next_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        # One record a chunk, since pairs are read in random order. Compression would halve the
        # file but make reads 1.5 times as slow.
        path = str(self._folder / _temporary_name(len(self._rows)))
        self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")
        self._rows.append(0)

    def finish(self, **fields: Any) -> Manifest:
        """Closes the shards and writes the lengths and, last, the manifest.

        Args:
            **fields: of `Manifest`, those that are not counted here.
        """
        self._writer.close()
        shards = []
        for number, rows in enumerate(self._rows):
            name = f"tokens-{number:05d}-of-{len(self._rows):05d}.array_record"
            path = (self._folder / _temporary_name(number)).rename(self._folder / name)
            shards.append(Shard(name, rows, path.stat().st_size))
        np.save(self._folder / LENGTHS, np.array(self._lengths, np.int32).T)
        full = dict(zip(FEATURES, np.array(self._full_lengths).T, strict=True))
        manifest = Manifest(
            format=FORMAT,
            rows=sum(self._rows),
            percentiles={name: _percentiles(lengths) for name, lengths in full.items()},
            mean={name: float(lengths.mean()) for name, lengths in full.items()},
            truncated={
                name: int(np.sum(lengths > fields["max_lengths"][name]))
                for name, lengths in full.items()
            },
            unknown={name: self._unknown[name] for name in FEATURES},
            lengths_sha256=file_sha256(self._folder / LENGTHS),
            shards=tuple(shards),
            **fields,
        )
        (self._folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
        return manifest


def _temporary_name(number: int) -> str:
    """A shard's name until the number of shards is final."""
    return f"{number:05d}.array_record"


def _percentiles(lengths: np.ndarray) -> dict[str, int]:
    # "higher" gives a length that occurs: this share of the pairs has at most so many tokens.
    return {str(q): int(np.percentile(lengths, q, method="higher")) for q in PERCENTILES}
