"""The parameters that a fresh run starts from (INITIAL_CHECKPOINT)."""

from __future__ import annotations

from typing import Any

from etils import epath

from stepdistill_jax.checkpoint import fill, hf, restore
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.spec import CHECKPOINTS, InputError

PyTree = Any


def check(name: str | None, model: T5Config, vocabulary: str) -> None:
    """Checks INITIAL_CHECKPOINT before the data is prepared; reads no array.

    Args:
        name: INITIAL_CHECKPOINT, see `initial_params`.
        model: must equal the checkpoint's.
        vocabulary: VOCABULARY; must equal a Hugging Face checkpoint's tokenizer.

    Raises:
        InputError: the checkpoint is missing or damaged, or has another model or vocabulary.
    """
    if name is None:
        return
    reader = fill.open_reader(name)
    if reader is None:
        restore.check_shapes(*_run_and_step(name), abstract_params(model))
        return
    if isinstance(reader, hf.HFCheckpoint):
        reader.check_model(model)
        reader.check_vocabulary(load_vocabulary(vocabulary), vocabulary)
    fill.check(reader, abstract_params(model))


def initial_params(name: str | None, abstract: PyTree) -> PyTree | None:
    """Reads the parameters of INITIAL_CHECKPOINT; None = train from scratch.

    Args:
        name: None; ``hf:OWNER/NAME`` or the folder of a Hugging Face checkpoint; the folder of a
            T5X checkpoint; the folder of a run (its best step on validation, else its latest), or
            ``FOLDER/checkpoints/STEP`` for one step.
        abstract: shapes and shardings of the model's parameters.

    Raises:
        InputError: the checkpoint is missing or damaged, or has another model.
    """
    if name is None:
        return None
    reader = fill.open_reader(name)
    if reader is None:
        return restore.restore_params(*_run_and_step(name), abstract)
    return fill.fill(reader, abstract)


def _run_and_step(name: str) -> tuple[epath.Path, int]:
    """The folder and step of a run's checkpoint."""
    folder = epath.Path(name)
    if folder.parent.name == CHECKPOINTS and folder.name.isdigit():
        return folder.parent.parent, int(folder.name)
    steps = restore.available_steps(folder)
    if not steps:
        raise InputError(
            f"INITIAL_CHECKPOINT={name!r}: no checkpoint in this folder: expected checkpoints/STEP "
            "(a run), config.json (Hugging Face) or checkpoint_STEP (T5X). Correct the name, write "
            "hf:OWNER/NAME for the hub, or set INITIAL_CHECKPOINT=None."
        )
    best = restore.best_step(folder)
    return folder, steps[-1] if best is None else best
