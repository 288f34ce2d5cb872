"""The progress of an extraction on stderr."""

from __future__ import annotations

import sys

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


class ProgressBar:
    """Examples per second, tokens, cost, yield, time left."""

    def __init__(self, examples: int, budget: Budget) -> None:
        self._budget = budget
        self._bar = tqdm.tqdm(
            total=examples,
            unit="example",
            file=sys.stderr,
            dynamic_ncols=True,
            # The mean over the whole run: responses come in bursts.
            smoothing=0,
            mininterval=0.5 if sys.stderr.isatty() else _LINE_SECONDS,
            disable=not examples,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def show(self, counts: Counts) -> None:
        """Called after every response."""
        # Examples done by earlier calls do not count in the rate.
        self._bar.initial = counts.earlier
        spent = self._budget.spent
        parts = [f"{spent.prompt + spent.written:,} tokens"]
        if self._budget.cost is not None:
            parts.append(f"cost {self._budget.cost:.4f}")
        if counts.done:
            parts.append(f"{counts.parsed / counts.done:.1%} parsed")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(counts.done - self._bar.n)
