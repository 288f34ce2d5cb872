"""A run's wall time by phase, and its goodput: the share of time that trained.

Dispatch is asynchronous, so a step's time ends when the host has read its metrics. A wait for data
begins when the device is idle.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.spec import FINISHED_FILE, GOODPUT_FILE

# Phases of one process. `start` ends with the request of the first batch; `compile` is the dispatch
# of the first step, in every process; `checkpoint` is only the time that the host waits.
PHASES = ("start", "compile", "step", "data_wait", "checkpoint", "evaluation", "profile")
# Further phases of a run that was restarted: steps lost with a kill, and time without a process.
LOST, STOPPED = "lost", "stopped"
# The phases whose device time counts as a cost of training.
TRAINING = ("compile", "step", "data_wait")
# Minimum time between two writes of the file, unless a checkpoint was saved.
_NOTE_SECONDS = 10.0


class Clock:
    """Assigns every second since the start to exactly one phase.

    Attributes:
        now: monotonic seconds.
        seconds: phase -> seconds so far.
        started: seconds since the epoch.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Starts the clock; `now` gives monotonic seconds, `wall` seconds since the epoch."""
        self.now = now
        self._last = now()
        self._read = dict.fromkeys(PHASES, 0.0)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.started = wall()

    def lap(self, phase: str, until: float | None = None) -> None:
        """Assigns the time since the last lap to `phase`, up to now or to an earlier moment."""
        end = self.now() if until is None else max(until, self._last)
        self.seconds[phase] += end - self._last
        self._last = end

    def sum(self, phases: Iterable[str] = PHASES) -> float:
        """Seconds in `phases` so far."""
        return sum(self.seconds[phase] for phase in phases)

    def window(self) -> dict[str, float]:
        """Phase -> seconds since the last call."""
        since = {phase: self.seconds[phase] - self._read[phase] for phase in PHASES}
        self._read = dict(self.seconds)
        return since


class Goodput:
    """The time of a run by phase, over all its starts: ``MODEL_DIR/goodput.json``.

    The phases add up to the wall time since the first start. The time of steps that are repeated
    after a kill moves to `LOST`. The time between a process's last note and the next start counts
    as `STOPPED`. The file of a finished run does not change.
    """

    def __init__(self, model_dir: epath.PathLike, clock: Clock, step: int, *, writes: bool) -> None:
        """Continues the file of earlier starts.

        Args:
            clock: of this process.
            step: that the run starts or continues at.
            writes: whether this process writes the file, as one of them does.
        """
        folder = epath.Path(model_dir)
        self._path = folder / GOODPUT_FILE
        self._clock = clock
        self._writes = writes and not (folder / FINISHED_FILE).exists()
        self._written = -_NOTE_SECONDS
        stored: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._since: float = stored.get("since", clock.started)
        self._starts: int = stored.get("starts", 0) + 1
        self._saved: dict[str, float] = stored.get("saved", {"0": 0.0})
        self._before = dict.fromkeys((*PHASES, LOST, STOPPED), 0.0) | stored.get("seconds", {})
        trained = self._before["step"]
        kept = self._saved.get(str(step), trained)
        self._before["step"] = kept
        self._before[LOST] += trained - kept
        self._before[STOPPED] += max(0.0, clock.started - stored.get("until", clock.started))
        self._saved = {s: seconds for s, seconds in self._saved.items() if int(s) <= step}

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds since the run's first start."""
        return {p: s + self._clock.seconds.get(p, 0.0) for p, s in self._before.items()}

    def note(self, step: int, *, saved: bool = False) -> None:
        """Writes the file, at most every ten seconds unless a checkpoint was `saved`."""
        total = self._clock.sum()
        seconds = self.seconds()
        if saved:
            self._saved[str(step)] = round(seconds["step"], 6)
        elif total - self._written < _NOTE_SECONDS:
            return
        self._written = total
        if not self._writes:
            return
        account = {
            "goodput": round(share(seconds), 4),
            "since": self._since,
            "until": self._clock.started + total,
            "starts": self._starts,
            "step": step,
            "seconds": {phase: round(value, 6) for phase, value in seconds.items()},
            "saved": self._saved,
        }
        records.write_atomic(self._path, json.dumps(account, indent=1) + "\n")


def share(seconds: dict[str, float]) -> float:
    """The share of all seconds spent in steps, lost ones excluded."""
    return seconds["step"] / max(sum(seconds.values()), 1e-9)


def describe(model_dir: epath.PathLike) -> str:
    """One line about ``goodput.json``; "" if there is no such file.

    ``goodput 91.2% of 3,412 s: start 2.1%, compile 1.4%, ..., stopped 0.0%``.
    """
    path = epath.Path(model_dir) / GOODPUT_FILE
    if not path.exists():
        return ""
    try:
        stored = json.loads(path.read_text())
    except ValueError:  # Of a finished run, which writes it no more.
        return ""
    seconds: dict[str, float] = stored["seconds"]
    total = max(sum(seconds.values()), 1e-9)
    rest = ", ".join(
        f"{phase.replace('_', ' ')} {value / total:.1%}"
        for phase, value in seconds.items()
        if phase != "step"
    )
    starts = f" over {stored['starts']} starts" if stored["starts"] > 1 else ""
    return f"goodput {share(seconds):.1%} of {total:,.0f} s{starts}: {rest}"
