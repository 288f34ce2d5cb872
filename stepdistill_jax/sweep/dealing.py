"""Which worker of several does what: a sweep's runs, or anything of known sizes."""

from __future__ import annotations

from collections.abc import Sequence

from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import RATIONALE, InputError
from stepdistill_jax.sweep.matrix import PlannedRun


def deal(runs: Sequence[PlannedRun], worker: int, workers: int) -> list[PlannedRun]:
    """The runs of one worker of several, as `share` deals them.

    Their sizes are taken from the configurations alone, so that machines agree on them whatever
    data they hold.

    Args:
        runs: the whole matrix's.
        worker: 0 to workers - 1.
        workers: how many.

    Raises:
        InputError: there is no such worker.
    """
    mine = share([nominal_flops(run.config) for run in runs], worker, workers, "SWEEP")
    return [run for index, run in enumerate(runs) if index in mine]


def share(sizes: Sequence[float], worker: int, workers: int, prefix: str) -> set[int]:
    """Positions of one worker of several: every position is in exactly one share.

    The largest are dealt out first, each to the worker that has least so far.

    Args:
        sizes: of what is dealt out, none negative.
        worker: 0 to workers - 1.
        workers: how many.
        prefix: of the variables that may name them, for the error.

    Raises:
        InputError: there is no such worker.
    """
    if not 0 <= worker < workers:
        raise InputError(
            f"worker {worker} of {workers}: expected 0 to {workers - 1}; set --worker and "
            f"--workers, or {prefix}_WORKER and {prefix}_WORKERS in the environment"
        )
    loads = [0.0] * workers
    mine = set()
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        chosen = min(range(workers), key=lambda w: (loads[w], w))
        # Equal ones too are spread evenly: none counts as nothing.
        loads[chosen] += 1.0 + sizes[index]
        if chosen == worker:
            mine.add(index)
    return mine


def nominal_flops(config: RunConfig) -> float:
    """Model FLOPs of a run were every text as long as it may be: an order of runs by size."""
    tokens = config.tokens
    longest = dict.fromkeys(config.streams, tokens.max_label_length)
    if RATIONALE in longest:
        longest[RATIONALE] = tokens.max_rationale_length
    rows = config.pipeline.batch_size
    return config.train_steps * train_flops(config.model, rows, tokens.max_input_length, longest)
