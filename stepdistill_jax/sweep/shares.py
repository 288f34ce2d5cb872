"""Each worker's share of the runs of a sweep, or of any items with sizes."""

from __future__ import annotations

from collections.abc import Sequence

from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import RATIONALE
from stepdistill_jax.sweep.matrix import PlannedRun


def share_of_runs(runs: Sequence[PlannedRun], worker: int, workers: int) -> list[PlannedRun]:
    """The runs of one worker, as `share` distributes them.

    Sizes depend only on the configurations, so all machines agree on them, whatever data they
    hold.

    Args:
        runs: the runs of all workers.
        worker: 0 to workers - 1.
    """
    mine = share([nominal_flops(run.config) for run in runs], worker, workers)
    return [run for index, run in enumerate(runs) if index in mine]


def share(sizes: Sequence[float], worker: int, workers: int) -> set[int]:
    """The positions of one worker; every position belongs to exactly one worker.

    The largest items are assigned first, each to the worker with the smallest load so far.

    Args:
        sizes: one an item, none negative.
        worker: 0 to workers - 1.
    """
    loads = [0.0] * workers
    mine = set()
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        chosen = min(range(workers), key=lambda w: (loads[w], w))
        # The 1 spreads items of size 0 evenly too.
        loads[chosen] += 1.0 + sizes[index]
        if chosen == worker:
            mine.add(index)
    return mine


def nominal_flops(config: RunConfig) -> float:
    """Model FLOPs of a run if every text had its maximum length; it orders runs by size."""
    tokens = config.tokens
    longest = dict.fromkeys(config.streams, tokens.max_label_length)
    if RATIONALE in longest:
        longest[RATIONALE] = tokens.max_rationale_length
    rows = config.pipeline.batch_size
    return config.train_steps * train_flops(config.model, rows, tokens.max_input_length, longest)
