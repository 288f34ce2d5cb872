"""Token cache -> checkpointable Grain iterator of packed numpy batches, and evaluation batches.

Several pairs share one row. A row of the step-by-step method has four parts (two inputs and two
targets). A pair enters a row only if all of its parts fit, so it is never split, and it has the
same segment id in every part. With input rows of 8, label rows of 4 and rationale rows of 6, the
pairs

       label_inputs  label_targets  rationale_inputs  rationale_targets
    1  11 12 1       31 1           21 12 1           41 42 1
    2  13 1          32 1           22 13 1           1

(the second has no rationale: weight 0, EOS alone) make the row

    label_inputs                    11 12  1 13  1  0  0  0
    label_inputs_segment_ids         1  1  1  2  2  0  0  0
    label_targets                   31  1 32  1
    label_targets_segment_ids        1  1  2  2
    label_weights                    1  1  1  1
    rationale_inputs                21 12  1 22 13  1  0  0
    rationale_inputs_segment_ids     1  1  1  2  2  2  0  0
    rationale_targets               41 42  1  1  0  0
    rationale_targets_segment_ids    1  1  1  2  0  0
    rationale_weights                1  1  1  0  0  0
    example_index                    1  2  0  0  0  0  0  0

Packing reads lengths only, and every process packs the same global sequence of rows. Each process
then reads the tokens of its rows. So batches do not depend on the number of processes, and an
iterator state restores on any number of them.
"""

from __future__ import annotations

import atexit
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from grain import experimental

from stepdistill_jax import spec
from stepdistill_jax.data.packing import PipelineConfig as PipelineConfig
from stepdistill_jax.data.packing import RowShape as RowShape
from stepdistill_jax.data.packing import packing_bins
from stepdistill_jax.data.packing import row_shape as row_shape
from stepdistill_jax.data.token_shards import Manifest

# Evaluation compiles once for each of these lengths: quantiles of the input lengths, rounded up.
EVAL_LENGTH_QUANTILES = (0.5, 0.9, 1.0)
EVAL_LENGTH_MULTIPLE = 16

Batch = dict[str, np.ndarray]


class PairSource(Protocol):
    """What this module reads of a `token_cache.TokenCache`."""

    @property
    def lengths(self) -> Mapping[str, np.ndarray]:
        """Feature -> int32 [pairs]: tokens, EOS included."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One pair's int32 features, and each stream's weight: ``label_weight`` and so on.

        A weight is a number, or float32 [tokens of the target], in all pairs alike.
        """


class TextSource(PairSource, Protocol):
    """What evaluation reads as well."""

    def example(self, index: int) -> Mapping[str, Any]:
        """One pair with its texts: id, input, label, gold (None if unlabelled) and choices."""


class SplitCache(TextSource, Protocol):
    """A split's pairs and their origin: a token cache, or a view of one."""

    @property
    def manifest(self) -> Manifest:
        """Its fingerprint names the data and the vocabulary."""


def train_iterator(
    cache: PairSource,
    config: PipelineConfig,
    shape: RowShape,
    streams: Sequence[str],
    *,
    process_index: int,
    process_count: int,
    row_multiple: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Iterates over train batches without end, in a new order every epoch.

    The global batch is the concatenation of its processes' rows; if they do not divide evenly, its
    last rows are empty. `get_state` gives a small tree of numbers, the same in every process and
    for any number of them; `set_state` continues with the batch that would have come next.

    Args:
        config: packed or not, seed and prefetch.
        shape: from `row_shape` for the same cache, configuration and streams.
        streams: those that the method trains.
        process_index: from 0.
        process_count: processes that share a global batch.
        row_multiple: the global number of rows of several processes is rounded up to a multiple of
            it, so that `place_batch` adds no rows between theirs.

    Returns:
        An iterator over `spec.batch_keys(streams)` of `B / process_count` rows, rounded up, and
        `spec.EXAMPLE_INDEX` int32 [rows, L]: index in the cache plus one of a row's first,
        second, ... pair, then zeros.
    """
    lengths = {feature: np.asarray(cache.lengths[feature]) for feature in shape.feature_lengths()}
    pairs = grain.MapDataset.range(len(cache)).seed(config.seed).shuffle().repeat()
    # Reading happens in `assemble`; nothing here is worth a thread.
    inline = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    if config.pack:
        rows = _pack(pairs.map(_Spans(lengths)).to_iter_dataset(inline), config, shape, len(cache))
    else:
        rows = pairs.map(_OnePairRow(lengths, shape)).to_iter_dataset(inline)
    multiple = 1 if process_count == 1 else math.lcm(process_count, row_multiple)
    share = math.ceil(shape.rows / multiple) * multiple // process_count

    def of_process(batch: Sequence[Batch]) -> Batch:
        members = [*batch[process_index * share : (process_index + 1) * share]]
        empty = {key: np.zeros_like(value) for key, value in batch[0].items()}
        return assemble(cache, members + [empty] * (share - len(members)), streams)

    batches = rows.batch(shape.rows, batch_fn=of_process)
    iterator = iter(
        experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch)
    )
    # The interpreter aborts if it exits while the thread runs Grain's compiled code.
    atexit.register(_close, weakref.ref(iterator))
    return iterator


def assemble(cache: PairSource, rows: Sequence[Batch], streams: Sequence[str]) -> Batch:
    """Reads the tokens of packed rows.

    Args:
        rows: each with `spec.EXAMPLE_INDEX` [L] and every feature's segment ids.

    Returns:
        `spec.batch_keys(streams)` and `spec.EXAMPLE_INDEX`.
    """
    index = np.stack([row[spec.EXAMPLE_INDEX] for row in rows])
    pairs = [cache[int(position) - 1] for position in index[index > 0]]
    batch = {spec.EXAMPLE_INDEX: index}
    for stream in streams:
        for feature in (f"{stream}_inputs", f"{stream}_targets"):
            tokens = [pair[feature] for pair in pairs]
            segment_ids = np.stack([row[f"{feature}_segment_ids"] for row in rows])
            # Segments follow the order of a row's pairs, without gaps. So, in reading order, the
            # filled slots of all rows are the concatenated tokens of all pairs.
            batch[f"{feature}_segment_ids"] = segment_ids
            batch[feature] = _fill_slots(segment_ids, _joined(tokens), np.int32)
        weights = [pair[f"{stream}_weight"] for pair in pairs]
        if weights and not isinstance(weights[0], np.ndarray):
            token_weights = np.repeat(weights, [len(target) for target in tokens])
        else:
            token_weights = _joined(weights)
        batch[f"{stream}_weights"] = _fill_slots(segment_ids, token_weights, np.float32)
    return batch


def eval_batches(
    cache: PairSource, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the label inputs of every pair once, the shortest first, one pair a row.

    Rows have at most `len(EVAL_LENGTH_QUANTILES)` different lengths. Empty rows fill the last
    batch.

    Yields:
        index int32 [B], the pair's position in the cache, -1 for an empty row; inputs int32
        [B, L]; segment ids int32 [B, L], 1 on tokens and 0 on padding.
    """
    lengths = np.asarray(cache.lengths[f"{spec.LABEL}_inputs"])
    if not len(lengths):
        return
    quantiles = np.quantile(lengths, EVAL_LENGTH_QUANTILES)
    buckets = np.ceil(quantiles / EVAL_LENGTH_MULTIPLE).astype(int) * EVAL_LENGTH_MULTIPLE
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        index = np.full(batch_size, -1, np.int32)
        index[: len(members)] = members
        length = buckets[np.searchsorted(buckets, lengths[members[-1]])]
        row_lengths = np.where(index < 0, 0, lengths[index])
        segment_ids = (np.arange(length) < row_lengths[:, None]).astype(np.int32)
        tokens = [cache[int(member)][f"{spec.LABEL}_inputs"] for member in members]
        yield index, _fill_slots(segment_ids, _joined(tokens), np.int32), segment_ids


def fill(batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Feature -> share of its slots that hold tokens, for every feature with segment ids."""
    suffix = "_segment_ids"
    return {
        key.removesuffix(suffix): np.count_nonzero(value) / value.size
        for key, value in batch.items()
        if key.endswith(suffix)
    }


def _close(reference: weakref.ref[grain.DatasetIterator[Batch]]) -> None:
    iterator = reference()
    if iterator is not None:
        iterator.close()


def _pack(
    pairs: grain.IterDataset[Batch], config: PipelineConfig, shape: RowShape, count: int
) -> grain.IterDataset[Batch]:
    # Capacity L never limits the index: a pair takes one slot of it and one or more of inputs.
    slots = shape.feature_lengths() | {spec.EXAMPLE_INDEX: shape.inputs}
    return experimental.FirstFitPackIterDataset(
        pairs,
        length_struct=slots,
        num_packing_bins=packing_bins(count),
        # Grain increments this seed; hashing separates the runs of neighbouring seeds.
        seed=int(np.random.SeedSequence(config.seed).generate_state(1)[0]),
        shuffle_bins=True,
        meta_features=(spec.EXAMPLE_INDEX,),
    )


class _Spans:
    """Index of a pair -> arrays as long as its features; packing needs only their lengths."""

    def __init__(self, lengths: Mapping[str, np.ndarray]):
        self._lengths = lengths
        longest = max(int(count.max()) for count in lengths.values())
        self._blank = np.zeros(longest, np.int8)

    def __call__(self, index: int) -> Batch:
        spans = {feature: self._blank[: count[index]] for feature, count in self._lengths.items()}
        return spans | {spec.EXAMPLE_INDEX: np.array([index + 1], np.int32)}


class _OnePairRow:
    """Index of a pair -> the unpacked row of this pair alone."""

    def __init__(self, lengths: Mapping[str, np.ndarray], shape: RowShape):
        self._lengths = lengths
        self._slots = {feature: np.arange(n) for feature, n in shape.feature_lengths().items()}
        self._inputs = shape.inputs

    def __call__(self, index: int) -> Batch:
        row = {
            f"{feature}_segment_ids": (self._slots[feature] < count[index]).astype(np.int32)
            for feature, count in self._lengths.items()
        }
        row[spec.EXAMPLE_INDEX] = np.zeros(self._inputs, np.int32)
        row[spec.EXAMPLE_INDEX][0] = index + 1
        return row


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The concatenated parts; there are none if a process has only empty rows."""
    return np.concatenate(parts) if parts else np.zeros(0)


def _fill_slots(segment_ids: np.ndarray, values: np.ndarray, dtype: type) -> np.ndarray:
    slots: np.ndarray = np.zeros(segment_ids.shape, dtype)
    slots[segment_ids > 0] = values
    return slots


class PairSubset:
    """Some pairs of a token cache, with the same interface."""

    def __init__(self, cache: Any, index: np.ndarray) -> None:
        """Takes the pairs `index` [pairs], in that order."""
        self._cache = cache
        self._index = index

    @property
    def lengths(self) -> Mapping[str, np.ndarray]:
        """Feature -> int32 [pairs]: tokens, EOS included."""
        source: PairSource = self._cache
        return {name: np.asarray(values)[self._index] for name, values in source.lengths.items()}

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        pair: Mapping[str, Any] = self._cache[int(self._index[index])]
        return pair

    def example(self, index: int) -> Mapping[str, Any]:
        """One pair with its texts."""
        pair: Mapping[str, Any] = self._cache.example(int(self._index[index]))
        return pair
