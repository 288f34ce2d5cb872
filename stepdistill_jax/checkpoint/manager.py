"""Orbax checkpoints of a training run: train state, data position and run identity."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.checkpoint import checksums
from stepdistill_jax.checkpoint.zarr_arrays import in_short
from stepdistill_jax.spec import CHECKPOINTS, InputError

METRIC = "validation_accuracy"

PyTree = Any

# Items of a checkpoint that hold JSON.
_RECORDS = ("data", "identity")
# The accuracy of a step that was not scored; Orbax needs a number for every step.
NOT_SCORED = -1.0


def best_key(metrics: dict[str, float]) -> tuple[float, float]:
    """Sort key, the largest is the best: accuracy, then the earlier step.

    Steps without a score come last, the latest of them first.
    """
    accuracy, step = metrics[METRIC], metrics["step"]
    return (accuracy, step) if accuracy == NOT_SCORED else (accuracy, -step)


def checkpoints_folder(model_dir: epath.PathLike) -> epath.Path:
    """``MODEL_DIR/checkpoints``, absolute, as Orbax requires."""
    path = os.fspath(model_dir)
    return epath.Path(path if storage.is_remote(path) else os.path.abspath(path)) / CHECKPOINTS


class _Checkpoints(ocp.CheckpointManager):
    """Orbax's manager, without its check for preemption: the train loop checks."""

    def reached_preemption(self, step: int) -> bool:
        """Always False.

        JAX takes every check as a report of this process's step and stops all processes after the
        latest step reported. Orbax checks again when a step is written, after the loop has passed
        it: the processes would have to stop at a step in the past.
        """
        del step
        return False

    def metrics(self, step: int) -> PyTree | None:
        """The step's accuracy; a damaged record is rebuilt from the evaluations saved with it."""
        folder = epath.Path(self.directory) / str(step)
        try:
            metrics = super().metrics(step)
            if metrics is not None:
                checksums.compare(folder, {"metrics": checksums.of_record(metrics)})
                best_key(metrics)
        except (ValueError, KeyError, TypeError):  # an InputError is a ValueError
            absl_logging.warning(
                "%s: the record of the accuracy is damaged; it is rebuilt from the evaluations.",
                folder,
            )
            accuracy = _evaluations(folder).get(step, NOT_SCORED)
            return {METRIC: accuracy, "step": step}
        return metrics


def _evaluations(folder: epath.Path) -> dict[int, float]:
    """Step -> validation accuracy, as a step's data item holds them; {} where it is damaged."""
    try:
        evals = json.loads((folder / "data" / "metadata").read_bytes())["evals"]
        return {int(step): float(accuracy) for step, accuracy in evals}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@contextlib.contextmanager
def manager(
    model_dir: epath.PathLike, *, keep: int = 2, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """Orbax manager of ``MODEL_DIR/checkpoints``; keeps the latest `keep` steps and the best one.

    On exit it waits until all saves are on disk.

    Args:
        model_dir: local or ``gs://`` folder of the run.
        keep: number of latest steps to keep, besides the best on validation.
        read_only: creates and deletes nothing, for readers beside a running trainer. One process
            may open it alone, once all processes have their devices. All processes must open a
            manager that writes.

    Raises:
        InputError: a checkpoint cannot be written.
    """
    policy = ocp.checkpoint_managers.AnyPreservationPolicy(
        [
            ocp.checkpoint_managers.LatestN(keep),
            ocp.checkpoint_managers.BestN(get_metric_fn=best_key, n=1),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        # Without best_fn Orbax neither writes nor reads metrics.
        best_fn=best_key,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        # Saving it waits for all processes, but the lead may read alone.
        save_root_metadata=not read_only,
    )
    folder = checkpoints_folder(model_dir)
    checkpoints = _Checkpoints(
        folder, item_names=(*_RECORDS, "state", checksums.ITEM), options=options
    )
    try:
        yield checkpoints
        wait(checkpoints)
    finally:
        # A failed save was reported above; closing would raise it again.
        with contextlib.suppress(Exception):
            checkpoints.close()


def wait(checkpoints: ocp.CheckpointManager) -> None:
    """Waits until every checkpoint is on disk.

    Raises:
        InputError: one cannot be written.
    """
    with _writable(checkpoints):
        checkpoints.wait_until_finished()


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: PyTree,
    data_state: dict[str, Any],
    identity: dict[str, Any],
    accuracy: float | None = None,
) -> None:
    """Starts writing `step`; training continues while Orbax writes.

    Args:
        checkpoints: from `manager`.
        step: optimizer steps done.
        state: sharded train state.
        data_state: the Grain iterator's state after the batch of `step`.
        identity: JSON that identifies the run.
        accuracy: label accuracy on validation at this step; None = not measured.

    Raises:
        InputError: this or the previous checkpoint cannot be written.
    """
    metrics = {METRIC: NOT_SCORED if accuracy is None else accuracy, "step": step}
    sums = checksums.of_arrays(state)
    for name, value in (("data", data_state), ("identity", identity), ("metrics", metrics)):
        sums[name] = checksums.of_record(value)
    with _writable(checkpoints):
        checkpoints.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data_state),
                identity=ocp.args.JsonSave(identity),
                checksums=ocp.args.JsonSave(sums),
            ),
            metrics=metrics,
            force=True,  # ignores Orbax's save intervals
        )


def save_params(model_dir: epath.PathLike, step: int, params: PyTree) -> None:
    """Writes a checkpoint of parameters only, which `restore.restore_params` reads.

    Args:
        model_dir: a folder without a checkpoint of `step`.
        step: the checkpoint's number.
        params: tree of arrays, on any mesh.

    Raises:
        InputError: the folder cannot be written.
    """
    state, metrics = {"params": params}, {METRIC: NOT_SCORED, "step": step}
    sums = checksums.of_arrays(state) | {"metrics": checksums.of_record(metrics)}
    with manager(model_dir) as checkpoints, _writable(checkpoints):
        checkpoints.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), checksums=ocp.args.JsonSave(sums)
            ),
            metrics=metrics,
            force=True,
        )


def restore(
    checkpoints: ocp.CheckpointManager, step: int, abstract_state: PyTree
) -> tuple[PyTree, dict[str, Any], dict[str, Any]]:
    """Reads one step onto the shardings of `abstract_state`.

    Returns:
        The train state, the data iterator's state and the run's identity.

    Raises:
        InputError: a file of the step is missing or damaged, or the shapes differ.
        UnavailableError: the store does not respond.
    """
    folder = epath.Path(checkpoints.directory) / str(step)
    with readable(folder):
        restored = checkpoints.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state),
                data=ocp.args.JsonRestore(),
                identity=ocp.args.JsonRestore(),
            ),
        )
    sums = checksums.of_arrays(restored["state"])
    sums |= {name: checksums.of_record(restored[name]) for name in _RECORDS}
    checksums.compare(folder, sums)
    return restored["state"], restored["data"], restored["identity"]


@contextlib.contextmanager
def _writable(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Turns errors of Orbax and tensorstore on a full or read-only disk into an `InputError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        storage.raise_failure(error)
        reason = storage.disk_failure(error)
        if not reason:
            if not isinstance(error, OSError) and not _STORE_ERROR.search(str(error)):
                raise
            reason = in_short(error)
        raise InputError(
            f"{checkpoints.directory}: cannot write a checkpoint: {reason}. Free disk space or set "
            "another MODEL_DIR, then run the same command again: it continues from step "
            f"{checkpoints.latest_step() or 0}."
        ) from error


# What tensorstore reports for a store that is full or forbidden.
_STORE_ERROR = re.compile("RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED")


@contextlib.contextmanager
def readable(folder: epath.Path) -> Iterator[None]:
    """Turns errors of Orbax and tensorstore on a damaged step into an `InputError`."""
    try:
        yield
    except (InputError, jax.errors.JaxRuntimeError):
        raise  # a JaxRuntimeError is about a device, as out of memory, not about the file
    except Exception as error:  # a missing array chunk comes as a bare Exception
        # Each abandoned read would log a stack trace.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        storage.raise_failure(error)  # an unreachable checkpoint may be intact
        raise InputError(
            f"{folder}: cannot read this checkpoint: {in_short(error)}. Copy the step's folder "
            "back, or delete it: the run then continues from the previous step."
        ) from error
