"""Timed windows of parts of a run: train steps, the input pipeline, any call."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from stepdistill_jax.bench.measurement import Window
from stepdistill_jax.data.pipeline import PairSubset
from stepdistill_jax.spec import EXAMPLE_INDEX

# Duration and minimum steps of a window of train steps.
TRAIN_SECONDS = 2.0
MIN_STEPS = 2

Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class TrainLoop:
    """The train loop without reports: load, place, step, read the metrics of the step before.

    Attributes:
        batches: endless host batches.
        place: host batch -> device arrays.
        step: device batch -> metrics; updates its own state.
        shards: parts of a global batch; `batches` yields one of them.
        flops: model FLOPs of a step.
    """

    batches: Iterator[Batch]
    place: Callable[[Batch], Any]
    step: Callable[[Any], Any]
    shards: int
    flops: float

    def window(self, steps: int) -> Window:
        """Times `steps` steps, including the end of the last one.

        Returns:
            Amounts of all processes: ``steps``, ``pairs``, ``tokens``, ``slots`` and ``flops``;
            seconds of the three parts of the loop: ``wait`` (for a batch), ``place`` (host to
            device) and ``step`` (dispatch and device); and ``fill FEATURE``, tokens over slots.
        """
        wait = place = pairs = 0.0
        tokens: dict[str, int] = {}
        slots: dict[str, int] = {}
        pending = None
        started = time.perf_counter()
        for _ in range(steps):
            requested = time.perf_counter()
            batch = next(self.batches)
            fetched = time.perf_counter()
            device_batch = self.place(batch)
            placed = time.perf_counter()
            wait += fetched - requested
            place += placed - fetched
            metrics = self.step(device_batch)
            if pending is not None:
                jax.device_get(pending)
            pending = metrics
            pairs += np.count_nonzero(batch[EXAMPLE_INDEX])
            _count_fill(batch, tokens, slots)
        jax.device_get(pending)
        seconds = time.perf_counter() - started
        return Window(
            seconds,
            {
                "steps": steps,
                "pairs": pairs * self.shards,
                "tokens": sum(tokens.values()) * self.shards,
                "slots": sum(slots.values()) * self.shards,
                "flops": self.flops * steps,
                "wait": wait,
                "place": place,
                "step": seconds - wait - place,
                **{f"fill {name}": tokens[name] / slots[name] for name in tokens},
            },
        )


def steps_for(seconds_a_step: float) -> int:
    """Number of steps that take about `TRAIN_SECONDS`."""
    return max(MIN_STEPS, math.ceil(TRAIN_SECONDS / seconds_a_step))


def pipeline_window(batches: Iterator[Batch], seconds: float) -> Window:
    """Reads batches for at least `seconds` and discards them.

    Returns:
        Amounts: ``pairs``, and ``cpu``, CPU seconds of the whole process.
    """
    pairs = 0
    cpu = time.process_time()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        pairs += int(np.count_nonzero(next(batches)[EXAMPLE_INDEX]))
    return Window(elapsed, {"pairs": pairs, "cpu": time.process_time() - cpu})


def timed(work: Callable[[], int], name: str) -> Window:
    """Times a call that returns the amount of `name` that it processed."""
    started = time.perf_counter()
    amount = work()
    return Window(time.perf_counter() - started, {name: amount})


@contextlib.contextmanager
def one_core() -> Iterator[bool]:
    """Pins the calling thread to one core; yields False if the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, allowed)


class EvenSample(PairSubset):
    """`rows` examples of a token cache, spread evenly over it."""

    def __init__(self, cache: Any, rows: int) -> None:
        super().__init__(cache, np.linspace(0, len(cache) - 1, min(rows, len(cache))).astype(int))


def _count_fill(
    batch: Mapping[str, np.ndarray], tokens: dict[str, int], slots: dict[str, int]
) -> None:
    suffix = "_segment_ids"
    for key, values in batch.items():
        if key.endswith(suffix):
            name = key.removesuffix(suffix)
            tokens[name] = tokens.get(name, 0) + int(np.count_nonzero(values))
            slots[name] = slots.get(name, 0) + values.size
