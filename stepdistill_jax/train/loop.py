"""The train loop: steps, metrics, evaluation, checkpoints, preemption and exact resume."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
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
from stepdistill_jax.parallel import processes
from stepdistill_jax.run.costs import CostMeter
from stepdistill_jax.spec import EXAMPLE_INDEX, NON_FINITE_FILE, InputError
from stepdistill_jax.train.clock import TRAINING, Clock, Goodput
from stepdistill_jax.train.log import MetricLog, Throughput
from stepdistill_jax.train.state import TrainState
from stepdistill_jax.train.trace import StepTrace

Batch = dict[str, np.ndarray]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train and what to do on the way; all periods in optimizer steps.

    `eval_period` 0 evaluates after the last step alone; `early_stop_evals` 0 never stops early.
    """

    model_dir: str
    train_steps: int
    log_period: int = 10
    eval_period: int = 250
    checkpoint_period: int = 250
    early_stop_evals: int = 0

    def __post_init__(self) -> None:
        least = {"train_steps": 1, "log_period": 1, "checkpoint_period": 1}
        for name in ("eval_period", "early_stop_evals"):
            least[name] = 0
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(
                    f"{name.upper()} is {getattr(self, name)}: expected {bound} or more"
                )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `Trainer.run` ended.

    Attributes:
        step: optimizer steps done in all.
        preempted: SIGTERM came; the state of `step` is saved.
        evals: (step, validation accuracy) of the whole run, in order.
    """

    step: int
    preempted: bool
    evals: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step that was dispatched: its metrics on the device, its host batch, and when it ended."""

    number: int
    metrics: Metrics
    batch: Batch
    end: concurrent.futures.Future[float]


def _end_of(metrics: Metrics, now: Callable[[], float]) -> concurrent.futures.Future[float]:
    """When a dispatched step ended, by `now`; known once it has."""
    end: concurrent.futures.Future[float] = concurrent.futures.Future()

    def wait() -> None:
        # Whatever a step fails with, reading its metrics raises too.
        with contextlib.suppress(Exception):
            jax.block_until_ready(metrics)
        end.set_result(now())

    # A process that ends on an error does not wait for its device.
    threading.Thread(target=wait, daemon=True).start()
    return end


def _lap_wait(clock: Clock, pending: _Step | None) -> None:
    """Deals out a wait for a batch: the device was at the step before until that ended."""
    if pending is not None and not pending.end.done():
        clock.lap("step")
        return
    if pending is not None:
        clock.lap("step", until=pending.end.result())
    clock.lap("data_wait")


class NonFiniteError(RuntimeError):
    """A loss or gradient norm became NaN or infinite; the message names the step and the file."""


class Preemption:
    """Notes SIGTERM, which a TPU VM gets before it is taken away; a second one kills at once.

    Of several processes one may be told; JAX, which has taken the signal itself, then finds a step
    that none of them has reached, at which all stop. The signal that another of them gets later
    kills nothing: it is stopping.
    """

    def __init__(self) -> None:
        self._requested = False
        self._agreed = False
        self._several = processes.count() > 1

    def __enter__(self) -> Preemption:
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; to be asked once after every step."""
        if self._several:
            self._agreed |= multihost_utils.reached_preemption_sync_point(step)
            return self._agreed
        return self._requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._requested = True
        signal.signal(signal.SIGTERM, self._previous)

    def __exit__(self, *exception: object) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)
        elif not self._agreed:
            # Nobody asks any more, so from here on JAX would let the signal go unheard.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def resume(
    checkpoints: ocp.CheckpointManager,
    batches: grain.DatasetIterator,
    fresh: Callable[[], TrainState],
    abstract_state: TrainState,
    identity: Mapping[str, Any],
) -> tuple[TrainState, list[tuple[int, float]]]:
    """Continues from the latest checkpoint, where there is one.

    Order of precedence: the run's own latest checkpoint, then `fresh`, which is called only then.

    Args:
        checkpoints: of the run.
        batches: moved to the batch after the checkpoint's.
        fresh: makes the state of step 0.
        abstract_state: shapes and shardings of a state.
        identity: what run this is; all but ``config`` has to be what the checkpoint's run was.

    Returns:
        The state to go on with and the validation accuracies so far.

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
                f"{checkpoints.directory}: the run so far had the {name} {stored.get(name)}, now "
                f"it is {identity[name]}; give the old files back (DATA_DIR, VOCABULARY and their "
                "environment variables), or choose another MODEL_DIR"
            )
    batches.set_state(data["iterator"])
    logging.info("Continuing from the checkpoint of step %d.", step)
    return state, [(int(s), float(a)) for s, a in data["evals"]]


@dataclasses.dataclass
class Trainer:
    """One run's parts, joined by `run`.

    Attributes:
        config: periods and length.
        train_step: jitted ``(state, batch) -> (state, metrics)``.
        batches: infinite packed host batches, with get_state.
        place: host batch to global device arrays.
        evaluate: ``(params, step) -> label accuracy on validation``; writes its own files.
        checkpoints: from `checkpoint.manager.manager`.
        log: where metrics go.
        throughput: counts pairs and tokens.
        costs: notes what the steps take.
        clock: deals out the process's time.
        goodput: keeps the run's account of it.
        trace: runs the steps, and traces some.
        example_ids: values of EXAMPLE_INDEX to the data set's ids, for the non-finite report.
        identity: what run this is; saved with every checkpoint.
    """

    config: LoopConfig
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

    def run(self, state: TrainState, evals: list[tuple[int, float]]) -> Outcome:
        """Trains up to `train_steps`, early stop or SIGTERM; every way out leaves a checkpoint.

        Raises:
            NonFiniteError: with the step and the batch's example ids in ``non_finite.json``.
        """
        config = self.config
        if processes.is_lead():
            (epath.Path(config.model_dir) / NON_FINITE_FILE).unlink(missing_ok=True)
        step = int(state.step)
        stop = False
        pending: _Step | None = None
        compiled = False
        self.clock.lap("start")
        with (
            Preemption() as preemption,
            contextlib.closing(self.trace),
            tqdm(
                total=config.train_steps,
                initial=step,
                unit="step",
                disable=not processes.is_lead(),
                dynamic_ncols=True,
                # A log file gets a line now and then, a terminal a bar that moves.
                mininterval=0.1 if sys.stderr.isatty() else 10,
            ) as bar,
        ):
            while step < config.train_steps and not self._stop_early(evals):
                batch = next(self.batches)
                _lap_wait(self.clock, pending)
                step += 1
                call = self.train_step if compiled else self._compile
                state, metrics = self.trace.run(call, step, state, self.place(batch))
                self.clock.lap("step" if compiled else "compile")
                if not compiled:
                    bar.unpause()  # Its rate and end are those of the steps to come.
                    compiled = True
                # Reading the metrics of the step before lets the device run on meanwhile.
                if pending is not None:
                    self._report(pending, bar)
                pending = _Step(step, metrics, batch, _end_of(metrics, self.clock.now))
                evaluates = step == config.train_steps or _due(step, config.eval_period)
                stop = preemption.reached(step)
                saves = evaluates or stop or _due(step, config.checkpoint_period)
                if saves:
                    # A state is saved or scored only once its own step is known to be finite.
                    self._report(pending, bar)
                    pending = None
                    if processes.is_lead():
                        self.costs.note(step, self.clock.sum(TRAINING))
                    accuracy = self._evaluate(state, step, evals, bar) if evaluates else None
                    self._save(state, step, evals, accuracy)
                    self.clock.lap("checkpoint")
                    self.goodput.note(step, saved=True)
                if stop:
                    break
            # In here, since SIGTERM outside would leave the last checkpoint half written.
            manager.wait(self.checkpoints)
            self.clock.lap("checkpoint")
            self.goodput.note(step, saved=True)
        return Outcome(step, stop and step < config.train_steps, tuple(evals))

    def _compile(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """The first step; in its sums it would wait for the process that compiles longest."""
        dispatched = self.train_step(state, batch)
        processes.meet()
        return dispatched

    def _stop_early(self, evals: list[tuple[int, float]]) -> bool:
        """Whether the last `early_stop_evals` evaluations brought nothing above the best before."""
        patience = self.config.early_stop_evals
        if not patience or len(evals) <= patience:
            return False
        before = max(accuracy for _, accuracy in evals[:-patience])
        return all(accuracy <= before for _, accuracy in evals[-patience:])

    def _evaluate(
        self, state: TrainState, step: int, evals: list[tuple[int, float]], bar: tqdm
    ) -> float:
        """The label accuracy on validation, which is added to `evals` and shown."""
        accuracy = self.evaluate(state.params, step)
        evals.append((step, accuracy))
        if processes.is_lead():
            bar.write(f"step {step}: validation label accuracy {accuracy:.2%}")
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

    def _report(self, done: _Step, bar: tqdm) -> None:
        """Reads a step's metrics from the device, checks them, logs them and moves the bar."""
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
            f"{self.checkpoints.latest_step()}; lower LEARNING_RATE, set CLIP_NORM, or look at "
            "the examples, and run the same command in a new MODEL_DIR"
        )
