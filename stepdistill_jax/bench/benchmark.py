"""What `launch.bench` measures of the run that a `RunConfig` describes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np

from stepdistill_jax.bench import machine, windows
from stepdistill_jax.bench.measure import Measurement, Window, ratio, spread, take_turns
from stepdistill_jax.bench.startup import seconds_to_first_step, train_command
from stepdistill_jax.bench.windows import TrainLoop
from stepdistill_jax.data.packing import RowShape, row_shape
from stepdistill_jax.data.pipeline import SplitCache, train_iterator
from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.eval.build import make_evaluator
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.parallel.place import data_shard, place_batch
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.spec import InputError
from stepdistill_jax.train.build import build_step
from stepdistill_jax.train.state import create_state

PACKED, UNPACKED = "packed", "unpacked"

# Batches of validation rows in a window of decoding.
_DECODE_BATCHES = 4
_PIPELINE_SECONDS = 1.0
# A larger training split is cut to about as many rows before its cache is built and timed.
_BUILD_ROWS = 20_000
# Start-ups take long: no more of them than this, whatever the number of windows.
_STARTS = 3
_MIB = 2**20


class Benchmark:
    """The parts of a run from scratch, built once and measured one after the other.

    Attributes:
        shapes: of a train batch, packed and unpacked.
    """

    def __init__(self, config: RunConfig, turns: int) -> None:
        """Opens the token cache and makes the state; compiles nothing of the step yet.

        Raises:
            InputError: METHOD trains nothing, or data, vocabulary or mesh do not fit the
                configuration.
        """
        if not config.streams:
            raise InputError(
                f"METHOD={config.method!r} trains nothing that could be measured; set a METHOD "
                "that does, as step_by_step"
            )
        self.config = config
        self.turns = turns
        self.mesh = make_mesh(config.mesh)
        self.cache: SplitCache = open_split(config, "train")
        self.validation = open_split(config, "validation")
        optimizer, self._train_step = build_step(config, self.mesh)
        self.state = create_state(config.model, optimizer, self.mesh, config.seed)
        self.shapes: dict[str, RowShape] = {}

    def train(self, steps: int) -> list[Measurement]:
        """Packed and unpacked train steps taking turns; `steps` a window, 0 = chosen by time."""
        found = []
        loops = {}
        slowest = 0.0
        for mode in (PACKED, UNPACKED):
            loops[mode] = self.loop(mode)
            first = loops[mode].window(1).seconds
            seconds = loops[mode].window(1).seconds
            slowest = max(slowest, seconds)
            found.append(
                Measurement(
                    f"first step, {mode}",
                    "s",
                    spread([first]),
                    "compiles",
                )
            )
        count = steps or windows.steps_for(slowest)
        contestants = {mode: functools.partial(loop.window, count) for mode, loop in loops.items()}
        taken = take_turns(contestants, self.turns)
        for mode, turns in taken.items():
            found += train_measurements(mode, turns)
        quotient = ratio(*([turn.rate("pairs") for turn in taken[m]] for m in (PACKED, UNPACKED)))
        found.append(Measurement("train, packed over unpacked", "times", quotient, "paired"))
        return found

    def decode(self) -> list[Measurement]:
        """Predictions of the label stream, as in an evaluation."""
        evaluator, sample = self.label_evaluation()

        def predict() -> int:
            return len(evaluator.predict(self.state.params, sample))

        predict()
        taken = [windows.timed(predict, "examples") for _ in range(self.turns)]
        remark = (
            f"{evaluator.config.mode}, {len(sample)} validation rows, "
            f"{evaluator.decode_length} tokens each"
        )
        rates = spread([window.rate("examples") for window in taken])
        return [Measurement("label decode", "examples/s", rates, remark)]

    def label_evaluation(self) -> tuple[Evaluator, windows.EvenSample]:
        """An evaluator that writes as much as the longest label needs, and rows for it."""
        evaluator = make_evaluator(self.config, self.mesh)
        longest = int(self.validation.lengths["label_targets"].max())
        # Fresh parameters never write EOS; trained ones end with the longest label of a batch.
        evaluator.decode_length = min(evaluator.decode_length, longest)
        rows = _DECODE_BATCHES * self.config.eval.batch_size
        sample = windows.EvenSample(self.validation, rows)
        return evaluator, sample

    def pipeline(self) -> list[Measurement]:
        """Packed host batches in one thread on one core, no device."""
        alone = dataclasses.replace(self.config.pipeline, pack=True, prefetch=0)
        shape = self._shape(PACKED)
        batches = train_iterator(
            self.cache, alone, shape, self.config.streams, process_index=0, process_count=1
        )
        with windows.one_core() as held:
            windows.pipeline_window(batches, _PIPELINE_SECONDS / 2)
            taken = [windows.pipeline_window(batches, _PIPELINE_SECONDS) for _ in range(self.turns)]
        batches.close()
        where = "1 thread on 1 core" if held else "1 thread"
        by_cpu = [window.amounts["pairs"] / window.amounts["cpu"] for window in taken]
        return [
            Measurement(
                "pipeline alone", "pairs/s", spread([w.rate("pairs") for w in taken]), where
            ),
            Measurement("pipeline alone", "pairs/CPU s", spread(by_cpu), "CPU of all threads"),
        ]

    def build(self) -> list[Measurement]:
        """Token caches built into throw-away folders; imports TensorFlow."""
        rows = len(self.cache)
        data = self.config.data
        if rows > _BUILD_ROWS:
            data = dataclasses.replace(data, fraction=data.fraction * _BUILD_ROWS / rows)

        def once() -> int:
            with tempfile.TemporaryDirectory() as folder:
                tokens = dataclasses.replace(self.config.tokens, cache_dir=folder)
                return len(open_or_build(data, tokens, "train"))

        first = windows.timed(once, "examples")
        taken = [windows.timed(once, "examples") for _ in range(self.turns)]
        remark = f"train split, {first.amounts['examples']:,.0f} rows"
        return [
            Measurement("token cache, first build", "s", spread([first.seconds]), "with imports"),
            Measurement(
                "token cache build",
                "examples/s",
                spread([w.rate("examples") for w in taken]),
                remark,
            ),
        ]

    def _shape(self, mode: str) -> RowShape:
        if mode not in self.shapes:
            pipeline = dataclasses.replace(self.config.pipeline, pack=mode == PACKED)
            self.shapes[mode] = row_shape(self.cache.lengths, pipeline, self.config.streams)
        return self.shapes[mode]

    def batches(self, mode: str) -> grain.DatasetIterator[dict[str, np.ndarray]]:
        """This process's part of the train batches, from the first one of the run on."""
        shard, shards = data_shard(self.mesh)
        return train_iterator(
            self.cache,
            dataclasses.replace(self.config.pipeline, pack=mode == PACKED),
            self._shape(mode),
            self.config.streams,
            process_index=shard,
            process_count=shards,
        )

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A host batch on the mesh."""
        return place_batch(batch, self.mesh, self.config.microbatches)

    def loop(self, mode: str) -> TrainLoop:
        """The train loop, from the first batch of the run and the present state on."""
        shape = self._shape(mode)
        return TrainLoop(
            batches=self.batches(mode),
            place=self.place,
            step=self.step,
            shards=data_shard(self.mesh)[1],
            flops=train_flops(self.config.model, shape.rows, shape.inputs, shape.targets),
        )

    def step(self, batch: Any) -> Any:
        """One update of `state`; its metrics, still on the device."""
        self.state, metrics = self._train_step(self.state, batch)
        return metrics


def measure(
    parts: Benchmark, steps: int, cache_build: bool, left_out: list[str]
) -> list[Measurement]:
    """Everything but start-up.

    Args:
        parts: before its first step.
        steps: train steps of a window, 0 = chosen by time.
        cache_build: also build a token cache; `left_out` is told where that cannot be.
        left_out: words for what was not measured.
    """
    say("train steps, packed and unpacked")
    found = parts.train(steps)
    say("label decode")
    found += parts.decode()
    say("pipeline")
    found += parts.pipeline()
    found += memory()
    # Last: TensorFlow, once imported, keeps its memory.
    if cache_build and has_tensorflow():
        say("token cache build")
        found += parts.build()
    elif cache_build:
        left_out.append("token cache build (TensorFlow and SeqIO are not installed)")
    return found


def train_measurements(mode: str, turns: list[Window]) -> list[Measurement]:
    """Rates, parts of a step's time and fill of the windows of one mode."""
    steps = f"{turns[0].amounts['steps']:.0f} steps a window"
    found = [
        Measurement(
            f"train, {mode}", f"{name}/s", spread([turn.rate(name) for turn in turns]), steps
        )
        for name in ("pairs", "tokens")
    ]
    teraflops = spread([turn.rate("flops") / 1e12 for turn in turns])
    found.append(Measurement(f"train, {mode}", "TFLOP/s", teraflops, "of the model"))
    for part, remark in (
        ("wait", "for a batch"),
        ("place", "host to device"),
        ("step", "dispatch and device"),
    ):
        parts = [1e3 * turn.amounts[part] / turn.amounts["steps"] for turn in turns]
        found.append(Measurement(f"step time, {mode}: {part}", "ms", spread(parts), remark))
    for name in turns[0].amounts:
        if name.startswith("fill "):
            fills = spread([turn.amounts[name] for turn in turns])
            found.append(
                Measurement(f"fill, {mode}: {name.removeprefix('fill ')}", "of slots", fills)
            )
    return found


def settings(config: RunConfig) -> dict[str, Any]:
    """What the numbers depend on, for their reader."""
    return {
        "dataset": config.data.dataset,
        "method": config.method,
        "model": configs.model_name(config.model),
        "dtype": config.model.dtype,
        "batch_size": config.pipeline.batch_size,
        "microbatches": config.microbatches,
        "scan_layers": config.model.scan_layers,
        "remat": config.model.remat,
        "dropout_rate": config.model.dropout_rate,
        "prng_impl": config.prng_impl,
    }


def memory() -> list[Measurement]:
    """Peaks of this process until now."""
    device = machine.peak_device_bytes()
    return [
        Measurement("peak host memory", "MiB", spread([machine.peak_host_bytes() / _MIB])),
        Measurement(
            "peak device memory", "MiB", None if device is None else spread([device / _MIB])
        ),
    ]


def has_tensorflow() -> bool:
    """Whether a token cache can be built here; imports nothing."""
    return all(importlib.util.find_spec(name) for name in ("tensorflow", "seqio"))


def say(what: str) -> None:
    """Tells whoever waits, apart from the results."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def start_up(
    gin_files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str],
    turns: int,
    left_out: list[str],
) -> list[Measurement]:
    """Cold and warm start-ups of `launch.train`, in turns; before this process takes a device.

    Cold: no token cache and no stored program. Warm: both as the cold start left them. Without
    TensorFlow there is no cold one: then `left_out` is told.
    """
    if not has_tensorflow():
        left_out.append("start-up (a cold one needs TensorFlow and SeqIO, which are not installed)")
        return []
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(min(turns, _STARTS)):
        with tempfile.TemporaryDirectory() as folder:
            for kind, taken in seconds.items():
                model_dir = pathlib.Path(folder) / kind
                command = train_command(
                    gin_files,
                    overrides,
                    search_paths,
                    model_dir,
                    pathlib.Path(folder) / "caches",
                )
                taken.append(seconds_to_first_step(command, model_dir))
    return [
        Measurement(f"start-up, {kind}", "s", spread(taken), "command to the end of step 1")
        for kind, taken in seconds.items()
    ]
