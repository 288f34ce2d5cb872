"""Timed windows of the parts of a run: train steps, the input pipeline, decoding."""

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

from stepdistill_jax.bench.measure import Window
from stepdistill_jax.data.pipeline import RowSubset
from stepdistill_jax.spec import EXAMPLE_INDEX

# A window of train steps that is left to choose lasts about as long, and holds a few steps.
TRAIN_SECONDS = 2.0
MIN_STEPS = 2

Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class TrainLoop:
    """The train loop without its reports: fetch, place, step, read the step before.

    Attributes:
        batches: host batches without end.
        place: host batch to device arrays.
        step: device batch to metrics; keeps its state to itself.
        shards: parts of a global batch, of which `batches` yields one.
        flops: model FLOPs of a step.
    """

    batches: Iterator[Batch]
    place: Callable[[Batch], Any]
    step: Callable[[Any], Any]
    shards: int
    flops: float

    def window(self, steps: int) -> Window:
        """Times `steps` steps, the last one's end included.

        Returns:
            Amounts: ``steps``, ``pairs``, ``tokens``, ``slots`` and ``flops`` of all processes;
            seconds of the three parts that the loop's time falls into: ``wait`` for a batch,
            ``place`` (host to device), ``step`` (dispatching steps and waiting for them); and for
            each feature ``fill FEATURE``, tokens over slots.
        """
        wait = place = pairs = 0.0
        tokens: dict[str, int] = {}
        slots: dict[str, int] = {}
        pending = None
        started = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(self.batches)
            fetched = time.perf_counter()
            device_batch = self.place(batch)
            placed = time.perf_counter()
            wait += fetched - asked
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
    """How many steps make a window of about `TRAIN_SECONDS`."""
    return max(MIN_STEPS, math.ceil(TRAIN_SECONDS / seconds_a_step))


def pipeline_window(batches: Iterator[Batch], seconds: float) -> Window:
    """Takes batches for at least `seconds` and does nothing with them.

    Returns:
        Amounts: ``pairs``, and ``cpu``, the whole process's CPU seconds.
    """
    pairs = 0
    cpu = time.process_time()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        pairs += int(np.count_nonzero(next(batches)[EXAMPLE_INDEX]))
    return Window(elapsed, {"pairs": pairs, "cpu": time.process_time() - cpu})


def timed(work: Callable[[], int], name: str) -> Window:
    """Times a call that returns how much it did of what `name` says."""
    started = time.perf_counter()
    amount = work()
    return Window(time.perf_counter() - started, {name: amount})


@contextlib.contextmanager
def one_core() -> Iterator[bool]:
    """Keeps the calling thread on one core, where the system can; says whether it can."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, allowed)


class EvenSample(RowSubset):
    """`rows` rows of a token cache, spread evenly over it."""

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
