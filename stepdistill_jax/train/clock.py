"""Where a run's wall time went, and the share of it that trained: its goodput.

Step time is what the host waits for: dispatch is asynchronous, so a step costs the time until its
metrics have been read. A wait for data begins where the device has nothing left to do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.spec import FINISHED_FILE, GOODPUT_FILE

# What the time of one process is spent on. `start` ends with the first batch asked for; `compile`
# is the dispatch of the first step, in every process; `checkpoint` what the host waits for, not the
# writing behind it.
PHASES = ("start", "compile", "step", "data_wait", "checkpoint", "evaluation", "profile")
# Of several processes, one after the other, besides: steps that a kill undid, and no process.
LOST, STOPPED = "lost", "stopped"
# Training with all that hinders it, as against what is done beside it.
TRAINING = ("compile", "step", "data_wait")
# A run that logs every step need not write its account as often.
_NOTE_SECONDS = 10.0


class Clock:
    """Deals out time as it passes: every second since the start is in exactly one phase.

    Attributes:
        now: the monotonic seconds that it reads.
        seconds: phase -> seconds so far.
        started: seconds since the epoch.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Starts the clock.

        Args:
            now: monotonic seconds.
            wall: seconds since the epoch.
        """
        self.now = now
        self._last = now()
        self._read = dict.fromkeys(PHASES, 0.0)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.started = wall()

    def lap(self, phase: str, until: float | None = None) -> None:
        """The time since the lap before went to `phase`: up to now, or to an earlier moment."""
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
    """A run's account of its time, over all its processes: ``MODEL_DIR/goodput.json``.

    The phases add up to the wall time since the run was first started. Steps that are done again
    after a kill count as lost the first time. Time between two processes, and the seconds from a
    killed one's last note to its end, count as stopped. A finished run's account is closed.
    """

    def __init__(self, model_dir: epath.PathLike, clock: Clock, step: int, *, writes: bool) -> None:
        """Goes on from what an earlier process noted.

        Args:
            model_dir: the run's folder.
            clock: of this process.
            step: that the run starts or continues at.
            writes: this process keeps the file, as one of them does.
        """
        folder = epath.Path(model_dir)
        self._path = folder / GOODPUT_FILE
        self._clock = clock
        self._writes = writes and not (folder / FINISHED_FILE).exists()
        self._written = -_NOTE_SECONDS
        found: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._since: float = found.get("since", clock.started)
        self._starts: int = found.get("starts", 0) + 1
        self._saved: dict[str, float] = found.get("saved", {"0": 0.0})
        self._before = dict.fromkeys((*PHASES, LOST, STOPPED), 0.0) | found.get("seconds", {})
        trained = self._before["step"]
        kept = self._saved.get(str(step), trained)
        self._before["step"] = kept
        self._before[LOST] += trained - kept
        self._before[STOPPED] += max(0.0, clock.started - found.get("until", clock.started))
        self._saved = {s: seconds for s, seconds in self._saved.items() if int(s) <= step}

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds since the run's first start."""
        return {p: s + self._clock.seconds.get(p, 0.0) for p, s in self._before.items()}

    def note(self, step: int, *, saved: bool = False) -> None:
        """Writes the account down, at most every ten seconds where nothing was `saved`."""
        total = self._clock.sum()
        seconds = self.seconds()
        if saved:
            self._saved[str(step)] = round(seconds["step"], 3)
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
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
            "saved": self._saved,
        }
        records.write_atomic(self._path, json.dumps(account, indent=1) + "\n")


def share(seconds: dict[str, float]) -> float:
    """The part of all seconds that went into steps that count."""
    return seconds["step"] / max(sum(seconds.values()), 1e-9)


def describe(model_dir: epath.PathLike) -> str:
    """One line on the account in a run's folder; "" where there is none.

    ``goodput 91.2% of 3,412 s: start 2.1%, compile 1.4%, ..., stopped 0.0%``.
    """
    path = epath.Path(model_dir) / GOODPUT_FILE
    if not path.exists():
        return ""
    found = json.loads(path.read_text())
    seconds: dict[str, float] = found["seconds"]
    total = max(sum(seconds.values()), 1e-9)
    rest = ", ".join(
        f"{phase.replace('_', ' ')} {value / total:.1%}"
        for phase, value in seconds.items()
        if phase != "step"
    )
    starts = f" over {found['starts']} starts" if found["starts"] > 1 else ""
    return f"goodput {share(seconds):.1%} of {total:,.0f} s{starts}: {rest}"
