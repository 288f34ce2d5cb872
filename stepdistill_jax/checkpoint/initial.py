"""The parameters that a fresh run starts from (INITIAL_CHECKPOINT)."""

from __future__ import annotations

from typing import Any

from etils import epath

from stepdistill_jax import hub
from stepdistill_jax.checkpoint import fill, hf, restore, t5x_native
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.spec import CHECKPOINTS, InputError

PyTree = Any


def check(name: str | None, model: T5Config, vocabulary: str) -> None:
    """Refuses at once what `initial_params` would refuse after the data has been prepared.

    Args:
        name: INITIAL_CHECKPOINT, see `initial_params`.
        model: the run's model; a Hugging Face checkpoint must be of it.
        vocabulary: VOCABULARY; a Hugging Face checkpoint's tokenizer must be it.

    Raises:
        InputError: the checkpoint is missing, damaged, or of another model or vocabulary.
    """
    if name is None:
        return
    if _is_hf(name):
        checkpoint = hf.Checkpoint(name)
        checkpoint.check_model(model)
        checkpoint.check_vocabulary(load_vocabulary(vocabulary), vocabulary)
        fill.check(checkpoint, "hf", abstract_params(model))
    elif t5x_native.is_checkpoint(epath.Path(name)):
        t5x = t5x_native.open_checkpoint(epath.Path(name))
        fill.check(t5x, t5x.form, abstract_params(model))
    else:
        restore.check_shapes(*_run_and_step(name), abstract_params(model))


def initial_params(name: str | None, abstract: PyTree) -> PyTree | None:
    """Reads the parameters that INITIAL_CHECKPOINT names; None where training is from scratch.

    Args:
        name: None; ``hf:OWNER/NAME`` or the folder of a Hugging Face checkpoint; the folder of a
            T5X checkpoint; or the folder of a run of this package: its best step on validation is
            taken, else its latest, ``FOLDER/checkpoints/STEP`` names one step.
        abstract: shapes and shardings of the model's parameters.

    Raises:
        InputError: what `name` says cannot be read.
    """
    if name is None:
        return None
    if _is_hf(name):
        return fill.fill(hf.Checkpoint(name), "hf", abstract)
    if t5x_native.is_checkpoint(epath.Path(name)):
        t5x = t5x_native.open_checkpoint(epath.Path(name))
        return fill.fill(t5x, t5x.form, abstract)
    return restore.restore_params(*_run_and_step(name), abstract)


def _is_hf(name: str) -> bool:
    return name.startswith(hub.PREFIX) or hf.is_checkpoint(epath.Path(name))


def _run_and_step(name: str) -> tuple[epath.Path, int]:
    """The run's folder and step that the name of one of our checkpoints means."""
    folder = epath.Path(name)
    if folder.parent.name == CHECKPOINTS and folder.name.isdigit():
        return folder.parent.parent, int(folder.name)
    steps = restore.available_steps(folder)
    if not steps:
        raise InputError(
            f"INITIAL_CHECKPOINT={name!r}: no checkpoint lies there: neither a run of this package "
            "(checkpoints/STEP), nor a Hugging Face model (config.json), nor one of T5X "
            "(checkpoint_STEP); correct the name, write hf:OWNER/NAME for one on the hub, or set "
            "INITIAL_CHECKPOINT=None to train from scratch"
        )
    best = restore.best_step(folder)
    return folder, steps[-1] if best is None else best
