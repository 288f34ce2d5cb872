"""The speed of this package and of the released recipe, measured in alternation."""

from __future__ import annotations

import collections
import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stepdistill_jax.bench import machine, run_speed, windows
from stepdistill_jax.bench.measurement import Results, Spread, Window, announce, ratio, take_turns
from stepdistill_jax.bench.official_recipe import Batch, OfficialRecipe, Pair
from stepdistill_jax.bench.run_speed import BenchmarkRun
from stepdistill_jax.spec import EXAMPLE_INDEX, InputError

OURS, RECIPE = "ours", "recipe"
_PAIRED = "paired"
# JAX's name of a platform -> PyTorch's.
_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def make_recipe(run: BenchmarkRun) -> OfficialRecipe:
    """The recipe for the same run, with the current parameters of `run`.

    Raises:
        InputError: the recipe does not support the run or its devices, or PyTorch is missing.
    """
    platform = jax.default_backend()
    if run.mesh.size > 1 or platform not in _DEVICES:
        raise InputError(
            f"--against=recipe: unsupported devices: got {run.mesh.size} of platform {platform!r}, "
            "expected one CPU or GPU. Set CUDA_VISIBLE_DEVICES=0 or JAX_PLATFORMS=cpu."
        )
    params = jax.device_get(run.state.params)
    return OfficialRecipe(run.config, params, _DEVICES[platform], threads=machine.cores())


def pairs_of(run: BenchmarkRun, batch: dict[str, np.ndarray]) -> list[Pair]:
    """The pairs of one of our host batches."""
    index = batch[EXAMPLE_INDEX]
    return [run.cache[int(position) - 1] for position in index[index > 0]]


def measure(run: BenchmarkRun, results: Results, steps: int) -> None:
    """Label evaluation, train steps, and memory of both together (on a GPU, JAX's part only).

    Args:
        run: ours, before its first step.
        results: receives the measurements.
        steps: train steps of a window, 0 = chosen by time.
    """
    recipe = make_recipe(run)
    announce("label evaluation, in turns")
    label_evaluation(run, recipe, results)
    announce("train steps, in turns")
    train(run, recipe, results, steps)
    run_speed.memory(results)


def train(run: BenchmarkRun, recipe: OfficialRecipe, results: Results, steps: int) -> None:
    """Train steps in turns; both train on the same pairs in the same order, BATCH_SIZE a step.

    Ours loads, places and trains as in a run. The recipe's batches are prepared in advance and its
    loader is not timed. On a GPU it also trains on every batch once before it is timed.

    Args:
        run: ours.
        recipe: with the same initial parameters.
        results: receives the measurements.
        steps: of a window, 0 = chosen by time.
    """
    ours = run.loop(run.mode)
    batches = run.batches(run.mode)
    pairs = itertools.chain.from_iterable(pairs_of(run, batch) for batch in batches)
    theirs = _RecipeLoop(recipe, pairs, run.config.pipeline.batch_size)
    theirs.prepare(2)
    rehearse = theirs.rehearse if jax.default_backend() == "gpu" else lambda: None
    contestants = {OURS: ours.window, RECIPE: theirs.window}
    slowest = 0.0
    for name, window in contestants.items():
        results.add(f"first step, {name}", "s", [window(1).seconds])
        if name == RECIPE:
            rehearse()
        slowest = max(slowest, window(1).seconds)
    count = steps or windows.steps_for(slowest)
    theirs.prepare(count * run.turns)
    rehearse()
    batches.close()
    turns = take_turns(
        {name: functools.partial(window, count) for name, window in contestants.items()}, run.turns
    )
    for name, timed in turns.items():
        tokens, slots = (sum(w.amounts[amount] for w in timed) for amount in ("tokens", "slots"))
        remark = f"{count} steps a window, {tokens / slots:.0%} of slots hold tokens"
        for amount in ("pairs", "tokens"):
            rates = [window.rate(amount) for window in timed]
            results.add(f"train, {name}", f"{amount}/s", rates, remark)
    results.add("train, ours over recipe", "times", _ratio(turns, "pairs"), _PAIRED)


def label_evaluation(run: BenchmarkRun, recipe: OfficialRecipe, results: Results) -> None:
    """Labels of the same validation examples in turns, from tokens to texts.

    Call it before either is trained, while both have the same parameters.
    """
    evaluator, sample, length = run.label_evaluation()
    size = evaluator.config.batch_size
    inputs = [sample[index]["label_inputs"] for index in range(len(sample))]

    def ours() -> list[str]:
        return [p.text for p in evaluator.predict(run.state.params, sample)]

    def theirs() -> list[str]:
        outputs = [
            recipe.generate(inputs[start : start + size], length)
            for start in range(0, len(inputs), size)
        ]
        return [evaluator.vocabulary.decode(ids) for batch in outputs for ids in batch]

    same = sum(a == b for a, b in zip(ours(), theirs(), strict=True))
    turns = take_turns(
        {
            OURS: lambda: windows.timed(lambda: len(ours()), "examples"),
            RECIPE: lambda: windows.timed(lambda: len(theirs()), "examples"),
        },
        run.turns,
    )
    remark = f"{len(inputs)} validation examples, {size} at once, at most {length} tokens each"
    for name, timed in turns.items():
        rates = [window.rate("examples") for window in timed]
        results.add(f"label evaluation, {name}", "examples/s", rates, remark)
    remark = f"{_PAIRED}; {same} of {len(inputs)} labels equal"
    quotients = _ratio(turns, "examples")
    results.add("label evaluation, ours over recipe", "times", quotients, remark)


def _ratio(turns: Mapping[str, Sequence[Window]], amount: str) -> Spread:
    return ratio(*([window.rate(amount) for window in turns[name]] for name in (OURS, RECIPE)))


class _RecipeLoop:
    """Timed train steps of the recipe on prepared batches."""

    def __init__(self, recipe: OfficialRecipe, pairs: Iterator[Pair], batch_size: int) -> None:
        self._recipe = recipe
        self._pairs = pairs
        self._batch_size = batch_size
        self._ready: collections.deque[Batch] = collections.deque()

    def prepare(self, steps: int) -> None:
        """Collates the batches of the next steps."""
        for _ in range(steps):
            pairs = list(itertools.islice(self._pairs, self._batch_size))
            self._ready.append(self._recipe.collate(pairs))

    def rehearse(self) -> None:
        """Trains on the prepared batches once, untimed: on a GPU, new shapes are slow in PyTorch.

        Each batch is padded to its longest pair, so there are many shapes. A long run has met most
        of them.
        """
        for batch in self._ready:
            _read(self._recipe.step(batch))

    def window(self, steps: int) -> Window:
        """Times `steps` steps; like the train loop, reads the metrics of the step before."""
        batches = [self._ready.popleft() for _ in range(steps)]
        pending: dict[str, Any] = {}
        started = time.perf_counter()
        for batch in batches:
            metrics = self._recipe.step(batch)
            _read(pending)
            pending = metrics
        _read(pending)
        seconds = time.perf_counter() - started
        # Both trainers may not fit into memory at the same time.
        machine.return_free_memory()
        tokens = slots = 0
        for batch in batches:
            for stream in batch.values():
                for filled in (stream["attention_mask"] > 0, stream["labels"] >= 0):
                    tokens += int(filled.sum())
                    slots += filled.numel()
        pairs = steps * self._batch_size
        return Window(seconds, {"pairs": pairs, "tokens": tokens, "slots": slots})


def _read(metrics: dict[str, Any]) -> None:
    """Waits for the step that computes `metrics`."""
    for value in metrics.values():
        float(value)
