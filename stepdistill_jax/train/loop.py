"""The train loop: steps, metrics, evaluation, checkpoints, preemption and exact resume."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from stepdistill_jax import records
from stepdistill_jax.checkpoint import manager
from stepdistill_jax.parallel import cluster, processes
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.costs import CostMeter
from stepdistill_jax.spec import EXAMPLE_INDEX, NON_FINITE_FILE, InputError
from stepdistill_jax.train.clock import TRAINING, Clock, Goodput
from stepdistill_jax.train.log import MetricLog, Throughput
from stepdistill_jax.train.state import TrainState
from stepdistill_jax.train.trace import StepTrace

Batch = dict[str, np.ndarray]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `Trainer.run` ended.

    Attributes:
        step: optimizer steps done, those of earlier calls included.
        preempted: SIGTERM stopped the run; the state of `step` is saved.
        evals: (step, validation accuracy) of the whole run, in order.
    """

    step: int
    preempted: bool
    evals: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class _Step:
    """A dispatched step: its metrics on the device, its host batch, and the time of its end."""

    number: int
    metrics: Metrics
    batch: Batch
    end: concurrent.futures.Future[float]


def _end_of(metrics: Metrics, now: Callable[[], float]) -> concurrent.futures.Future[float]:
    """The time at which a dispatched step ended, available after its end."""
    end: concurrent.futures.Future[float] = concurrent.futures.Future()

    def wait() -> None:
        # If the step failed, reading its metrics raises the error again.
        with contextlib.suppress(Exception):
            jax.block_until_ready(metrics)
        end.set_result(now())

    # A daemon: a process that ends with an error must not wait for its device.
    threading.Thread(target=wait, daemon=True).start()
    return end


def _lap_wait(clock: Clock, pending: _Step | None) -> None:
    """Accounts for the wait for a batch: until the pending step ended, the device was busy."""
    if pending is not None and not pending.end.done():
        clock.lap("step")
        return
    if pending is not None:
        clock.lap("step", until=pending.end.result())
    clock.lap("data_wait")


class NonFiniteError(RuntimeError):
    """A metric became NaN or infinite; the message names the step and the file of examples."""


class Preemption:
    """Handles SIGTERM, the preemption notice of a TPU VM, and Ctrl-C; a second one ends at once.

    With several processes, JAX handles SIGTERM, which Ctrl-C becomes. When one process gets it, JAX
    chooses a step that none has reached, and all stop there. Later signals to the others are then
    ignored.
    """

    def __init__(self) -> None:
        self._requested = False
        self._agreed = False
        self._several = processes.count() > 1

    def __enter__(self) -> Preemption:
        handled = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._note) for number in handled}
        return self

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; call it once after every step."""
        if self._several:
            self._agreed |= multihost_utils.reached_preemption_sync_point(step)
            return self._agreed
        return self._requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        line = f"\n{signal.Signals(number).name}: stopping when this step is saved\n"
        os.write(2, line.encode())  # A handler may interrupt a print.
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        self._requested = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._several and not self._agreed:
            # `reached` is not called any more, so JAX would ignore the signal from now on.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _progress_bar(steps: int, done: int) -> tqdm:
    return tqdm(
        total=steps,
        initial=done,
        unit="step",
        disable=not processes.is_lead(),
        dynamic_ncols=True,
        # A log file gets a line every ten seconds, a terminal a bar that moves.
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )


def _due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def resume(
    checkpoints: ocp.CheckpointManager,
    batches: grain.DatasetIterator,
    fresh: Callable[[], TrainState],
    abstract_state: TrainState,
    identity: Mapping[str, Any],
) -> tuple[TrainState, list[tuple[int, float]]]:
    """Restores the latest checkpoint; without one, calls `fresh`.

    Args:
        batches: moved to the batch after the checkpoint's.
        fresh: makes the state of step 0.
        abstract_state: shapes and shardings of a state.
        identity: all items except ``config`` must equal those of the checkpoint.

    Returns:
        The state to continue with and the validation accuracies so far.

    Raises:
        InputError: the checkpoint cannot be read, or was trained on other data.
    """
    step = checkpoints.latest_step()
    if step is None:
        return fresh(), []
    state, data, stored = manager.restore(checkpoints, step, abstract_state)
    for name in sorted(identity.keys() - {"config"}):
        if stored.get(name) != identity[name]:
            raise InputError(
                f"{checkpoints.directory}: the {name} changed: the run had {stored.get(name)}, now "
                f"{identity[name]}. Restore the old files (DATA_DIR, VOCABULARY and their "
                "environment variables), or choose another MODEL_DIR."
            )
    batches.set_state(data["iterator"])
    logging.info("Continuing from the checkpoint of step %d.", step)
    return state, [(int(s), float(a)) for s, a in data["evals"]]


@dataclasses.dataclass
class Trainer:
    """The parts of one run; `run` trains with them.

    Attributes:
        batches: infinite packed host batches, with get_state.
        place: host batch to global device arrays.
        evaluate: ``(params, step) -> label accuracy on validation``; writes the files of the
            evaluation.
        example_ids: values of EXAMPLE_INDEX -> ids of the data set, for the non-finite report.
        identity: configuration and data fingerprint, saved with every checkpoint.
    """

    config: RunConfig
    train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    batches: grain.DatasetIterator
    place: Callable[[Batch], Any]
    evaluate: Callable[[Any, int], float]
    checkpoints: ocp.CheckpointManager
    log: MetricLog
    throughput: Throughput
    costs: CostMeter
    clock: Clock
    goodput: Goodput
    trace: StepTrace
    example_ids: Callable[[np.ndarray], list[str]]
    identity: Mapping[str, Any]
    _compiled: bool = dataclasses.field(default=False, init=False)

    def run(self, state: TrainState, evals: list[tuple[int, float]]) -> Outcome:
        """Trains until TRAIN_STEPS, an early stop or SIGTERM, and saves the last step.

        Raises:
            NonFiniteError: a metric became NaN or infinite; nothing of that step is saved.
        """
        config = self.config
        if processes.is_lead():
            (epath.Path(config.model_dir) / NON_FINITE_FILE).unlink(missing_ok=True)
        step = int(state.step)
        stop = False
        pending: _Step | None = None
        self.clock.lap("start")
        with (
            Preemption() as preemption,
            contextlib.closing(self.trace),
            _progress_bar(config.train_steps, step) as bar,
        ):
            if step and self._evaluates(step) and step not in dict(evals):
                # Saved by `_evaluate_or_save`: the same step is saved again, with its accuracy.
                missed = self._evaluate(state, step, evals)
                self.checkpoints.delete(step)
                self._save(state, step, evals, missed)
            while step < config.train_steps and not self._stop_early(evals):
                batch = next(self.batches)
                _lap_wait(self.clock, pending)
                step += 1
                with self.trace.step(step):
                    state, metrics = self._dispatch(state, self.place(batch), bar)
                # Reading the metrics of the step before keeps the device busy with this one.
                if pending is not None:
                    self._report(pending, bar)
                pending = _Step(step, metrics, batch, _end_of(metrics, self.clock.now))
                evaluates = self._evaluates(step)
                stop = preemption.reached(step)
                if evaluates or stop or _due(step, config.checkpoint_period):
                    # A state is scored or saved only once its metrics are known to be finite.
                    self._report(pending, bar)
                    pending = None
                    if processes.is_lead():
                        self.costs.note(step, self.clock.sum(TRAINING))
                    accuracy = self._evaluate_or_save(state, step, evals) if evaluates else None
                    self._save(state, step, evals, accuracy)
                if stop:
                    break
            # Within `Preemption`: SIGTERM must not leave the last checkpoint half written.
            manager.wait(self.checkpoints)
            self.clock.lap("checkpoint")
            self.goodput.note(step, saved=True)
        return Outcome(step, stop and step < config.train_steps, tuple(evals))

    def _dispatch(self, state: TrainState, batch: Any, bar: tqdm) -> tuple[TrainState, Metrics]:
        """Starts a step; the first call compiles it, and waits until all processes have."""
        dispatched = self.train_step(state, batch)
        if not self._compiled:
            # Else the first sum over processes would wait, with a deadline, for the slowest one.
            processes.meet()
            self._compiled = True
            bar.unpause()  # Its rate leaves out the compilation.
            self.clock.lap("compile")
        else:
            self.clock.lap("step")
        return dispatched

    def _evaluates(self, step: int) -> bool:
        return step == self.config.train_steps or _due(step, self.config.eval_period)

    def _stop_early(self, evals: list[tuple[int, float]]) -> bool:
        """Whether the last EARLY_STOP_EVALS evaluations did not exceed the best one before them."""
        patience = self.config.early_stop_evals
        if not patience or len(evals) <= patience:
            return False
        before = max(accuracy for _, accuracy in evals[:-patience])
        return all(accuracy <= before for _, accuracy in evals[-patience:])

    def _evaluate_or_save(
        self, state: TrainState, step: int, evals: list[tuple[int, float]]
    ) -> float:
        """As `_evaluate`; if it fails, the steps before it are saved and not lost."""
        try:
            return self._evaluate(state, step, evals)
        except Exception as error:
            # Only an InputError comes in all processes, which must save together.
            if processes.count() == 1 or isinstance(error, InputError):
                self._save(state, step, evals, None)
                manager.wait(self.checkpoints)
            raise

    def _evaluate(self, state: TrainState, step: int, evals: list[tuple[int, float]]) -> float:
        """Label accuracy on validation; also appended to `evals` and printed."""
        accuracy = self.evaluate(state.params, step)
        evals.append((step, accuracy))
        cluster.say(f"step {step}: validation label accuracy {accuracy:.2%}")
        self.clock.lap("evaluation")
        return accuracy

    def _save(
        self,
        state: TrainState,
        step: int,
        evals: list[tuple[int, float]],
        accuracy: float | None,
    ) -> None:
        self.log.flush()
        data = {"iterator": self.batches.get_state(), "evals": evals}
        manager.save(self.checkpoints, step, state, data, dict(self.identity), accuracy)
        self.clock.lap("checkpoint")
        self.goodput.note(step, saved=True)

    def _report(self, done: _Step, bar: tqdm) -> None:
        """Reads a step's metrics from the device, checks and logs them, and updates the bar."""
        step = done.number
        values = {name: float(value) for name, value in jax.device_get(done.metrics).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self._stop_non_finite(step, bad, values, done.batch[EXAMPLE_INDEX])
        self.clock.lap("step")
        self.throughput.add(done.batch)
        bar.update(step - bar.n)
        if step % self.config.log_period == 0 or step == self.config.train_steps:
            rates = self.throughput.read()
            self.log.write(step, {**values, **rates})
            self.goodput.note(step)
            bar.set_postfix_str(
                f"loss {values['loss']:.3f}, {rates['pairs_per_second']:.0f} pairs/s"
            )

    def _stop_non_finite(
        self, step: int, bad: list[str], values: dict[str, float], index: np.ndarray
    ) -> None:
        index = multihost_utils.process_allgather(index, tiled=True)
        ids = self.example_ids(index[index > 0])
        path = epath.Path(self.config.model_dir) / NON_FINITE_FILE
        report = {"step": step, "metrics": {k: repr(v) for k, v in values.items()}, "ids": ids}
        if processes.is_lead():
            records.write_jsonl(path, [report])
        manager.wait(self.checkpoints)
        raise NonFiniteError(
            f"step {step}: {', '.join(f'{name} is {values[name]}' for name in bad)}; the "
            f"{len(ids)} examples of its batch are in {path}; the last checkpoint is of step "
            f"{self.checkpoints.latest_step()}. Lower LEARNING_RATE, set CLIP_NORM, or check the "
            "examples, and train in a new MODEL_DIR."
        )
