"""Progress of a sweep on the terminal or in a log."""

from __future__ import annotations

import shutil
import sys
import time

from stepdistill_jax.sweep.run_status import State

# Seconds between two progress lines where a table cannot be redrawn.
_LINE_SECONDS = 300.0


class Display:
    """Lines that stay and, on a terminal, a table below them that is redrawn."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._drawn = 0
        self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._clear()
        print(text, flush=True)
        self._last_line = time.monotonic()

    def show(self, current: str, counts: str, table: str) -> None:
        """Redraws the progress; without a terminal, prints a line every few minutes.

        Args:
            current: progress of the run in training.
            counts: how many runs are done and waiting.
            table: one line a variant below a line of headings.
        """
        if self._live:
            width, height = shutil.get_terminal_size()
            heading, *rows = table.splitlines()
            # One row stays free, or the terminal would scroll; running variants come first.
            room = max(0, height - 4)
            if len(rows) > room:
                rows.sort(key=lambda row: State.RUNNING not in row)
            shown = [heading, *rows[:room], current, counts]
            self._clear()
            print("\n".join(row[: width - 1] for row in shown), flush=True)
            self._drawn = len(shown)
        elif time.monotonic() - self._last_line >= _LINE_SECONDS:
            self.say(f"{current}; {counts}")

    def _clear(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}F\x1b[J", end="")
            self._drawn = 0
