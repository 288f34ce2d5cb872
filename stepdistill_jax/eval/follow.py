"""The steps of a run that EVAL_STEP names, now or while training continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from etils import epath

from stepdistill_jax.checkpoint.restore import available_steps, best_step
from stepdistill_jax.parallel import processes
from stepdistill_jax.run.eval_config import EvalConfig
from stepdistill_jax.run.results import NOT_SELECTED, VALIDATION
from stepdistill_jax.spec import FINISHED_FILE, NON_FINITE_FILE, InputError


def steps_to_score(
    model_dir: epath.PathLike, config: EvalConfig, sleep: Callable[[float], None] = time.sleep
) -> Iterator[tuple[int, str]]:
    """Yields (step, selected_on) of every step that EVAL_STEP names, each once, ascending.

    With WATCH it lists the checkpoints every WATCH_PERIOD seconds until the run has finished, and
    yields the best step only then, since it may change. The lead lists for all processes, as the
    run may save a step between two processes' listings.

    Raises:
        InputError: there is no such checkpoint.
    """
    steps = _steps_to_score(model_dir, config, sleep)
    while step := processes.from_lead(lambda: [*next(steps, ())]):
        number, selected_on = step
        yield number, selected_on


def _steps_to_score(
    model_dir: epath.PathLike, config: EvalConfig, sleep: Callable[[float], None]
) -> Iterator[tuple[int, str]]:
    seen: set[int] = set()
    while True:
        # Read before the checkpoints, so that the last listing has every step.
        end_files = [epath.Path(model_dir) / name for name in (FINISHED_FILE, NON_FINITE_FILE)]
        is_last = not config.watch or any(path.exists() for path in end_files)
        for step in _named(model_dir, config.step, is_last):
            if step not in seen:
                seen.add(step)
                yield step, VALIDATION if config.step == "best" else NOT_SELECTED
        if is_last:
            break
        sleep(config.watch_period)
    if not seen:
        raise InputError(
            f"{model_dir}: no checkpoint for EVAL_STEP={config.step!r}, there are steps "
            f"{available_steps(model_dir)}. Train first, or set EVAL_STEP to one of them."
        )


def _named(model_dir: epath.PathLike, name: int | str, is_last: bool) -> list[int]:
    steps = available_steps(model_dir)
    if name == "best":
        best = best_step(model_dir) if is_last else None
        return [] if best is None else [best]
    if name == "latest":
        return steps[-1:]
    return steps if name == "all" else [step for step in steps if step == name]
