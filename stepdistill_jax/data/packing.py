"""The number and length of the rows of a packed batch, from token counts alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stepdistill_jax import spec
from stepdistill_jax.settings import check, setting

# The goal of automatic row lengths: the share of a row's slots that hold tokens.
INPUT_FILL_GOAL = 0.955
TARGET_FILL_GOAL = 0.76
# Missing a fill goal by 0.01 costs as much as 10% more padded slots per pair; missing the batch
# size by 1% costs as much as 1% more.
SHORTFALL_COST = 10.0

# Attention's cost is quadratic in the row length and equals that of the matrix products at about
# this length in T5 base (they take 4 D^2 + 3 D F multiplications a token, attention 2 L D).
QUADRATIC_LENGTH = 4096
# Input rows, where attention is quadratic, are multiples of a TPU tile's eight sublanes. Target
# rows have a finer step, which labels of three tokens need to fill them.
INPUT_MULTIPLE = 8
TARGET_MULTIPLE = 4
# Input row lengths to try; longer ones only if a pair needs one.
INPUT_ROW_LENGTHS = tuple(range(64, 512 + 1, 64))
# With fewer rows in a batch, whole rows miss `batch_size` by much, and some of eight devices get
# empty rows.
MIN_ROWS = 8

# Pairs that the simulations of first-fit draw: to compare row lengths, and to count rows.
SEARCH_PAIRS = 3072
COUNT_PAIRS = 8192
SEARCH_BINS = 32


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """What a train batch is made of. `seed`, the run's SEED, orders the pairs."""

    HEADING = "Batch"

    batch_size: int = setting(
        64,
        "Pairs per step over all devices. With PACK it is the mean over an epoch, as near as "
        "whole rows allow.",
        at_least=1,
    )
    pack: bool = setting(True, "Put several pairs in one row.")
    input_row_length: int = setting(
        0, "Input tokens of a packed row; 0 = chosen from the data.", at_least=0, at_most=2**20
    )
    label_row_length: int = setting(
        0, "Label tokens of a packed row; 0 = chosen from the data.", at_least=0, at_most=2**20
    )
    rationale_row_length: int = setting(
        0, "Rationale tokens of a packed row; 0 = chosen from the data.", at_least=0, at_most=2**20
    )
    prefetch: int = setting(2, "Batches prepared ahead in a thread; 0 = none.", at_least=0)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)

    def row_lengths(self, streams: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Feature -> (macro, row length that the user set, or 0)."""
        lengths = {}
        for stream in streams:
            target = spec.LABEL if stream == spec.COUNTERFACTUAL else stream
            macro = f"{target.upper()}_ROW_LENGTH"
            lengths[f"{stream}_inputs"] = ("INPUT_ROW_LENGTH", self.input_row_length)
            lengths[f"{stream}_targets"] = (macro, getattr(self, macro.lower()))
        return lengths


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The shape of a train batch, the same on any number of devices and processes.

    Attributes:
        rows: B, over all processes.
        inputs: L, slots of an input row.
        targets: stream -> T, slots of its target row.
        pairs_per_row: mean over an epoch; 1 if not packed.
    """

    rows: int
    inputs: int
    targets: Mapping[str, int]
    pairs_per_row: float = 1.0

    def feature_lengths(self) -> dict[str, int]:
        """Feature -> slots of its row, for each stream's inputs and targets."""
        lengths = {}
        for stream, target in self.targets.items():
            lengths[f"{stream}_inputs"] = self.inputs
            lengths[f"{stream}_targets"] = target
        return lengths


def packing_bins(pairs: int) -> int:
    """Rows that the packer fills at a time.

    More of them leave less padding but reorder the pairs more. A small data set gets few, so that
    a pair does not meet itself from the next epoch in one row.
    """
    return min(max(pairs // 64, 8), 128)


def row_shape(
    lengths: Mapping[str, np.ndarray],
    config: PipelineConfig,
    streams: Sequence[str],
    name: Callable[[int], str] = "pair {} of the token cache".format,
) -> RowShape:
    """Chooses the shape of a train batch from the lengths of all pairs; deterministic.

    Row lengths that are not set minimise the padding per pair, attention's quadratic part
    included, with a penalty for missing the batch size, `INPUT_FILL_GOAL` or `TARGET_FILL_GOAL` in
    a simulation of first-fit. Unpacked rows are as long as the longest pair.

    Args:
        lengths: feature -> int [pairs], tokens with EOS, as `TokenCache.lengths`.
        config: the batch size in pairs, and the row lengths that are set.
        streams: those that the method trains, in the order of `spec.STREAMS`.
        name: index of a pair -> its name in an error.

    Raises:
        spec.InputError: there are no pairs, or one is longer than a row length that is set.
    """
    row_lengths = config.row_lengths(streams)
    if not all(len(lengths[feature]) for feature in row_lengths):
        raise spec.InputError("No pairs to train on. Supply a training split with examples.")
    for feature, (macro, length) in row_lengths.items():
        _check_row_length(feature, lengths[feature], macro, length, name)
    counts = np.stack([lengths[feature] for feature in row_lengths])  # [F, pairs]
    if not config.pack:
        return _shape(_unpacked(counts, row_lengths), config.batch_size, streams)
    candidates = _candidates(counts, row_lengths, config.batch_size)
    if len(candidates) > 1:
        trial = counts[:, _epochs(counts.shape[1], SEARCH_PAIRS)]
        per_row = pairs_per_row(trial, candidates, SEARCH_BINS)
        cost = _cost(counts.mean(axis=1), candidates, per_row, config.batch_size)
        candidates = candidates[cost.argmin()][None]
    trial = counts[:, _epochs(counts.shape[1], COUNT_PAIRS)]
    mean = float(pairs_per_row(trial, candidates, packing_bins(counts.shape[1]))[0])
    rows = max(1, round(config.batch_size / mean))
    return dataclasses.replace(_shape(candidates[0], rows, streams), pairs_per_row=mean)


def pairs_per_row(lengths: np.ndarray, capacities: np.ndarray, bins: int) -> np.ndarray:
    """Simulates Grain's first-fit packer for several row lengths at once.

    Args:
        lengths: int [features, pairs] in the order of packing.
        capacities: int [candidates, features], the row lengths to try.
        bins: rows filled at a time; when a pair fits in none, all of them are emitted.

    Returns:
        float [candidates]: the mean number of pairs in an emitted row.
    """
    candidates = np.arange(len(capacities))
    free = np.repeat(capacities.T[:, :, None], bins, axis=2).astype(np.int32)  # [F, C, bins]
    emitted_pairs = np.zeros(len(capacities), np.int64)
    emitted_rows = np.zeros(len(capacities), np.int64)
    for count, needed in enumerate(lengths.T):
        fits = free[0] >= needed[0]
        for feature in range(1, len(free)):
            fits &= free[feature] >= needed[feature]
        row = fits.argmax(axis=1)
        full = ~fits[candidates, row]
        if full.any():
            emitted_pairs[full] = count
            emitted_rows[full] += bins
            free[:, full, :] = capacities.T[:, full, None]
            row[full] = 0
        free[:, candidates, row] -= needed[:, None]
    # Partly filled rows would bias the mean, so they count only if there are no others.
    used = (free[0] < capacities[:, :1]).sum(axis=1)
    none = emitted_rows == 0
    return np.where(none, lengths.shape[1], emitted_pairs) / np.where(none, used, emitted_rows)


def _round_up(length: float, multiple: int) -> int:
    return math.ceil(length / multiple) * multiple


def _check_row_length(
    feature: str, lengths: np.ndarray, macro: str, row_length: int, name: Callable[[int], str]
) -> None:
    longest = int(np.argmax(lengths))
    if row_length and lengths[longest] > row_length:
        raise spec.InputError(
            f"{macro}: got {row_length}, expected at least {lengths[longest]}, the tokens of "
            f"{feature} in {name(longest)}. Set {macro}=0 to choose it automatically, or lower "
            "MAX_INPUT_LENGTH, MAX_LABEL_LENGTH or MAX_RATIONALE_LENGTH."
        )


def _shape(capacities: np.ndarray, rows: int, streams: Sequence[str]) -> RowShape:
    inputs, targets = capacities[::2], capacities[1::2]
    return RowShape(rows, int(inputs[0]), dict(zip(streams, map(int, targets), strict=True)))


def _unpacked(counts: np.ndarray, row_lengths: Mapping[str, tuple[str, int]]) -> np.ndarray:
    """Row lengths [F] that hold the longest pair."""
    longest = counts.max(axis=1)
    longest[::2] = longest[::2].max()
    fixed = [length for _, length in row_lengths.values()]
    return np.where(fixed, fixed, longest)


def _candidates(
    counts: np.ndarray, row_lengths: Mapping[str, tuple[str, int]], batch_size: int
) -> np.ndarray:
    """Row lengths to try, [candidates, F]; those that are set stay."""
    shortest = [
        _round_up(n, TARGET_MULTIPLE if column % 2 else INPUT_MULTIPLE)
        for column, n in enumerate(_unpacked(counts, row_lengths))
    ]
    means = counts.mean(axis=1)
    fixed = [length for _, length in row_lengths.values()]
    if fixed[0]:
        inputs = [fixed[0]]
    else:
        tried = [length for length in INPUT_ROW_LENGTHS if length >= shortest[0]]
        pairs = batch_size / MIN_ROWS
        tried = [n for n in tried if n * INPUT_FILL_GOAL <= pairs * means[::2].max()] or tried[:1]
        inputs = tried or [shortest[0]]
    candidates = []
    for length in inputs:
        pairs = length * INPUT_FILL_GOAL / means[::2].max()
        targets = []
        for column in range(1, len(fixed), 2):
            fills = np.linspace(TARGET_FILL_GOAL, 1, 6)
            fitting = {_round_up(means[column] * pairs / fill, TARGET_MULTIPLE) for fill in fills}
            enough = {max(n, shortest[column]) for n in fitting}
            targets.append([fixed[column]] if fixed[column] else enough)
        for chosen in itertools.product(*(sorted(lengths) for lengths in targets)):
            candidates.append([slots for target in chosen for slots in (length, target)])
    return np.array(candidates)


def _cost(
    means: np.ndarray, candidates: np.ndarray, per_row: np.ndarray, batch_size: int
) -> np.ndarray:
    """Padded slots per pair with attention's quadratic part, and the price of missed goals."""
    slots = (candidates * (1 + candidates / QUADRATIC_LENGTH)).sum(axis=1) / per_row
    goals = np.resize([INPUT_FILL_GOAL, TARGET_FILL_GOAL], len(means))
    missing = np.maximum(goals - means * per_row[:, None] / candidates, 0).sum(axis=1)
    pairs = np.maximum(np.round(batch_size / per_row), 1) * per_row
    return slots * (1 + SHORTFALL_COST * missing + np.abs(pairs / batch_size - 1))


def _epochs(pairs: int, count: int) -> np.ndarray:
    """The first `count` indices of shuffled epochs of `pairs`; the same on every call."""
    random = np.random.default_rng(0)
    epochs = [random.permutation(pairs) for _ in range(-(-count // pairs))]
    return np.concatenate(epochs)[:count]
