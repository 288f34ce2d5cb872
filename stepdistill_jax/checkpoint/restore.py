"""The steps of a run's checkpoints, and their parameters without the optimizer state."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from stepdistill_jax.checkpoint import checksums, manager, names
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params, logical_axes
from stepdistill_jax.parallel.rules import param_shardings
from stepdistill_jax.spec import InputError

PyTree = Any


def available_steps(model_dir: epath.PathLike) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    folder = manager.checkpoints_folder(model_dir)
    if not folder.exists():
        return []
    return sorted(ocp.utils.checkpoint_steps(folder))


def best_step(model_dir: epath.PathLike) -> int | None:
    """The step with the highest validation accuracy, the earlier on a tie; None if none has one."""
    with manager.manager(model_dir, read_only=True) as checkpoints:
        scored = []
        for step in available_steps(model_dir):
            metrics = checkpoints.metrics(step)
            if metrics and metrics[manager.METRIC] != manager.NOT_SCORED:
                scored.append((manager.best_key(metrics), step))
    return max(scored)[1] if scored else None


def restore_params(model_dir: epath.PathLike, step: int, abstract_params: PyTree) -> PyTree:
    """Reads the parameters of one step, without optimizer state, onto any mesh.

    Args:
        model_dir: the run's folder.
        step: one of `available_steps`.
        abstract_params: tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
        InputError: the step or a file is missing or damaged, or it has another model's shapes.
    """
    check_shapes(model_dir, step, abstract_params)
    folder = manager.checkpoints_folder(model_dir) / str(step)
    with manager.readable(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item={"params": abstract_params},
                restore_args=ocp.checkpoint_utils.construct_restore_args(
                    {"params": abstract_params}
                ),
                partial_restore=True,
            ),
        )
    checksums.compare(folder, checksums.of_arrays({"params": restored["params"]}))
    return restored["params"]


def check_shapes(model_dir: epath.PathLike, step: int, abstract_params: PyTree) -> None:
    """Compares the parameters of one step with a model's; reads no array.

    Raises:
        InputError: the step is missing, or is of another model.
    """
    steps = available_steps(model_dir)
    folder = manager.checkpoints_folder(model_dir) / str(step)
    if step not in steps:
        raise InputError(f"{folder}: no such step: got {step}, expected one of {steps}.")
    # A Checkpointer would report an unreachable store as a missing index.
    reader = ocp.PyTreeCheckpointHandler()
    with manager.readable(folder), contextlib.closing(reader):
        stored = reader.metadata(folder / "state").tree["params"]
    shapes = {name: tuple(leaf.shape) for name, leaf in names.flat(stored).items()}
    expected = {name: tuple(leaf.shape) for name, leaf in names.flat(abstract_params).items()}
    problems = [
        f"{name}: got {shapes.get(name, 'nothing')}, expected {shape}"
        for name, shape in expected.items()
        if shapes.get(name) != shape
    ]
    if problems:
        raise InputError(
            f"{folder}: the checkpoint is of another model: {'; '.join(problems[:5])}"
            f"{f' and {len(problems) - 5} more' if len(problems) > 5 else ''}. "
            "Use the config.gin beside it."
        )


def sharded_params(model: T5Config, mesh: Mesh) -> Any:
    """Shapes and shardings of the model's parameters, for `restore_params`."""
    shapes = abstract_params(model)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        param_shardings(logical_axes(model), shapes, mesh),
    )
