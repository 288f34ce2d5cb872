"""Pairs as tokens on disk: built once through SeqIO, then read without TensorFlow.

A cache is a folder ``<cache_dir>/<dataset>-<split>-<fingerprint>``; `token_shards` describes its
files. The fingerprint covers the source's bytes, the data configuration, vocabulary, prefixes and
lengths: a changed ingredient gives another folder, and nothing is overwritten. A build writes to a
temporary folder and renames it: readers see all of a cache or nothing, and the slower of two
builders discards its copy. Pairs are read in random order, thousands a second, so a cache on an
object store is first copied to a local disk.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.data import token_shards
from stepdistill_jax.data.config import CACHE_DIR_VARIABLE, DataConfig, TokenConfig
from stepdistill_jax.data.join import load_pairs, source_fingerprint
from stepdistill_jax.data.token_shards import LENGTHS, MANIFEST, Manifest
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.records import Pair
from stepdistill_jax.spec import FEATURES, InputError

# No build takes this long: an older temporary folder belongs to a killed process.
_ABANDONED_SECONDS = 24 * 3600
_TEMPORARY = re.compile(r"\.\w+-(train|validation|test)-[0-9a-f]{16}\.\d+\.[0-9a-f]{32}")
_PAIRS_A_CALL = 512
# Increase it whenever `preprocessors` would make other tokens of the same texts.
_TOKENISATION = 1


class TokenCache:
    """A cache on disk: random access to its pairs, thread-safe, picklable."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Opens a cache.

        Raises:
            InputError: a file is missing, truncated, or of another format.
        """
        self.folder = pathlib.Path(folder)
        try:
            self.manifest = Manifest.from_json((self.folder / MANIFEST).read_text("utf-8"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._damaged(f"{MANIFEST} cannot be read ({error})") from error
        if self.manifest.format != token_shards.FORMAT:
            raise self._damaged(
                f"got format {self.manifest.format}, expected {token_shards.FORMAT}"
            )
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            size = path.stat().st_size if path.exists() else None
            if size != shard.bytes:
                problem = "is missing" if size is None else f"has {size} bytes"
                raise self._damaged(f"{shard.name} {problem}, expected {shard.bytes} bytes")
        self._reader = token_shards.ShardReader(self.folder, self.manifest.shards)

    def __reduce__(self) -> tuple[type[TokenCache], tuple[str]]:
        return TokenCache, (str(self.folder),)

    def __len__(self) -> int:
        return self.manifest.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The four features as read-only int32 arrays, each ending in EOS, and two weights.

        Raises:
            IndexError: out of range.
            InputError: the shard is damaged.
        """
        return token_shards.unpack_tokens(self._record(index))

    def example(self, index: int) -> dict[str, Any]:
        """`__getitem__` and the texts: id, input (no prefix), label, gold, rationale, choices.

        A missing ``gold`` or ``rationale`` is None; ``choices`` is a tuple.
        """
        record = self._record(index)
        return {**token_shards.unpack_tokens(record), **token_shards.unpack_texts(record)}

    @functools.cached_property
    def lengths(self) -> dict[str, np.ndarray]:
        """Feature -> int32 [pairs]: tokens as stored, EOS included.

        Raises:
            InputError: the table of lengths is damaged.
        """
        path, expected = self.folder / LENGTHS, self.manifest.lengths_sha256
        sha256 = token_shards.file_sha256(path) if path.exists() else "missing"
        if sha256 != expected:
            raise self._damaged(f"{LENGTHS} has sha256 {sha256[:12]}, expected {expected[:12]}")
        return dict(zip(FEATURES, np.load(path), strict=True))

    def _record(self, index: int) -> bytes:
        try:
            return self._reader.read(index)
        except (ValueError, RuntimeError) as error:
            raise self._damaged(f"pair {index}: {error}") from error

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"Token cache {self.folder} is damaged: {what}. Delete the folder and run again."
        )


def open_or_build(data: DataConfig, tokens: TokenConfig, split: str) -> TokenCache:
    """The token cache of a split, built if there is none.

    Opening an existing one imports neither TensorFlow nor SeqIO; it reads the source files' bytes
    (for the fingerprint) and the vocabulary.

    Raises:
        InputError: bad data, vocabulary or cache, a folder that cannot be written, or a build
            without TensorFlow.
    """
    fingerprint = cache_fingerprint(data, tokens, split)
    name = f"{data.dataset}-{split}-{fingerprint[:16]}"
    folder = tokens.local_root() / name
    store = tokens.root() / name if storage.is_remote(tokens.root()) else None
    if not folder.exists():
        if store is not None and (store / MANIFEST).exists():
            _copy_from(store, folder)
        else:
            _build(folder, fingerprint, data, tokens, split)
    cache = TokenCache(folder)
    if cache.manifest.fingerprint != fingerprint:
        raise InputError(
            f"Token cache {folder} has other ingredients: got fingerprint "
            f"{cache.manifest.fingerprint[:16]}, expected {fingerprint[:16]}. Delete the folder "
            "and run again."
        )
    if store is not None and not (store / MANIFEST).exists():
        _copy_to(store, cache)
    return cache


def cache_fingerprint(data: DataConfig, tokens: TokenConfig, split: str) -> str:
    """Sha256 over every ingredient of a cache: source, vocabulary, prefixes, lengths, format."""
    ingredients = {
        "format": token_shards.FORMAT,
        "source": source_fingerprint(data, split),
        "split": split,
        "vocabulary": load_vocabulary(tokens.vocabulary).fingerprint,
        "prefixes": tokens.prefix_texts(),
        "lengths": tokens.feature_lengths(),
        "tokenisation": _TOKENISATION,
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _build(
    folder: pathlib.Path, fingerprint: str, data: DataConfig, tokens: TokenConfig, split: str
) -> None:
    """Writes a cache under a temporary name and moves it to `folder`."""
    pairs, report = load_pairs(data, split)
    examples = _tokenised(data, tokens, split, pairs)
    with _published(folder) as temporary:
        writer = token_shards.ShardWriter(temporary)
        for example in examples:
            writer.add(example)
        manifest = writer.finish(
            fingerprint=fingerprint,
            dataset=data.dataset,
            split=split,
            vocabulary=load_vocabulary(tokens.vocabulary).fingerprint,
            prefixes=tokens.prefix_texts(),
            max_lengths=tokens.feature_lengths(),
            report=report.counts(),
        )
        if manifest.rows != len(pairs):
            raise RuntimeError(f"wrote {manifest.rows} of {len(pairs)} pairs")


def _copy_from(store: epath.Path, folder: pathlib.Path) -> None:
    """Copies a cache from a store and verifies the copy before it is published.

    Raises:
        InputError: it is damaged there, or cannot be written here.
        UnavailableError: the store does not answer.
    """
    with _published(folder) as temporary:
        try:
            manifest = Manifest.from_json((store / MANIFEST).read_text())
            for name in (LENGTHS, *(shard.name for shard in manifest.shards), MANIFEST):
                (store / name).copy(temporary / name)
            _ = TokenCache(temporary).lengths
        except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
            reason = str(error).replace(str(temporary), str(store))
            if not isinstance(error, InputError):
                reason = (
                    f"Token cache {store} is damaged: {reason}. Delete the folder and run again."
                )
            raise InputError(reason) from error


def _copy_to(store: epath.Path, cache: TokenCache) -> None:
    """Copies a cache to a store, the manifest last: a folder without one is ignored."""
    for name in (LENGTHS, *(shard.name for shard in cache.manifest.shards), MANIFEST):
        epath.Path(cache.folder / name).copy(store / name, overwrite=True)


@contextlib.contextmanager
def _published(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder for a cache, which is moved to `folder` at the end.

    Raises:
        InputError: it cannot be written.
    """
    # Matches _TEMPORARY, which identifies leftovers.
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        _remove_abandoned(folder.parent)
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            # If another process was first, its copy is the same and ours is discarded.
            if not (folder / MANIFEST).exists():
                raise
    except (OSError, RuntimeError) as error:
        storage.raise_failure(error)  # of a connection, where a cache comes from a store
        reason = storage.disk_failure(error)
        # array_record raises a RuntimeError of its own.
        if isinstance(error, RuntimeError) and not reason:
            raise
        raise InputError(
            f"Token cache {folder} cannot be written: {reason or error}. Free space, or set "
            f"CACHE_DIR (or {CACHE_DIR_VARIABLE}) to another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(root: pathlib.Path) -> None:
    """Deletes temporary folders of killed builds, and nothing with another name."""
    for path in filter(lambda path: _TEMPORARY.fullmatch(path.name), root.iterdir()):
        # Another builder may rename or remove its folder at any moment.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _tokenised(
    data: DataConfig, tokens: TokenConfig, split: str, pairs: list[Pair]
) -> Iterator[dict[str, Any]]:
    """The SeqIO task's examples as numpy values, in the order of `pairs`."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        with _quiet_stderr():
            import tensorflow as tf

            from stepdistill_jax.data import preprocessors
    except ImportError as error:
        raise InputError(
            f"No token cache of dataset {data.dataset!r}, split {split!r}, in {tokens.root()}; "
            f"building one needs TensorFlow and SeqIO ({error}). Install them, or build it where "
            "they are installed and copy its folder."
        ) from error

    try:
        # TensorFlow would reserve all memory of a GPU, only to process text.
        with _quiet_stderr():
            tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        logging.info("TensorFlow is already running; it keeps its devices")
    name = f"{data.dataset}_{split}"
    task = preprocessors.seqio_task(name, data, tokens, load=lambda *_: pairs)
    dataset = task.get_dataset(split=split, shuffle=False)
    # Passing pairs on one by one costs more than tokenising them.
    return itertools.chain.from_iterable(map(_examples, dataset.ragged_batch(_PAIRS_A_CALL)))


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hides the notices of TensorFlow's C++ code about GPUs, unless an error is raised.

    TensorFlow prints some before it reads its log level. Any TF_CPP_MIN_LOG_LEVEL but JAX's
    default of 1 shows them.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") != "1":
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(stderr, hidden.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _examples(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The examples of a batch of (ragged) tensors."""
    columns = {}
    for name, tensor in batch.items():
        if hasattr(tensor, "row_splits"):
            columns[name] = np.split(tensor.flat_values.numpy(), tensor.row_splits.numpy()[1:-1])
        else:
            columns[name] = tensor.numpy()
    for row in range(len(columns["id"])):
        yield {name: column[row] for name, column in columns.items()}
