"""Which worker of several trains which runs of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.run_config import RunConfig
from stepdistill_jax.spec import RATIONALE, InputError
from stepdistill_jax.sweep.matrix import PlannedRun


def deal(runs: Sequence[PlannedRun], worker: int, workers: int) -> list[PlannedRun]:
    """The runs of one worker of several: every run is in exactly one share.

    The largest runs are dealt out first, each to the worker that has least so far. Their sizes are
    taken from the configurations alone, so that machines agree on them whatever data they hold.

    Args:
        runs: the whole matrix's.
        worker: 0 to workers - 1.
        workers: how many.

    Raises:
        InputError: there is no such worker.
    """
    if not 0 <= worker < workers:
        raise InputError(
            f"worker {worker} of {workers}: expected 0 to {workers - 1}; set --worker and "
            "--workers, or SWEEP_WORKER and SWEEP_WORKERS in the environment"
        )
    loads = [0.0] * workers
    mine = set()
    # Equal runs too are spread evenly: none counts as nothing.
    sizes = [1.0 + nominal_flops(run.config) for run in runs]
    for index in sorted(range(len(runs)), key=lambda i: (-sizes[i], i)):
        chosen = min(range(workers), key=lambda w: (loads[w], w))
        loads[chosen] += sizes[index]
        if chosen == worker:
            mine.add(index)
    return [run for index, run in enumerate(runs) if index in mine]


def nominal_flops(config: RunConfig) -> float:
    """Model FLOPs of a run were every text as long as it may be: an order of runs by size."""
    tokens = config.tokens
    longest = dict.fromkeys(config.streams, tokens.max_label_length)
    if RATIONALE in longest:
        longest[RATIONALE] = tokens.max_rationale_length
    rows = config.pipeline.batch_size
    return config.train_steps * train_flops(config.model, rows, tokens.max_input_length, longest)
