"""Runs of a sweep as processes: one after another, watched, reported, stopped and continued."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from types import FrameType

from stepdistill_jax import records
from stepdistill_jax.parallel import cluster
from stepdistill_jax.run import load as configs
from stepdistill_jax.spec import EXIT_INCOMPLETE, EXIT_PREEMPTED
from stepdistill_jax.sweep import state, table
from stepdistill_jax.sweep.estimate import Clock, Finished, Work, grouped
from stepdistill_jax.sweep.matrix import PlannedRun
from stepdistill_jax.sweep.state import Attempt, Look, State
from stepdistill_jax.text import duration

SUMMARY_FILE = "sweep.json"
_POLL_SECONDS = 1.0
# Between two lines on a run that goes on, where nothing can be redrawn.
_LINE_SECONDS = 300.0
# What the counts say of runs.
_TO_COME = "to come"
_ELSEWHERE = "at work in another process"
_STANDINGS = ("done", "failed", "stopped", "at work", _ELSEWHERE, _TO_COME)


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

    def show(self, now: str, counts: str, rows: str) -> None:
        """Draws what may change: the table on a terminal, else a line, now and then.

        Args:
            now: what goes on.
            counts: how many runs are done and to come.
            rows: the table, with a line of headings.
        """
        if self._live:
            width, height = shutil.get_terminal_size()
            heading, *groups = rows.splitlines()
            # One row stays free, or the terminal would scroll; groups at work are shown first.
            room = max(0, height - 4)
            if len(groups) > room:
                groups.sort(key=lambda row: State.RUNNING not in row)
            shown = [heading, *groups[:room], now, counts]
            self._clear()
            print("\n".join(row[: width - 1] for row in shown), flush=True)
            self._drawn = len(shown)
        elif time.monotonic() - self._last_line >= _LINE_SECONDS:
            self.say(f"{now}; {counts}")

    def _clear(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}F\x1b[J", end="")
            self._drawn = 0


@dataclasses.dataclass
class Sweep:
    """A share of a sweep's runs, worked through by `run`.

    Attributes:
        folder: SWEEP_DIR.
        whole: the runs of all workers.
        mine: of this one.
        work: name -> work, of `mine`.
        product_rate: FLOP/s of a large matrix product.
        retry: runs that failed before are tried again.
        looks: name -> what its folder said last, of `whole`.
    """

    folder: pathlib.Path
    whole: Sequence[PlannedRun]
    mine: Sequence[PlannedRun]
    work: Mapping[str, Work]
    product_rate: float
    retry: bool
    looks: dict[str, Look] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.looks = {run.name: state.look(run) for run in self.whole}
        self._display = Display()
        self._stopping = False
        self._process: subprocess.Popen[bytes] | None = None

    def plan(self, impossible: int = 0) -> str:
        """The table of `mine`, with what is left to do; `impossible` runs are not among them."""
        clock = self._clock()
        left = {
            run.name: clock.estimate(run, self.work[run.name], self.looks[run.name].saved)
            for run in self.mine
            if self._is_left(run)
        }
        return table.plan(grouped(self.mine, self.work, left), self.looks, impossible)

    def _is_left(self, run: PlannedRun) -> bool:
        found = self.looks[run.name].state
        return found not in (State.DONE, State.CHANGED) and (self.retry or found != State.FAILED)

    def _clock(self) -> Clock:
        finished = []
        for run in self.mine:
            attempt = self.looks[run.name].attempt
            done = self.looks[run.name].state == State.DONE
            if done and attempt is not None and not attempt.from_step and not attempt.exit_code:
                finished.append(Finished(run, self.work[run.name], attempt.seconds))
        return Clock(self.product_rate, finished)

    def run(self) -> int:
        """Works through all that is left; returns the exit code.

        0 where every run of this worker is done, `EXIT_INCOMPLETE` where some failed,
        `EXIT_PREEMPTED` where SIGTERM or Ctrl-C came or a run was preempted.
        """
        pending = [run for run in self.mine if self._is_left(run)]
        waiting = False
        told: set[str] = set()
        self._write_summary()
        with self._signals():
            while pending and not self._stopping:
                before = len(pending)
                for run in list(pending):
                    if self._stopping:
                        break
                    descriptor = state.lock(pathlib.Path(run.config.model_dir))
                    # Another process is at it: its turn comes again when that one has ended.
                    if descriptor is None:
                        if run.name not in told:
                            self._say_elsewhere(run, pending)
                        told.add(run.name)
                        continue
                    pending.remove(run)
                    try:
                        self._attempt(run, descriptor, pending)
                    finally:
                        os.close(descriptor)
                    self._write_summary()
                if len(pending) == before:
                    if not waiting:
                        names = ", ".join(run.name for run in pending)
                        self._display.say(f"waiting for other processes that are at {names}")
                    waiting = True
                    time.sleep(_POLL_SECONDS)
        return self._outcome()

    def _attempt(self, run: PlannedRun, descriptor: int, pending: Sequence[PlannedRun]) -> None:
        """Trains a run whose lock this process has, unless another has done it meanwhile."""
        look = self.looks[run.name] = state.look(run, held=True)
        number = self._number(run)
        if look.state in (State.DONE, State.CHANGED):
            self._look_again(pending)
            outcome = "was done by another process" if look.state == State.DONE else look.reason
            self._display.say(f"{number} {run.name} {outcome}; {self._counts(pending)}")
            return
        folder = pathlib.Path(run.config.model_dir)
        records.write_atomic(folder / state.PLANNED_FILE, configs.dump(run.config))
        self.looks[run.name] = dataclasses.replace(look, state=State.RUNNING)
        seconds = self._clock().estimate(run, self.work[run.name], look.saved).seconds
        begins = f"continues after step {look.saved:,}" if look.saved else "starts"
        self._display.say(f"{number} {run.name} {begins}, about {duration(seconds)}")
        start = time.monotonic()
        with (folder / state.LOG_FILE).open("ab") as log:
            offset = log.tell()
            command = [
                sys.executable,
                *("-m", "launch.train", f"--gin_file={folder / state.PLANNED_FILE}"),
            ]
            # In a session of its own Ctrl-C reaches the sweep alone, which passes it on as SIGTERM.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=cluster.alone(),
                pass_fds=(descriptor,),
            )
            code = self._watch(run, self._process, start, pending)
            self._process = None
        if self._stopping:
            code = EXIT_PREEMPTED
        error = "" if code in (0, EXIT_PREEMPTED) else describe_failure(folder, offset, code)
        state.write_attempt(
            folder, Attempt(code, error, round(time.monotonic() - start, 3), look.saved)
        )
        self._stopping |= code == EXIT_PREEMPTED
        look = self.looks[run.name] = state.look(run, held=True)
        self._look_again(pending)
        ending = [self._ending(look), self._counts(pending)]
        self._display.say(f"{number} {run.name} {'; '.join(filter(None, ending))}")

    def _watch(
        self,
        run: PlannedRun,
        process: subprocess.Popen[bytes],
        start: float,
        pending: Sequence[PlannedRun],
    ) -> int:
        """Shows a run's progress until its process has ended; returns the exit code."""
        folder = pathlib.Path(run.config.model_dir)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
            at = state.progress(folder)
            parts = [f"step {at.step:,} of {run.config.train_steps:,}"]
            if at.pairs_per_second:
                left = (run.config.train_steps - at.step) * run.config.pipeline.batch_size
                parts.append(f"{at.pairs_per_second:,.0f} pairs/s")
                parts.append(f"{duration(left / at.pairs_per_second)} left")
            if at.validation is not None:
                parts.append(f"validation {at.validation:.1%}")
            parts.append(f"{duration(time.monotonic() - start)} so far")
            self._display.show(
                f"{run.name}: {', '.join(parts)}", self._counts(pending), self._rows()
            )

    def _ending(self, look: Look) -> str:
        seconds = duration(look.attempt.seconds) if look.attempt else ""
        if look.state == State.DONE:
            scores = ", ".join(f"{split} {accuracy:.1%}" for split, accuracy in look.accuracy)
            return f"is done in {seconds}: {scores}"
        if look.state == State.FAILED:
            return f"failed after {seconds}: {look.reason}"
        return f"was stopped after {seconds}, saved at step {look.saved:,}"

    def _number(self, run: PlannedRun) -> str:
        return f"[{1 + self.mine.index(run)}/{len(self.mine)}]"

    def _say_elsewhere(self, run: PlannedRun, pending: Sequence[PlannedRun]) -> None:
        """Says that another process has a run's lock."""
        self._look_again(pending)
        self._display.say(
            f"{self._number(run)} {run.name} is still at work in another process (another worker, "
            f"or what a sweep that was killed had started); {self._counts(pending)}"
        )

    def _look_again(self, runs: Sequence[PlannedRun]) -> None:
        """Reads the folders of runs of which other processes may have changed something."""
        for run in runs:
            self.looks[run.name] = state.look(run)

    def _counts(self, pending: Sequence[PlannedRun]) -> str:
        """How many of `mine` are in which state; each is counted once."""
        names = {run.name for run in pending}
        standing = {run.name: self._standing(run, names) for run in self.mine}
        tally = Counter(standing.values())
        clock = self._clock()
        seconds = sum(
            clock.estimate(run, self.work[run.name], self.looks[run.name].saved).seconds
            for run in pending
            if standing[run.name] == _TO_COME
        )
        counts = [f"{tally[word]} {word}" for word in _STANDINGS if tally[word]]
        if tally[_TO_COME]:
            counts.append(f"about {duration(seconds)}")
        return ", ".join(counts)

    def _standing(self, run: PlannedRun, pending: Container[str]) -> str:
        """One of `_STANDINGS`."""
        found = self.looks[run.name].state
        if found == State.DONE:
            return "done"
        if run.name in pending:
            return _ELSEWHERE if found == State.RUNNING else _TO_COME
        if found == State.RUNNING:
            return "at work"
        return "failed" if found == State.FAILED else "stopped"

    def _count(self, wanted: State) -> int:
        return sum(self.looks[run.name].state == wanted for run in self.mine)

    def _rows(self) -> str:
        return table.progress(grouped(self.mine, self.work, {}), self.looks)

    def _outcome(self) -> int:
        """Prints how the sweep stands and returns its exit code."""
        if self.mine:
            self._display.say(self._rows())
        for run in self.mine:
            if self.looks[run.name].state == State.FAILED:
                log = pathlib.Path(run.config.model_dir) / state.LOG_FILE
                self._display.say(f"failed: {run.name}: {self.looks[run.name].reason} (see {log})")
        if self._stopping:
            self._display.say("stopped: run the same command again to continue")
            return EXIT_PREEMPTED
        return 0 if self._count(State.DONE) == len(self.mine) else EXIT_INCOMPLETE

    def _write_summary(self) -> None:
        """SWEEP_DIR/sweep.json: every run of all workers, as its folder says now."""
        for run in self.whole:
            self.looks[run.name] = state.look(run)
        rows = [
            {
                "name": run.name,
                "state": look.state,
                "saved_step": look.saved,
                "accuracy": dict(look.accuracy),
                "exit_code": look.attempt.exit_code if look.attempt else None,
                "seconds": look.attempt.seconds if look.attempt else None,
                "reason": look.reason,
            }
            for run in self.whole
            for look in [self.looks[run.name]]
        ]
        text = json.dumps({"runs": rows}, indent=1, ensure_ascii=False) + "\n"
        records.write_atomic(self.folder / SUMMARY_FILE, text)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Passes SIGTERM and Ctrl-C on to the run as SIGTERM, at which it saves; then stops."""

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._stopping = True
            if self._process is not None:
                self._process.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def describe_failure(folder: pathlib.Path, offset: int, code: int) -> str:
    """What a failed process said last.

    Args:
        folder: of the run.
        offset: bytes of its log that are of attempts before.
        code: that it exited with.
    """
    with (folder / state.LOG_FILE).open("rb") as log:
        log.seek(offset)
        return failure(log.read().decode("utf-8", "replace"), code)


def failure(text: str, code: int) -> str:
    """What a failed process said last, of all that it said, and how it ended."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error: ")]
    said = (named or lines or ["it said nothing"])[-1].removeprefix("error: ")
    return f"exit code {code}: {said}"
