"""The parameters that a fresh run starts from (INITIAL_CHECKPOINT)."""

from __future__ import annotations

from typing import Any

from etils import epath

from stepdistill_jax.checkpoint import restore
from stepdistill_jax.spec import InputError

PyTree = Any


def check_readable(name: str | None) -> None:
    """Refuses at once what `initial_params` would refuse after the data has been prepared.

    Raises:
        InputError: INITIAL_CHECKPOINT names Hugging Face weights.
    """
    if name is not None and name.startswith("hf:"):
        raise InputError(
            f"INITIAL_CHECKPOINT={name!r}: reading Hugging Face weights is not part of this "
            "version; set INITIAL_CHECKPOINT=None to train from scratch, or to the folder of a run "
            "of this package"
        )


def initial_params(name: str | None, abstract_params: PyTree) -> PyTree | None:
    """Reads the parameters that INITIAL_CHECKPOINT names; None where training is from scratch.

    Args:
        name: None, or the folder of a run of this package: its best step on validation is taken,
            else its latest; ``FOLDER/checkpoints/STEP`` names one step.
        abstract_params: shapes and shardings of the model's parameters.

    Raises:
        InputError: what `name` says cannot be read.
    """
    if name is None:
        return None
    check_readable(name)
    folder = epath.Path(name)
    if folder.parent.name == "checkpoints" and folder.name.isdigit():
        return restore.restore_params(folder.parent.parent, int(folder.name), abstract_params)
    steps = restore.available_steps(folder)
    if not steps:
        raise InputError(
            f"INITIAL_CHECKPOINT={name!r}: no checkpoint lies in {folder / 'checkpoints'}; name "
            "the folder of a run, or set INITIAL_CHECKPOINT=None to train from scratch"
        )
    best = restore.best_step(folder)
    return restore.restore_params(folder, steps[-1] if best is None else best, abstract_params)
