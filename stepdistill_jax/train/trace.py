"""A profiler trace of chosen steps, for TensorBoard's or XProf's trace viewer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from stepdistill_jax.parallel import processes
from stepdistill_jax.spec import PROFILE_FOLDER
from stepdistill_jax.train.clock import Clock


class StepTrace:
    """Runs steps, and traces those from the first to the last chosen one, nothing before or after.

    The device is let finish what it has before the trace begins and before it ends, so that the
    trace holds whole steps. Every host writes its own file under ``MODEL_DIR/profile``: where they
    wait for each other is seen only side by side.
    """

    def __init__(self, model_dir: epath.PathLike, steps: tuple[int, ...], clock: Clock) -> None:
        """Traces nothing yet.

        Args:
            model_dir: the run's folder.
            steps: first and last step to trace; () = none.
            clock: is told what the tracing itself takes.
        """
        self._folder = str(epath.Path(model_dir) / PROFILE_FOLDER)
        self._steps = steps
        self._clock = clock
        self._tracing = False
        self._compiled = False

    def run(self, train_step: Callable[[Any, Any], Any], step: int, state: Any, batch: Any) -> Any:
        """``train_step(state, batch)``, which is step number `step`."""
        phase, self._compiled = "step" if self._compiled else "compile", True
        if not self._steps or not self._steps[0] <= step <= self._steps[1]:
            return train_step(state, batch)
        if not self._tracing:
            jax.block_until_ready(state)
            self._clock.lap("step")
            jax.profiler.start_trace(self._folder)
            self._tracing = True
            self._clock.lap("profile")
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = train_step(state, batch)
        self._clock.lap(phase)
        if step == self._steps[1]:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Ends and writes the trace, where one is going on."""
        if not self._tracing:
            return
        self._clock.lap("step")
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            if processes.is_lead():
                tqdm.write(f"the trace is in {self._folder}")
        except jax.errors.JaxRuntimeError as error:
            # Hours of training are worth more than a trace that could not be written.
            tqdm.write(f"no trace in {self._folder}: {error}", file=sys.stderr)
        self._clock.lap("profile")
