"""Ours and the released recipe in turns: what `launch.bench --against=recipe` measures."""

from __future__ import annotations

import collections
import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from stepdistill_jax.bench import benchmark, machine, windows
from stepdistill_jax.bench.benchmark import PACKED, UNPACKED, Benchmark
from stepdistill_jax.bench.measure import Measurement, Window, ratio, spread, take_turns
from stepdistill_jax.bench.official_recipe import Batch, OfficialRecipe, Pair, RecipeConfig
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import EXAMPLE_INDEX, STREAMS, InputError

OURS, RECIPE = "ours", "recipe"
_PAIRED = "paired"
# JAX's name of a device -> PyTorch's.
_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def make_recipe(parts: Benchmark) -> OfficialRecipe:
    """The recipe of the same run, with the parameters that ours has now.

    Raises:
        InputError: the recipe has no such run, or PyTorch is not installed.
    """
    config = parts.config
    if config.streams != STREAMS:
        raise InputError(
            f"METHOD={config.method!r}: the released recipe trains on labels and rationales; to "
            "compare with it, set METHOD='step_by_step'"
        )
    if config.objective.alpha_end is not None:
        raise InputError(
            f"ALPHA_END={config.objective.alpha_end}: the released recipe weighs its losses alike "
            "in every step; to compare with it, set ALPHA_END=None"
        )
    if config.eval.mode != "decode":
        raise InputError(
            f"EVAL_MODE={config.eval.mode!r}: the released recipe writes labels out; to compare "
            "with it, set EVAL_MODE='decode'"
        )
    backend = jax.default_backend()
    if parts.mesh.size > 1 or backend not in _DEVICES:
        raise InputError(
            f"the released recipe runs on one CPU or GPU, this run on {parts.mesh.size} devices of "
            f"platform {backend!r}; show JAX one of them (CUDA_VISIBLE_DEVICES, JAX_PLATFORMS=cpu)"
        )
    return OfficialRecipe(
        recipe_config(config),
        jax.device_get(parts.state.params),
        _DEVICES[backend],
        threads=machine.cores(),
    )


def recipe_config(config: RunConfig) -> RecipeConfig:
    """What the recipe takes of a run."""
    return RecipeConfig(
        config.model, config.objective, config.optimizer, config.train_steps, config.seed
    )


def pairs_of(parts: Benchmark, batch: dict[str, np.ndarray]) -> list[Pair]:
    """The pairs of one of our host batches."""
    index = batch[EXAMPLE_INDEX]
    return [parts.cache[int(position) - 1] for position in index[index > 0]]


def run_mode(config: RunConfig) -> str:
    """Whether the run packs."""
    return PACKED if config.pipeline.pack else UNPACKED


def measure(parts: Benchmark, steps: int) -> list[Measurement]:
    """Label evaluation and train steps, and the memory of both together; of a GPU, JAX's share.

    Args:
        parts: ours, before its first step.
        steps: train steps of a window, 0 = chosen by time.
    """
    recipe = make_recipe(parts)
    benchmark.say("label evaluation, in turns")
    found = label_evaluation(parts, recipe)
    benchmark.say("train steps, in turns")
    return [*found, *train(parts, recipe, steps), *benchmark.memory()]


def train(parts: Benchmark, recipe: OfficialRecipe, steps: int) -> list[Measurement]:
    """Train steps in turns; both take the same pairs in the same order, BATCH_SIZE a step.

    Ours fetches, places and trains as in a run. The recipe's batches lie ready: its loader costs
    it nothing here. On a GPU it has also trained on each of them once before.

    Args:
        parts: ours.
        recipe: theirs.
        steps: of a window, 0 = chosen by time.
    """
    ours = parts.loop(run_mode(parts.config))
    batches = parts.batches(run_mode(parts.config))
    pairs = itertools.chain.from_iterable(pairs_of(parts, batch) for batch in batches)
    theirs = _RecipeLoop(recipe, pairs, parts.config.pipeline.batch_size)
    theirs.prepare(2)
    rehearse = theirs.rehearse if jax.default_backend() == "gpu" else lambda: None
    contestants = {OURS: ours.window, RECIPE: theirs.window}
    found = []
    slowest = 0.0
    for name, window in contestants.items():
        first = window(1).seconds
        if name == RECIPE:
            rehearse()
        slowest = max(slowest, window(1).seconds)
        found.append(Measurement(f"first step, {name}", "s", spread([first])))
    count = steps or windows.steps_for(slowest)
    theirs.prepare(count * parts.turns)
    rehearse()
    batches.close()
    taken = take_turns(
        {n: functools.partial(w, count) for n, w in contestants.items()}, parts.turns
    )
    for name, turns in taken.items():
        fill = sum(t.amounts["tokens"] for t in turns) / sum(t.amounts["slots"] for t in turns)
        remark = f"{count} steps a window, {fill:.0%} of slots hold tokens"
        for amount in ("pairs", "tokens"):
            rates = spread([turn.rate(amount) for turn in turns])
            found.append(Measurement(f"train, {name}", f"{amount}/s", rates, remark))
    found.append(
        Measurement("train, ours over recipe", "times", _quotient(taken, "pairs"), _PAIRED)
    )
    return found


def label_evaluation(parts: Benchmark, recipe: OfficialRecipe) -> list[Measurement]:
    """Labels of the same validation rows in turns, from rows of tokens to texts.

    To be called before either has trained: then both have the same parameters.
    """
    evaluator, sample = parts.label_evaluation()
    size, length = evaluator.config.batch_size, evaluator.decode_length
    rows = [sample[index]["label_inputs"] for index in range(len(sample))]

    def ours() -> list[str]:
        return [p.text for p in evaluator.predict(parts.state.params, sample)]

    def theirs() -> list[str]:
        written = [
            recipe.generate(rows[start : start + size], length)
            for start in range(0, len(rows), size)
        ]
        return [evaluator.vocabulary.decode(ids) for batch in written for ids in batch]

    same = sum(a == b for a, b in zip(ours(), theirs(), strict=True))
    taken = take_turns(
        {
            OURS: lambda: windows.timed(lambda: len(ours()), "examples"),
            RECIPE: lambda: windows.timed(lambda: len(theirs()), "examples"),
        },
        parts.turns,
    )
    remark = f"{len(rows)} validation rows, {size} at once, at most {length} tokens each"
    found = [
        Measurement(
            f"label evaluation, {name}",
            "examples/s",
            spread([turn.rate("examples") for turn in turns]),
            remark,
        )
        for name, turns in taken.items()
    ]
    remark = f"{_PAIRED}; {same} of {len(rows)} labels the same"
    quotient = _quotient(taken, "examples")
    return [*found, Measurement("label evaluation, ours over recipe", "times", quotient, remark)]


def _quotient(taken: dict[str, list[Window]], amount: str) -> Any:
    return ratio(*([turn.rate(amount) for turn in taken[name]] for name in (OURS, RECIPE)))


class _RecipeLoop:
    """Timed train steps of the recipe on batches that lie ready."""

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
        """Takes the prepared steps once, untimed: PyTorch is slow with every new shape on a GPU.

        Its batches are padded to their own longest rows, so shapes are many; a long run has seen
        most of them.
        """
        for batch in self._ready:
            _read(self._recipe.step(batch))

    def window(self, steps: int) -> Window:
        """Times `steps` steps, reading the metrics of the one before as the train loop does."""
        batches = [self._ready.popleft() for _ in range(steps)]
        pending = None
        started = time.perf_counter()
        for batch in batches:
            metrics = self._recipe.step(batch)
            if pending is not None:
                _read(pending)
            pending = metrics
        assert pending is not None
        _read(pending)
        seconds = time.perf_counter() - started
        # Ours and the recipe need not fit into memory together, but for their parameters.
        machine.return_free_memory()
        tokens = slots = 0
        for batch in batches:
            for stream in batch.values():
                for held in (stream["attention_mask"] > 0, stream["labels"] >= 0):
                    tokens += int(held.sum())
                    slots += held.numel()
        pairs = steps * self._batch_size
        return Window(seconds, {"pairs": pairs, "tokens": tokens, "slots": slots})


def _read(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
