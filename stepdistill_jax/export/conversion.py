"""Writes a checkpoint in another form, completely or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator

from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.checkpoint import fill, manager, t5x_native
from stepdistill_jax.checkpoint.names import Form
from stepdistill_jax.export import hf_folder
from stepdistill_jax.export.checkpoints import OpenedCheckpoint
from stepdistill_jax.spec import InputError


def convert(checkpoint: OpenedCheckpoint, form: str, out: str) -> str:
    """Writes `checkpoint` to `out`; the folder appears only when it is complete.

    Args:
        checkpoint: to convert.
        form: a key of `checkpoints.FORMS`.
        out: a folder that does not exist or is empty.

    Returns:
        A short description of what was written.

    Raises:
        InputError: the form cannot hold the model, or the folder is not empty or not writable.
    """
    with _staged(epath.Path(out), form) as folder:
        if form == "hf":
            return hf_folder.write(folder, checkpoint)
        if form == "orbax":
            manager.save_params(folder, checkpoint.step, checkpoint.sharded_params())
            return f"checkpoints/{checkpoint.step}, parameters only: INITIAL_CHECKPOINT={out!r}"
        t5x_form: Form = "t5x" if form == "t5x" else "t5x_scanned"
        arrays = fill.arrays(checkpoint.params(), t5x_form)
        name = f"checkpoint_{checkpoint.step}"
        t5x_native.write(folder / name, checkpoint.step, arrays, checkpoint.model.num_heads)
        return f"{name}: T5X's native form, without optimizer state"


@contextlib.contextmanager
def _staged(out: epath.Path, form: str) -> Iterator[epath.Path]:
    """A temporary folder for `form`, which becomes `out` on success.

    Raises:
        InputError: `out` is not empty.
    """
    storage.check("--out", out, write=True)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out={out}: the folder is not empty. Name a new folder or empty it.")
    if storage.is_remote(out):
        if form == "hf":  # Hugging Face's libraries write to local disks only
            with tempfile.TemporaryDirectory() as disk:
                yield epath.Path(disk)
                for path in epath.Path(disk).iterdir():
                    path.copy(out / path.name)
        else:
            yield out  # object stores cannot rename a folder
        return
    out = epath.Path(os.path.abspath(out))
    stage = out.parent / f".{out.name}.{os.getpid()}.{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        yield stage
        if out.exists():
            out.rmdir()
        stage.rename(out)
    finally:
        if stage.exists():
            stage.rmtree()
