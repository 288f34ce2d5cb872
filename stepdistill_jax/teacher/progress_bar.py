"""The progress of an extraction on stderr: examples per second, tokens, cost, yield, time left."""

from __future__ import annotations

import sys
from typing import Any

import tqdm

from stepdistill_jax.teacher.budget import Budget
from stepdistill_jax.teacher.extractor import Counts

# Between two lines where the bar cannot be redrawn.
_LINE_SECONDS = 30.0


def notify(*lines: str) -> None:
    """Prints lines on stderr, above the bar."""
    for line in lines:
        tqdm.tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def progress_bar(examples: int) -> tqdm.tqdm[Any]:
    """The bar of so many examples; close it, or use it as a context."""
    return tqdm.tqdm(
        total=examples,
        unit="example",
        file=sys.stderr,
        dynamic_ncols=True,
        # The mean over the whole run: responses come in bursts.
        smoothing=0,
        mininterval=0.5 if sys.stderr.isatty() else _LINE_SECONDS,
        disable=not examples,
    )


def show(bar: tqdm.tqdm[Any], budget: Budget, counts: Counts) -> None:
    """Shows the progress after a response."""
    # Examples done by earlier calls do not count in the rate.
    bar.initial = counts.earlier
    parts = [f"{budget.spent.prompt + budget.spent.written:,} tokens"]
    if budget.cost is not None:
        parts.append(f"cost {budget.cost:.4f}")
    if counts.done:
        parts.append(f"{counts.parsed / counts.done:.1%} parsed")
    bar.set_postfix_str(", ".join(parts), refresh=False)
    bar.update(counts.done - bar.n)
