"""The speed of a run: train steps, label decoding, the input pipeline and the token cache."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import tempfile
from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np

from stepdistill_jax.bench import machine, windows
from stepdistill_jax.bench.measurement import Results, Window, announce, ratio, take_turns
from stepdistill_jax.data.packing import RowShape, row_shape
from stepdistill_jax.data.pipeline import SplitCache, train_iterator
from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.parallel.place import data_shard, place_batch
from stepdistill_jax.run import load
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.spec import InputError
from stepdistill_jax.train.build import build_step
from stepdistill_jax.train.state import create_state

PACKED, UNPACKED = "packed", "unpacked"

# Batches of validation examples in a window of decoding.
_DECODE_BATCHES = 4
_PIPELINE_SECONDS = 1.0
# A larger training split is reduced to about this many examples before its cache is built.
_BUILD_EXAMPLES = 20_000
_MIB = 2**20


class BenchmarkRun:
    """A run with random parameters, whose parts are built once and then measured.

    Attributes:
        config: the run.
        turns: timed windows of each measurement.
        mesh: all devices.
        cache: the training split.
        validation: the validation split.
        state: the train state; `step` updates it.
        shapes: of a train batch, packed and unpacked.
    """

    def __init__(self, config: RunConfig, turns: int) -> None:
        """Opens the token caches and creates the state; does not compile the step yet.

        Raises:
            InputError: METHOD trains nothing, or data, vocabulary or mesh do not match the
                configuration.
        """
        if not config.streams:
            raise InputError(
                f"METHOD={config.method!r} trains nothing. Set a METHOD that does, as step_by_step."
            )
        self.config = config
        self.turns = turns
        self.mesh = make_mesh(config.mesh)
        self.cache: SplitCache = open_split(config, "train")
        self.validation = open_split(config, "validation")
        optimizer, self._train_step = build_step(config, self.mesh)
        self.state = create_state(config.model, optimizer, self.mesh, config.seed)
        self.shapes: dict[str, RowShape] = {}

    @property
    def mode(self) -> str:
        """Whether the run packs."""
        return PACKED if self.config.pipeline.pack else UNPACKED

    def loop(self, mode: str) -> windows.TrainLoop:
        """The train loop, from the run's first batch and the current state."""
        shape = self.shape(mode)
        return windows.TrainLoop(
            batches=self.batches(mode),
            place=self.place,
            step=self.step,
            shards=data_shard(self.mesh)[1],
            flops=train_flops(self.config.model, shape.rows, shape.inputs, shape.targets),
        )

    def shape(self, mode: str) -> RowShape:
        """Shape of a train batch; cached."""
        if mode not in self.shapes:
            pipeline = dataclasses.replace(self.config.pipeline, pack=mode == PACKED)
            self.shapes[mode] = row_shape(self.cache.lengths, pipeline, self.config.streams)
        return self.shapes[mode]

    def batches(self, mode: str) -> grain.DatasetIterator[dict[str, np.ndarray]]:
        """This process's part of the train batches, from the run's first batch."""
        shard, shards = data_shard(self.mesh)
        return train_iterator(
            self.cache,
            dataclasses.replace(self.config.pipeline, pack=mode == PACKED),
            self.shape(mode),
            self.config.streams,
            process_index=shard,
            process_count=shards,
        )

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A host batch on the mesh."""
        return place_batch(batch, self.mesh, self.config.microbatches)

    def step(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Updates `state`; returns the step's metrics on the device."""
        self.state, metrics = self._train_step(self.state, batch)
        return metrics

    def label_evaluation(self) -> tuple[Evaluator, windows.EvenSample, int]:
        """An evaluator, its examples, and how many tokens it decodes: those of the longest label.

        Random parameters never predict EOS; trained ones stop at the longest label of a batch.
        """
        evaluator = Evaluator(self.config, self.mesh)
        longest = int(self.validation.lengths["label_targets"].max())
        evaluator.decode_length = longest
        examples = _DECODE_BATCHES * self.config.eval.batch_size
        return evaluator, windows.EvenSample(self.validation, examples), longest


def measure(run: BenchmarkRun, results: Results, steps: int, cache_build: bool) -> None:
    """Measures everything except start-up.

    Args:
        run: before its first step.
        results: receives the measurements.
        steps: train steps of a window, 0 = chosen by time.
        cache_build: also build a token cache, if TensorFlow is installed.
    """
    announce("train steps, packed and unpacked")
    train(run, results, steps)
    announce("label decode")
    decode(run, results)
    announce("pipeline")
    pipeline(run, results)
    memory(results)
    # Last, because TensorFlow does not release its memory.
    if cache_build and has_tensorflow():
        announce("token cache build")
        build_cache(run, results)
    elif cache_build:
        results.left_out.append("token cache build (TensorFlow and SeqIO are not installed)")


def train(run: BenchmarkRun, results: Results, steps: int) -> None:
    """Packed and unpacked train steps in alternation; `steps` a window, 0 = chosen by time."""
    loops = {}
    slowest = 0.0
    for mode in (PACKED, UNPACKED):
        loops[mode] = run.loop(mode)
        first = loops[mode].window(1).seconds
        results.add(f"first step, {mode}", "s", [first], "compiles")
        slowest = max(slowest, loops[mode].window(1).seconds)
    count = steps or windows.steps_for(slowest)
    contestants = {mode: functools.partial(loop.window, count) for mode, loop in loops.items()}
    turns = take_turns(contestants, run.turns)
    for mode, timed in turns.items():
        _add_train_windows(results, mode, timed)
    packed, unpacked = ([window.rate("pairs") for window in turns[mode]] for mode in loops)
    results.add("train, packed over unpacked", "times", ratio(packed, unpacked), "paired")


def _add_train_windows(results: Results, mode: str, timed: Sequence[Window]) -> None:
    """Rates, parts of a step's time and fill of one mode."""
    remark = f"{timed[0].amounts['steps']:.0f} steps a window"
    for name in ("pairs", "tokens"):
        rates = [window.rate(name) for window in timed]
        results.add(f"train, {mode}", f"{name}/s", rates, remark)
    teraflops = [window.rate("flops") / 1e12 for window in timed]
    results.add(f"train, {mode}", "TFLOP/s", teraflops, "of the model")
    for part, remark in (
        ("wait", "for a batch"),
        ("place", "host to device"),
        ("step", "dispatch and device"),
    ):
        times = [1e3 * window.amounts[part] / window.amounts["steps"] for window in timed]
        results.add(f"step time, {mode}: {part}", "ms", times, remark)
    for name in timed[0].amounts:
        if name.startswith("fill "):
            fills = [window.amounts[name] for window in timed]
            results.add(f"fill, {mode}: {name.removeprefix('fill ')}", "of slots", fills)


def decode(run: BenchmarkRun, results: Results) -> None:
    """Label predictions, as in an evaluation."""
    evaluator, sample, length = run.label_evaluation()

    def predict() -> int:
        return len(evaluator.predict(run.state.params, sample))

    predict()
    timed = [windows.timed(predict, "examples") for _ in range(run.turns)]
    remark = f"{evaluator.config.mode}, {len(sample)} validation examples, {length} tokens each"
    rates = [window.rate("examples") for window in timed]
    results.add("label decode", "examples/s", rates, remark)


def pipeline(run: BenchmarkRun, results: Results) -> None:
    """Packed host batches in one thread on one core, without a device."""
    batches = train_iterator(
        run.cache,
        dataclasses.replace(run.config.pipeline, pack=True, prefetch=0),
        run.shape(PACKED),
        run.config.streams,
        process_index=0,
        process_count=1,
    )
    with windows.one_core() as pinned:
        windows.pipeline_window(batches, _PIPELINE_SECONDS / 2)
        timed = [windows.pipeline_window(batches, _PIPELINE_SECONDS) for _ in range(run.turns)]
    batches.close()
    rates = [window.rate("pairs") for window in timed]
    results.add("pipeline alone", "pairs/s", rates, "1 thread on 1 core" if pinned else "1 thread")
    by_cpu = [window.amounts["pairs"] / window.amounts["cpu"] for window in timed]
    results.add("pipeline alone", "pairs/CPU s", by_cpu, "CPU of all threads")


def build_cache(run: BenchmarkRun, results: Results) -> None:
    """Token caches built into temporary folders; imports TensorFlow."""
    data = run.config.data
    if len(run.cache) > _BUILD_EXAMPLES:
        fraction = data.fraction * _BUILD_EXAMPLES / len(run.cache)
        data = dataclasses.replace(data, fraction=fraction)

    def build() -> int:
        with tempfile.TemporaryDirectory() as folder:
            tokens = dataclasses.replace(run.config.tokens, cache_dir=folder)
            return len(open_or_build(data, tokens, "train"))

    first = windows.timed(build, "examples")
    results.add("token cache, first build", "s", [first.seconds], "with imports")
    timed = [windows.timed(build, "examples") for _ in range(run.turns)]
    remark = f"train split, {first.amounts['examples']:,.0f} examples"
    rates = [window.rate("examples") for window in timed]
    results.add("token cache build", "examples/s", rates, remark)


def memory(results: Results) -> None:
    """Peak memory of this process."""
    results.add("peak host memory", "MiB", [machine.peak_host_bytes() / _MIB])
    device = machine.peak_device_bytes()
    results.add("peak device memory", "MiB", None if device is None else [device / _MIB])


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings that the figures depend on."""
    return {
        "dataset": config.data.dataset,
        "method": config.method,
        "model": load.model_name(config.model),
        "dtype": config.model.dtype,
        "batch_size": config.pipeline.batch_size,
        "microbatches": config.microbatches,
        "scan_layers": config.model.scan_layers,
        "remat": config.model.remat,
        "dropout_rate": config.model.dropout_rate,
        "prng_impl": config.prng_impl,
    }


def has_tensorflow() -> bool:
    """Whether this machine can build a token cache; imports nothing."""
    return all(importlib.util.find_spec(name) for name in ("tensorflow", "seqio"))
