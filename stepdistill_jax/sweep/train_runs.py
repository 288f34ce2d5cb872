"""Trains the runs of a sweep one after another, each in a child process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence

from stepdistill_jax import records
from stepdistill_jax.run import load as configs
from stepdistill_jax.spec import EXIT_INCOMPLETE, EXIT_PREEMPTED
from stepdistill_jax.sweep import child_process, run_status, tables, workload
from stepdistill_jax.sweep.estimate import Estimate, FinishedRun, by_variant, estimate_time
from stepdistill_jax.sweep.matrix import ImpossibleRun, Matrix, PlannedRun
from stepdistill_jax.sweep.run_status import Attempt, RunStatus, State
from stepdistill_jax.sweep.workload import Workload
from stepdistill_jax.text import duration

SUMMARY_FILE = "sweep.json"
_POLL_SECONDS = 1.0
# Between two progress lines where a table cannot be redrawn.
_LINE_SECONDS = 300.0
_WAITING = "waiting"
_ELSEWHERE = "running in another process"
# What progress lines count.
_STANDINGS = ("done", "failed", "stopped", "running", _ELSEWHERE, _WAITING)


def prepare(
    matrix: Matrix, share: Sequence[PlannedRun], *, retry: bool
) -> tuple[Sweep, list[ImpossibleRun]]:
    """Reads the data and the folders of a worker's `share` of the runs.

    Returns:
        The sweep of the possible runs, and the impossible ones.
    """
    survey = workload.survey([run.config for run in share])
    workloads: dict[str, Workload] = {}
    impossible = list(matrix.impossible)
    for run, size in zip(share, survey.workloads, strict=True):
        status = run_status.read_status(run)
        if isinstance(size, str):
            impossible.append(ImpossibleRun(run.name, size))
        elif status.state == State.CHANGED:
            reason = f"its folder holds a run with {status.reason}. Choose another SWEEP_DIR."
            impossible.append(ImpossibleRun(run.name, reason))
        else:
            workloads[run.name] = size
    mine = [run for run in share if run.name in workloads]
    folder = pathlib.Path(matrix.config.dir)
    return Sweep(folder, matrix.runs, mine, workloads, survey.product_rate, retry), impossible


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


@dataclasses.dataclass
class Sweep:
    """One worker's share of a sweep.

    Attributes:
        folder: SWEEP_DIR.
        all_runs: the runs of all workers.
        mine: the runs of this worker.
        workloads: name -> workload, of `mine`.
        product_rate: FLOP/s of a large matrix product.
        retry: train runs again that failed before.
        statuses: name -> last status that was read, of `all_runs`.
    """

    folder: pathlib.Path
    all_runs: Sequence[PlannedRun]
    mine: Sequence[PlannedRun]
    workloads: Mapping[str, Workload]
    product_rate: float
    retry: bool
    statuses: dict[str, RunStatus] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.statuses = {run.name: run_status.read_status(run) for run in self.all_runs}
        self._display = Display()
        self._stopping = False
        self._process: subprocess.Popen[bytes] | None = None

    def plan(self, impossible: int = 0) -> str:
        """The table of `mine`, with the time left; `impossible` runs are not among them."""
        left = self._estimates([run for run in self.mine if self._is_left(run)])
        return tables.plan(by_variant(self.mine, self.workloads, left), self.statuses, impossible)

    def _is_left(self, run: PlannedRun) -> bool:
        state = self.statuses[run.name].state
        return state not in (State.DONE, State.CHANGED) and (self.retry or state != State.FAILED)

    def _estimates(self, runs: Sequence[PlannedRun]) -> dict[str, Estimate]:
        """Name -> estimated time from the latest checkpoint of a run to its end."""
        finished = []
        for run in self.mine:
            status = self.statuses[run.name]
            attempt = status.attempt if status.state == State.DONE else None
            if attempt is not None and not attempt.from_step and not attempt.exit_code:
                finished.append(FinishedRun(run, self.workloads[run.name], attempt.seconds))
        return {
            run.name: estimate_time(
                run,
                self.workloads[run.name],
                self.statuses[run.name].saved,
                product_rate=self.product_rate,
                finished=finished,
            )
            for run in runs
        }

    def run(self) -> int:
        """Trains all unfinished runs; returns the exit code.

        0 if every run of this worker is done, `EXIT_INCOMPLETE` if some failed, `EXIT_PREEMPTED`
        after SIGTERM or Ctrl-C or if a run was preempted.
        """
        pending = [run for run in self.mine if self._is_left(run)]
        waiting = False
        announced: set[str] = set()
        self._write_summary()
        with child_process.on_stop_signal(self._stop):
            while pending and not self._stopping:
                before = len(pending)
                for run in list(pending):
                    if self._stopping:
                        break
                    descriptor = run_status.lock(pathlib.Path(run.config.model_dir))
                    # Another process trains it: try again when that one has ended.
                    if descriptor is None:
                        if run.name not in announced:
                            self._say_elsewhere(run, pending)
                        announced.add(run.name)
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
                        self._display.say(f"waiting for other processes that train {names}")
                    waiting = True
                    time.sleep(_POLL_SECONDS)
        return self._outcome()

    def _stop(self) -> None:
        """Ends the current run with SIGTERM, at which it saves, and then the sweep."""
        self._stopping = True
        if self._process is not None:
            self._process.terminate()

    def _attempt(self, run: PlannedRun, descriptor: int, pending: Sequence[PlannedRun]) -> None:
        """Trains a run that this process has locked, unless another process has finished it."""
        status = self.statuses[run.name] = run_status.read_status(run, locked_here=True)
        title = self._title(run)
        if status.state in (State.DONE, State.CHANGED):
            self._update_statuses(pending)
            done = "was finished by another process"
            outcome = done if status.state == State.DONE else f"was changed: {status.reason}"
            self._display.say(f"{title} {outcome}; {self._counts(pending)}")
            return
        folder = pathlib.Path(run.config.model_dir)
        planned = folder / run_status.PLANNED_FILE
        records.write_atomic(planned, configs.dump(run.config))
        self.statuses[run.name] = dataclasses.replace(status, state=State.RUNNING)
        begins = f"continues after step {status.saved:,}" if status.saved else "starts"
        estimate = self._estimates([run])[run.name]
        self._display.say(f"{title} {begins}, about {duration(estimate.seconds)}")
        start = time.monotonic()
        with (folder / run_status.LOG_FILE).open("ab") as log:
            offset = log.tell()
            self._process = child_process.start(
                "launch.train", f"--gin_file={planned}",
                stdout=log, stderr=log, pass_fds=(descriptor,),
            )  # fmt: skip
            code = self._watch(run, self._process, start, pending)
            self._process = None
        if self._stopping:
            code = EXIT_PREEMPTED
        error = "" if code in (0, EXIT_PREEMPTED) else describe_failure(folder, offset, code)
        seconds = round(time.monotonic() - start, 3)
        run_status.write_attempt(folder, Attempt(code, error, seconds, status.saved))
        self._stopping |= code == EXIT_PREEMPTED
        status = self.statuses[run.name] = run_status.read_status(run, locked_here=True)
        self._update_statuses(pending)
        ending = [self._ending(status), self._counts(pending)]
        self._display.say(f"{title} {'; '.join(filter(None, ending))}")

    def _watch(
        self,
        run: PlannedRun,
        process: subprocess.Popen[bytes],
        start: float,
        pending: Sequence[PlannedRun],
    ) -> int:
        """Shows a run's progress until its process ends; returns the exit code."""
        folder = pathlib.Path(run.config.model_dir)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
            at = run_status.read_progress(folder)
            parts = [f"step {at.step:,} of {run.config.train_steps:,}"]
            if at.pairs_per_second:
                left = (run.config.train_steps - at.step) * run.config.pipeline.batch_size
                parts.append(f"{at.pairs_per_second:,.0f} pairs/s")
                parts.append(f"{duration(left / at.pairs_per_second)} left")
            if at.validation is not None:
                parts.append(f"validation {at.validation:.1%}")
            parts.append(f"{duration(time.monotonic() - start)} so far")
            current = f"{run.name}: {', '.join(parts)}"
            self._display.show(current, self._counts(pending), self._progress())

    def _ending(self, status: RunStatus) -> str:
        seconds = duration(status.attempt.seconds) if status.attempt else ""
        if status.state == State.DONE:
            scores = ", ".join(f"{split} {accuracy:.1%}" for split, accuracy in status.accuracy)
            return f"is done in {seconds}: {scores}"
        if status.state == State.FAILED:
            return f"failed after {seconds}: {status.reason}"
        return f"was stopped after {seconds}, saved at step {status.saved:,}"

    def _title(self, run: PlannedRun) -> str:
        return f"[{1 + self.mine.index(run)}/{len(self.mine)}] {run.name}"

    def _say_elsewhere(self, run: PlannedRun, pending: Sequence[PlannedRun]) -> None:
        self._update_statuses(pending)
        self._display.say(
            f"{self._title(run)} is running in another process (another worker, or a run that a "
            f"killed sweep left behind); {self._counts(pending)}"
        )

    def _update_statuses(self, runs: Sequence[PlannedRun]) -> None:
        """Reads the folders of runs that other processes may have changed."""
        self.statuses |= {run.name: run_status.read_status(run) for run in runs}

    def _counts(self, pending: Sequence[PlannedRun]) -> str:
        """How many of `mine` are in which state; each is counted once."""
        names = {run.name for run in pending}
        standings = {run.name: self._standing(run, names) for run in self.mine}
        tally = Counter(standings.values())
        counts = [f"{tally[word]} {word}" for word in _STANDINGS if tally[word]]
        if tally[_WAITING]:
            waiting = [run for run in pending if standings[run.name] == _WAITING]
            seconds = sum(estimate.seconds for estimate in self._estimates(waiting).values())
            counts.append(f"about {duration(seconds)}")
        return ", ".join(counts)

    def _standing(self, run: PlannedRun, pending: Container[str]) -> str:
        """One of `_STANDINGS`."""
        state = self.statuses[run.name].state
        if state == State.DONE:
            return "done"
        if run.name in pending:
            return _ELSEWHERE if state == State.RUNNING else _WAITING
        if state == State.RUNNING:
            return "running"
        return "failed" if state == State.FAILED else "stopped"

    def _progress(self) -> str:
        return tables.progress(by_variant(self.mine, self.workloads, {}), self.statuses)

    def _outcome(self) -> int:
        """Prints the final table and the failures; returns the exit code."""
        if self.mine:
            self._display.say(self._progress())
            variants = by_variant(self.mine, self.workloads, {})
            if table := tables.best(variants, self.statuses):
                self._display.say(table)
        for run in self.mine:
            status = self.statuses[run.name]
            if status.state == State.FAILED:
                log = pathlib.Path(run.config.model_dir) / run_status.LOG_FILE
                self._display.say(f"failed: {run.name}: {status.reason} (see {log})")
        if self._stopping:
            self._display.say("stopped: run the same command again to continue")
            return EXIT_PREEMPTED
        done = all(self.statuses[run.name].state == State.DONE for run in self.mine)
        return 0 if done else EXIT_INCOMPLETE

    def _write_summary(self) -> None:
        """Writes SWEEP_DIR/sweep.json: the current status of every run of all workers."""
        self._update_statuses(self.all_runs)
        rows = [
            {
                "name": name,
                "state": status.state,
                "saved_step": status.saved,
                "accuracy": dict(status.accuracy),
                "exit_code": status.attempt.exit_code if status.attempt else None,
                "seconds": status.attempt.seconds if status.attempt else None,
                "reason": status.reason,
            }
            for name, status in self.statuses.items()
        ]
        text = json.dumps({"runs": rows}, indent=1, ensure_ascii=False) + "\n"
        records.write_atomic(self.folder / SUMMARY_FILE, text)


def describe_failure(folder: pathlib.Path, offset: int, code: int) -> str:
    """Why a process failed; the first `offset` bytes of its log are of earlier attempts."""
    with (folder / run_status.LOG_FILE).open("rb") as log:
        log.seek(offset)
        return child_process.failure(log.read().decode("utf-8", "replace"), code)
