"""A profiler trace of chosen steps, for TensorBoard's or XProf's trace viewer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import jax
from etils import epath
from tqdm import tqdm

from stepdistill_jax.parallel import cluster
from stepdistill_jax.spec import PROFILE_FOLDER
from stepdistill_jax.train.clock import Clock


class StepTrace:
    """Traces the steps from the first to the last chosen one, and nothing before or after.

    The trace starts and ends with idle devices, so it holds whole steps. Every host writes its own
    file under ``MODEL_DIR/profile``: only side by side do they show how hosts wait for each other.
    """

    def __init__(self, model_dir: epath.PathLike, steps: tuple[int, ...], clock: Clock) -> None:
        """`steps` are the first and the last step to trace; () = none. Tracing is timed apart."""
        self._folder = str(epath.Path(model_dir) / PROFILE_FOLDER)
        self._steps = steps
        self._clock = clock
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Encloses the call of step `number`; the body accounts for its own time."""
        if not self._steps or not self._steps[0] <= number <= self._steps[1]:
            yield
            return
        if not self._tracing:
            _wait_for_devices()
            self._clock.lap("step")
            jax.profiler.start_trace(self._folder)
            self._tracing = True
            self._clock.lap("profile")
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number == self._steps[1]:
            _wait_for_devices()
            self.close()

    def close(self) -> None:
        """Ends and writes the trace, if one is running."""
        if not self._tracing:
            return
        self._clock.lap("step")
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            cluster.say(f"the trace is in {self._folder}")
        except jax.errors.JaxRuntimeError as error:
            # A trace that cannot be written does not end the training.
            tqdm.write(f"no trace in {self._folder}: {error}", file=sys.stderr)
        self._clock.lap("profile")


def _wait_for_devices() -> None:
    jax.block_until_ready(jax.live_arrays())
