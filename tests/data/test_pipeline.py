"""Packed batches hold every pair whole, once an epoch, and continue exactly where they stopped."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepdistill_jax import spec
from stepdistill_jax.data import packing, pipeline
from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.join import DataConfig
from stepdistill_jax.data.pipeline import PipelineConfig, RowShape
from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.data.vocabulary import load_vocabulary

BOTH = spec.STREAMS
LABEL_ONLY = (spec.LABEL,)


class MemoryCache:
    """The members of a token cache that the pipeline reads, over a list of pairs."""

    def __init__(self, pairs: Sequence[Mapping[str, Any]]):
        self.pairs = pairs
        self.lengths = {
            feature: np.array([len(pair[feature]) for pair in pairs], np.int32)
            for feature in spec.FEATURES
        }

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.pairs[index]


def pair(*features: Sequence[int], rationale_weight: float = 1.0) -> dict[str, Any]:
    tokens = {
        name: np.array([*values, spec.EOS_ID], np.int32)
        for name, values in zip(spec.FEATURES, features, strict=True)
    }
    return tokens | {"label_weight": 1.0, "rationale_weight": rationale_weight}


def random_cache(count: int, seed: int = 0, longest: Sequence[int] = (12, 3, 12, 9)) -> MemoryCache:
    """Pairs of random tokens, a fifth of them without a rationale."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        missing = random.random() < 0.2
        sizes = [int(random.integers(1, most + 1)) for most in longest]
        sizes[3] = 0 if missing else sizes[3]
        features = [random.integers(3, 100, size) for size in sizes]
        pairs.append(pair(*features, rationale_weight=0.0 if missing else float(random.random())))
    return MemoryCache(pairs)


def iterate(
    cache: pipeline.PairSource,
    config: PipelineConfig,
    streams: Sequence[str] = BOTH,
    process_index: int = 0,
    process_count: int = 1,
    shape: RowShape | None = None,
    row_multiple: int = 1,
) -> grain.DatasetIterator[pipeline.Batch]:
    shape = shape or pipeline.row_shape(cache.lengths, config, streams)
    return pipeline.train_iterator(
        cache,
        config,
        shape,
        streams,
        process_index=process_index,
        process_count=process_count,
        row_multiple=row_multiple,
    )


def take(iterator: grain.DatasetIterator[pipeline.Batch], count: int) -> list[pipeline.Batch]:
    return list(itertools.islice(iterator, count))


def assert_same(left: pipeline.Batch, right: pipeline.Batch) -> None:
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)
        assert left[key].dtype == right[key].dtype


def assert_holds(batch: pipeline.Batch, cache: pipeline.PairSource, streams: Sequence[str]) -> None:
    """Every row is its pairs' tokens one after the other, in every feature alike, then padding."""
    for row, index in enumerate(batch[spec.EXAMPLE_INDEX]):
        members = index[index > 0]
        np.testing.assert_array_equal(index[: len(members)], members)
        pairs = [cache[i - 1] for i in members]
        for stream in streams:
            for name in (f"{stream}_inputs", f"{stream}_targets"):
                tokens, segments, weights = [], [], []
                for number, item in enumerate(pairs, start=1):
                    tokens.extend(item[name])
                    segments.extend([number] * len(item[name]))
                    weights.extend([item[f"{stream}_weight"]] * len(item[name]))
                padding = [0] * (batch[name].shape[1] - len(tokens))
                np.testing.assert_array_equal(batch[name][row], tokens + padding)
                result = batch[f"{name}_segment_ids"][row]
                np.testing.assert_array_equal(result, segments + padding)
            expected = np.array(weights + padding, np.float32)
            np.testing.assert_array_equal(batch[f"{stream}_weights"][row], expected)


def test_the_worked_example_of_the_docstring():
    cache = MemoryCache(
        [
            pair([11, 12], [31], [21, 12], [41, 42]),
            pair([13], [32], [22, 13], [], rationale_weight=0.0),
        ]
    )
    row = {
        "label_inputs_segment_ids": np.array([1, 1, 1, 2, 2, 0, 0, 0], np.int32),
        "label_targets_segment_ids": np.array([1, 1, 2, 2], np.int32),
        "rationale_inputs_segment_ids": np.array([1, 1, 1, 2, 2, 2, 0, 0], np.int32),
        "rationale_targets_segment_ids": np.array([1, 1, 1, 2, 0, 0], np.int32),
        spec.EXAMPLE_INDEX: np.array([1, 2, 0, 0, 0, 0, 0, 0], np.int32),
    }
    expected = row | {
        "label_inputs": [11, 12, 1, 13, 1, 0, 0, 0],
        "label_targets": [31, 1, 32, 1],
        "label_weights": [1, 1, 1, 1],
        "rationale_inputs": [21, 12, 1, 22, 13, 1, 0, 0],
        "rationale_targets": [41, 42, 1, 1, 0, 0],
        "rationale_weights": [1, 1, 1, 0, 0, 0],
    }
    config = PipelineConfig(
        batch_size=2, input_row_length=8, label_row_length=4, rationale_row_length=6
    )
    shape = RowShape(rows=1, inputs=8, targets={"label": 4, "rationale": 6})
    batches = take(iterate(cache, config, shape=shape), 8)
    # The order of the two is the shuffle's; that of the docstring comes up soon.
    in_order = [b for b in batches if b[spec.EXAMPLE_INDEX][0, 0] == 1]
    assert in_order
    assert set(in_order[0]) == {*spec.batch_keys(BOTH), spec.EXAMPLE_INDEX}
    for key, values in expected.items():
        np.testing.assert_array_equal(in_order[0][key], [values], err_msg=key)
    assert in_order[0]["label_weights"].dtype == np.float32
    assert in_order[0]["label_inputs"].dtype == np.int32
    assert pipeline.fill(in_order[0]) == {
        "label_inputs": 5 / 8,
        "label_targets": 1.0,
        "rationale_inputs": 6 / 8,
        "rationale_targets": 4 / 6,
    }


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 60),
    data_seed=st.integers(0, 99),
    seed=st.integers(0, 2**32 - 1),
    batch_size=st.integers(1, 40),
    pack=st.booleans(),
    streams=st.sampled_from([BOTH, LABEL_ONLY]),
)
def test_pairs_stay_whole_in_every_batch(count, data_seed, seed, batch_size, pack, streams):
    cache = random_cache(count, data_seed)
    config = PipelineConfig(batch_size=batch_size, pack=pack, seed=seed, prefetch=0)
    for batch in take(iterate(cache, config, streams), 4):
        assert set(batch) == {*spec.batch_keys(streams), spec.EXAMPLE_INDEX}
        assert_holds(batch, cache, streams)


def epochs_of(cache: pipeline.PairSource, config: PipelineConfig, epochs: int) -> list[int]:
    """Cache indices in the order in which batches bring them, of whole batches."""
    iterator, seen = iterate(cache, config), []
    while len(seen) < epochs * len(cache):
        index = next(iterator)[spec.EXAMPLE_INDEX]
        seen.extend(int(i) - 1 for i in index[index > 0])
    return seen


def test_every_pair_comes_once_an_epoch_unpacked():
    cache = random_cache(50)
    seen = epochs_of(cache, PipelineConfig(batch_size=8, pack=False), epochs=3)
    orders = [seen[start : start + 50] for start in (0, 50, 100)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_every_pair_comes_once_an_epoch_packed():
    # Rows leave the packer a group at a time, so a pair's n-th coming is within a group of the
    # n-th epoch; over many epochs all pairs come equally often, to within that.
    cache = random_cache(600)
    seen = Counter(epochs_of(cache, PipelineConfig(batch_size=32), epochs=10))
    assert set(seen) == set(range(600))
    assert set(seen.values()) <= {9, 10, 11}
    assert sum(count != 10 for count in seen.values()) < 200


@pytest.mark.parametrize("pack", [True, False])
def test_batches_are_the_processes_rows_one_after_the_other(pack):
    cache = random_cache(300)
    config = PipelineConfig(batch_size=64, pack=pack)
    shape = pipeline.row_shape(cache.lengths, config, BOTH)
    shape = RowShape(16, shape.inputs, shape.targets, shape.pairs_per_row)
    whole = take(iterate(cache, config, shape=shape), 6)
    for count in (2, 4):
        iterators = [iterate(cache, config, BOTH, i, count, shape) for i in range(count)]
        for batch, *parts in zip(whole, *(take(it, 6) for it in iterators), strict=True):
            assert {len(part["label_inputs"]) for part in parts} == {16 // count}
            joined = {key: np.concatenate([part[key] for part in parts]) for key in batch}
            assert_same(batch, joined)


@pytest.mark.parametrize(("processes", "multiple", "placed"), [(4, 1, 8), (3, 6, 6), (4, 12, 12)])
@pytest.mark.parametrize("token_weights", [False, True])
def test_rows_that_do_not_divide_among_processes_end_in_empty_rows(
    processes, multiple, placed, token_weights
):
    pairs = random_cache(300).pairs
    if token_weights:
        pairs = [p | {"label_weight": np.full(len(p["label_targets"]), 0.5)} for p in pairs]
    cache = MemoryCache(pairs)
    config = PipelineConfig(batch_size=5, pack=False)
    whole = next(iterate(cache, config))
    parts = [
        next(iterate(cache, config, BOTH, process, processes, row_multiple=multiple))
        for process in range(processes)
    ]
    assert {len(part["label_inputs"]) for part in parts} == {placed // processes}
    for key, value in whole.items():
        joined = np.concatenate([part[key] for part in parts])
        assert joined.dtype == value.dtype
        np.testing.assert_array_equal(joined[:5], value)
        assert not joined[5:].any()


def test_the_seed_alone_decides_the_order():
    cache = random_cache(300)
    runs = [take(iterate(cache, PipelineConfig(32, seed=seed)), 5) for seed in (0, 0, 1)]
    for first, again in zip(runs[0], runs[1], strict=True):
        assert_same(first, again)
    firsts = [run[0][spec.EXAMPLE_INDEX].tolist() for run in runs]
    assert firsts[0] != firsts[2]
    # Neighbouring seeds share no epoch: Grain counts epochs up from the seed that it is given.
    unpacked = [
        epochs_of(cache, PipelineConfig(32, pack=False, seed=seed), epochs=3) for seed in (0, 1)
    ]
    orders = {tuple(seen[start : start + 300]) for seen in unpacked for start in (0, 300, 600)}
    assert len(orders) == 6


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_restored_iterator_goes_on_bit_for_bit(pack, prefetch):
    # 100 pairs in batches of 16: the 60 batches cross epochs and the packer's groups of rows.
    cache = random_cache(100)
    config = PipelineConfig(batch_size=16, pack=pack, prefetch=prefetch)
    shape = pipeline.row_shape(cache.lengths, config, BOTH)
    iterator = iterate(cache, config, shape=shape)
    states, batches = [iterator.get_state()], []
    for _ in range(60):
        batches.append(next(iterator))
        states.append(iterator.get_state())
    for position in (0, 1, 2, 5, 6, 7, 13, 24, 25, 26, 41, 50):
        restored = iterate(cache, config, shape=shape)
        restored.set_state(json.loads(json.dumps(states[position])))
        assert restored.get_state() == states[position]
        for expected, result in zip(batches[position:], take(restored, 10), strict=False):
            assert_same(expected, result)


def test_an_iterator_restores_again_and_again_and_on_other_processes():
    cache = random_cache(200)
    config = PipelineConfig(batch_size=40)
    shape = pipeline.row_shape(cache.lengths, config, BOTH)
    shape = RowShape(4, shape.inputs, shape.targets, shape.pairs_per_row)
    batches = take(iterate(cache, config, shape=shape), 40)
    running, position = iterate(cache, config, shape=shape), 0
    for stop in (3, 4, 11, 19, 30):
        for batch in batches[position:stop]:
            assert_same(batch, next(running))
        next(running)  # A batch that was not trained on is lost with the process.
        state, position = iterate_state(cache, config, shape, batches[:stop]), stop
        running.set_state(state)
    parts = [iterate(cache, config, BOTH, i, 2, shape) for i in range(2)]
    for part in parts:
        part.set_state(state)
    for batch, *halves in zip(batches[30:], *(take(it, 10) for it in parts), strict=True):
        joined = {key: np.concatenate([half[key] for half in halves]) for key in batch}
        assert_same(batch, joined)


def iterate_state(
    cache: pipeline.PairSource,
    config: PipelineConfig,
    shape: RowShape,
    batches: Sequence[pipeline.Batch],
) -> dict[str, Any]:
    """The state after `batches`, from an iterator of its own."""
    iterator = iterate(cache, config, shape=shape)
    take(iterator, len(batches))
    return iterator.get_state()


def test_a_program_ends_cleanly_in_the_middle_of_prefetching():
    # The interpreter aborts where its end finds a thread inside Grain's compiled code.
    program = textwrap.dedent("""
        import test_pipeline as t
        cache = t.random_cache(500)
        config = t.PipelineConfig(64, pack=False, prefetch=100000)
        iterator = t.iterate(cache, config)
        next(iterator)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=pathlib.Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(pipeline.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("streams", [BOTH, LABEL_ONLY])
@pytest.mark.parametrize("batch_size", [32, 64, 200])
def test_a_packed_step_holds_batch_size_pairs_on_average(streams, batch_size):
    cache = random_cache(2000)
    config = PipelineConfig(batch_size=batch_size)
    shape = pipeline.row_shape(cache.lengths, config, streams)
    batches = take(iterate(cache, config, streams, shape=shape), 6000 // batch_size)
    mean = np.mean([np.count_nonzero(batch[spec.EXAMPLE_INDEX]) for batch in batches])
    assert mean == pytest.approx(shape.rows * shape.pairs_per_row, rel=0.01)
    assert abs(mean - batch_size) <= 0.51 * shape.pairs_per_row


def test_unpacked_rows_hold_one_pair_at_the_longest_length_or_the_given():
    cache = random_cache(100, longest=(21, 3, 18, 9))
    longest = {feature: int(cache.lengths[feature].max()) for feature in spec.FEATURES}
    assert longest == {
        "label_inputs": 22,
        "label_targets": 4,
        "rationale_inputs": 19,
        "rationale_targets": 10,
    }
    config = PipelineConfig(batch_size=7, pack=False, rationale_row_length=11)
    shape = pipeline.row_shape(cache.lengths, config, BOTH)
    assert shape == RowShape(7, 22, {"label": 4, "rationale": 11})
    batch = next(iterate(cache, config))
    assert (np.count_nonzero(batch[spec.EXAMPLE_INDEX], axis=1) == 1).all()
    assert batch["rationale_targets"].shape == (7, 11)


def test_given_row_lengths_are_kept():
    cache = random_cache(400)
    config = PipelineConfig(batch_size=64, input_row_length=40, rationale_row_length=33)
    shape = pipeline.row_shape(cache.lengths, config, BOTH)
    assert (shape.inputs, shape.targets["rationale"]) == (40, 33)
    assert next(iterate(cache, config))["rationale_weights"].shape == (shape.rows, 33)


@pytest.mark.parametrize("pack", [True, False])
def test_a_pair_longer_than_a_given_row_is_refused_by_name(pack):
    cache = random_cache(30)
    cache.lengths["rationale_inputs"][17] = 45
    config = PipelineConfig(pack=pack, input_row_length=40)
    message = (
        r"INPUT_ROW_LENGTH: got 40, expected at least 45, the tokens of rationale_inputs in "
        r"example a17. Set INPUT_ROW_LENGTH=0 to choose it automatically, or lower MAX_INPUT_LENGTH"
    )
    with pytest.raises(spec.InputError, match=message):
        pipeline.row_shape(cache.lengths, config, BOTH, name="example a{}".format)
    # A method that does not train the stream does not mind.
    assert pipeline.row_shape(cache.lengths, config, LABEL_ONLY).inputs == 40


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("batch_size", 0, "at least 1"),
        ("label_row_length", -1, r"a number in \[0, 1048576\]"),
        ("prefetch", -1, "at least 0"),
    ],
)
def test_an_impossible_configuration_cannot_be_built(field, value, expected):
    with pytest.raises(spec.InputError, match=f"{field.upper()}: got {value}, expected {expected}"):
        PipelineConfig(**{field: value})


def test_no_pairs_is_an_error():
    with pytest.raises(spec.InputError, match="No pairs to train on"):
        pipeline.row_shape(MemoryCache([]).lengths, PipelineConfig(), BOTH)


def test_the_simulation_counts_the_rows_of_grains_packer():
    lengths = np.random.default_rng(0).integers(1, [[20], [6]], (2, 1200))
    capacities = np.array([[64, 20], [48, 10], [21, 6]])
    simulated = packing.pairs_per_row(lengths, capacities, bins=8)
    for capacity, expected in zip(capacities, simulated, strict=True):
        pairs = grain.MapDataset.range(1200).map(
            lambda i: {name: np.zeros(lengths[f, i], np.int8) for f, name in enumerate("ab")}
        )
        rows = grain.experimental.FirstFitPackIterDataset(
            pairs.to_iter_dataset(),
            length_struct=dict(zip("ab", map(int, capacity), strict=True)),
            num_packing_bins=8,
            shuffle_bins=False,
        )
        packed = [int(row["a_segment_ids"].max()) for row in rows]
        whole = len(packed) // 8 * 8
        if len(packed) == whole:
            whole -= 8  # The last group is still being filled.
        assert sum(packed[:whole]) / whole == expected


def test_evaluation_visits_every_pair_once_in_few_shapes():
    cache = random_cache(103, longest=(90, 3, 90, 9))
    batches = list(pipeline.eval_batches(cache, 10))
    assert len(batches) == 11
    index = np.concatenate([batch[0] for batch in batches])
    assert sorted(index[index >= 0]) == list(range(103))
    assert list(index[-7:]) == [-1] * 7
    assert len({batch[1].shape for batch in batches}) <= 3
    for rows, inputs, segment_ids in batches:
        assert inputs.shape[1] % 16 == 0
        for row, tokens, segments in zip(rows, inputs, segment_ids, strict=True):
            expected = [] if row < 0 else list(cache[row]["label_inputs"])
            assert list(tokens[: len(expected)]) == expected
            assert not tokens[len(expected) :].any()
            assert list(segments) == [1] * len(expected) + [0] * (len(segments) - len(expected))


def test_evaluation_of_nothing_yields_nothing():
    assert list(pipeline.eval_batches(MemoryCache([]), 4)) == []


def esnli_cache(shared: pathlib.Path, spiece: pathlib.Path) -> MemoryCache:
    """The pairs of e-SNLI's validation split with the teacher's rationales, T5's tokens."""
    vocabulary = load_vocabulary(str(spiece))
    folder = shared / "data" / "esnli"
    rows = [json.loads(line) for line in (folder / "esnli_valid.json").open(encoding="utf-8")]
    outputs = [
        text
        for file in sorted((folder / "llm").glob("valid_CoT_*.json"))
        for text in json.loads(file.read_text(encoding="utf-8"))
    ]
    pairs = []
    for row, output in zip(rows, outputs, strict=True):
        text = f"{row['premise']}{spec.SEPARATOR}{row['hypothesis']}"
        label = ("entailment", "neutral", "contradiction")[row["label"]]
        prefixed = [prefix + text for prefix in spec.PREFIXES["release"]]
        texts = (prefixed[0], label, prefixed[1], output.split("\nAnswer:")[0])
        pairs.append(pair(*(vocabulary.encode(text) for text in texts)))
    return MemoryCache(pairs)


@pytest.mark.parametrize("batch_size", [64, 128])
def test_esnli_fills_its_rows(shared, spiece, batch_size):
    cache = esnli_cache(shared, spiece)
    for streams in (BOTH, LABEL_ONLY):
        batches = take(iterate(cache, PipelineConfig(batch_size), streams), 4000 // batch_size)
        fills = [pipeline.fill(batch) for batch in batches]
        mean = {feature: np.mean([fill[feature] for fill in fills]) for feature in fills[0]}
        assert all(mean[f"{stream}_inputs"] >= 0.95 for stream in streams), mean
        assert all(mean[f"{stream}_targets"] >= 0.75 for stream in streams), mean


def test_a_cache_on_disk_feeds_batches_and_resumes(shared, spiece, tmp_path):
    data = DataConfig(dataset="svamp", data_dir=str(shared / "data"))
    tokens = TokenConfig(vocabulary=str(spiece), cache_dir=str(tmp_path))
    cache = open_or_build(data, tokens, "train")
    config = PipelineConfig(batch_size=64)
    iterator = iterate(cache, config)
    batches = take(iterator, 5)
    state = iterator.get_state()
    for batch in batches:
        assert_holds(batch, cache, BOTH)
    restored = iterate(open_or_build(data, tokens, "train"), config)
    restored.set_state(state)
    for expected, result in zip(take(iterator, 5), take(restored, 5), strict=True):
        assert_same(expected, result)
