"""Orbax checkpoints of a training run: state, data position and run identity, all or nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.checkpoint.zarr_arrays import in_short
from stepdistill_jax.spec import CHECKPOINTS, InputError

METRIC = "validation_accuracy"

PyTree = Any


# Stands for the accuracy of a step that was not scored: Orbax wants a number for each.
NOT_SCORED = -1.0


def best_key(metrics: dict[str, float]) -> tuple[float, float]:
    """Sort key under which the largest is the best: accuracy, then the earlier step.

    Steps that were not scored come last, the latest of them first, which is kept anyway.
    """
    accuracy, step = metrics[METRIC], metrics["step"]
    return (accuracy, step) if accuracy == NOT_SCORED else (accuracy, -step)


def checkpoints_folder(model_dir: epath.PathLike) -> epath.Path:
    """``MODEL_DIR/checkpoints``, absolute, as Orbax wants it."""
    path = os.fspath(model_dir)
    return epath.Path(path if storage.is_remote(path) else os.path.abspath(path)) / CHECKPOINTS


class _Checkpoints(ocp.CheckpointManager):
    """Orbax's, but that it leaves the question of preemption to the loop."""

    def reached_preemption(self, step: int) -> bool:
        """Never.

        JAX takes each question for word of the step that a process is at, and has all stop after
        the latest. Orbax asks once more about a step when it is written, long after the loop has
        gone on: the processes would be told to stop at a step that this one has passed.
        """
        del step
        return False


@contextlib.contextmanager
def manager(
    model_dir: epath.PathLike, *, keep: int = 2, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """Orbax manager of ``MODEL_DIR/checkpoints``: the latest `keep` and the best on validation.

    Leaving it waits until what was saved is on disk.

    Args:
        model_dir: local or ``gs://`` folder of the run.
        keep: how many of the latest steps survive, besides the best one.
        read_only: for readers beside a running trainer: nothing is created or deleted. Of several
            processes one may read alone, once all have their devices; a manager that writes is
            made by all.

    Raises:
        InputError: a checkpoint cannot be written.
    """
    policy = ocp.checkpoint_managers.AnyPreservationPolicy(
        [
            ocp.checkpoint_managers.LatestN(keep),
            ocp.checkpoint_managers.BestN(
                get_metric_fn=best_key,
                n=1,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        # Orbax writes and reads metrics only where a best_fn is named.
        best_fn=best_key,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        # It would wait for all processes, and a reader may be the lead alone.
        save_root_metadata=not read_only,
    )
    folder = checkpoints_folder(model_dir)
    checkpoints = _Checkpoints(folder, item_names=("state", "data", "identity"), options=options)
    try:
        yield checkpoints
        wait(checkpoints)
    finally:
        # A save that failed has been reported, and would be once more.
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
    """Starts writing step `step`; training goes on while Orbax writes.

    Args:
        checkpoints: from `manager`.
        step: optimizer steps done.
        state: sharded train state.
        data_state: the Grain iterator's state after the batch of `step`.
        identity: what run this is, as JSON.
        accuracy: label accuracy on validation at this step, where it was measured.

    Raises:
        InputError: this or the checkpoint before cannot be written.
    """
    with _writable(checkpoints):
        checkpoints.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data_state),
                identity=ocp.args.JsonSave(identity),
            ),
            metrics={METRIC: NOT_SCORED if accuracy is None else accuracy, "step": step},
            force=True,  # save at this very step, whatever Orbax's own intervals say
        )


def save_params(model_dir: epath.PathLike, step: int, params: PyTree) -> None:
    """Writes a checkpoint of parameters alone, which `restore.restore_params` reads.

    Args:
        model_dir: a folder without a checkpoint of `step`.
        step: the checkpoint's number.
        params: tree of arrays, on any mesh.

    Raises:
        InputError: it cannot be written.
    """
    with manager(model_dir) as checkpoints, _writable(checkpoints):
        checkpoints.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave({"params": params})),
            metrics={METRIC: NOT_SCORED, "step": step},
            force=True,
        )


def restore(
    checkpoints: ocp.CheckpointManager, step: int, abstract_state: PyTree
) -> tuple[PyTree, dict[str, Any], dict[str, Any]]:
    """Reads the whole of one step back, onto the shardings of `abstract_state`.

    Returns:
        The train state, the data iterator's state and the run's identity.

    Raises:
        InputError: a file of the step is missing or damaged, or the shapes differ.
        UnavailableError: the store gives no answer.
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
    return restored["state"], restored["data"], restored["identity"]


@contextlib.contextmanager
def _writable(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Turns what Orbax and tensorstore raise on a full or forbidden disk into one clear error."""
    try:
        yield
    except (OSError, ValueError) as error:
        storage.raise_failure(error)
        reason = in_short(error)
        if not isinstance(error, OSError) and not _DISK_ERROR.search(reason):
            raise
        raise InputError(
            f"{checkpoints.directory}: a checkpoint cannot be written: {reason}; make room or set "
            f"another MODEL_DIR, and run the same command again: it continues from step "
            f"{checkpoints.latest_step() or 0}"
        ) from error


# tensorstore's words for a disk or store that is full, read-only or forbidden.
_DISK_ERROR = re.compile(
    "RESOURCE_EXHAUSTED|PERMISSION_DENIED|No space left|Read-only|UNAUTHENTICATED"
)


@contextlib.contextmanager
def readable(folder: epath.Path) -> Iterator[None]:
    """Turns whatever Orbax and tensorstore raise on a damaged step into one clear error."""
    try:
        yield
    except (InputError, jax.errors.JaxRuntimeError):
        raise  # the second is a device's error, such as no memory, not the file's
    except Exception as error:  # a missing array chunk comes as a bare Exception
        # The abandoned reads would each log a stack trace of their own.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        storage.raise_failure(error)  # what cannot be reached may be whole
        raise InputError(
            f"{folder}: this checkpoint cannot be read: {in_short(error)}; copy the "
            "step's folder back, or delete it so that the run continues from the step before"
        ) from error
