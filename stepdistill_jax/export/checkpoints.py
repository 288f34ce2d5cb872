"""Checkpoints of every form: a run's, Hugging Face's and T5X's, opened and listed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from stepdistill_jax.checkpoint import fill, hf, restore, sizes, t5x_native
from stepdistill_jax.checkpoint.run_arrays import RunArrays
from stepdistill_jax.eval.follow import steps_to_score
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.run import load
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import CHECKPOINTS, CONFIG_FILE, InputError

PyTree = Any

# Form of a checkpoint -> its description in a listing.
FORMS = {
    "orbax": "a run of this package (Orbax)",
    "hf": "Hugging Face",
    "t5x": "T5X, unrolled layers",
    "t5x_scanned": "T5X, scanned layers",
}


@dataclasses.dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint whose shapes are known and whose arrays are read on demand.

    Attributes:
        form: a key of `FORMS`.
        step: optimizer steps done; 0 if the checkpoint does not record it.
        model: the model it holds.
        arrays: its parameters: place, shapes and values.
        run: the run's configuration; None if the checkpoint has none.
    """

    form: str
    step: int
    model: T5Config
    arrays: RunArrays | hf.HFCheckpoint | t5x_native.T5XCheckpoint
    run: RunConfig | None = None

    @property
    def parameter_count(self) -> int:
        """Number of parameters of the model."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(self.model)))

    def params(self) -> PyTree:
        """The parameters: a run's are read one by one on use, others are all in host memory."""
        if isinstance(self.arrays, RunArrays):
            return self.arrays.tree()
        return fill.fill(self.arrays, abstract_params(self.model))

    def sharded_params(self) -> PyTree:
        """The parameters, sharded over all devices."""
        abstract = restore.sharded_params(self.model, make_mesh(MeshConfig()))
        if isinstance(self.arrays, RunArrays):
            folder = epath.Path(self.arrays.where)
            return restore.restore_params(folder.parent.parent, int(folder.name), abstract)
        return fill.fill(self.arrays, abstract)


def open_checkpoint(
    name: str, overrides: Sequence[str] = (), *, scan_layers: bool = True, listing: bool = False
) -> OpenedCheckpoint:
    """Opens a checkpoint and compares its shapes with its model's.

    Args:
        name: the folder of a run or of one of its steps, of a Hugging Face or T5X checkpoint, or
            ``hf:OWNER/NAME``.
        overrides: ``NAME=value`` of macros; EVAL_STEP chooses a run's step.
        scan_layers: stack the layers of a Hugging Face or T5X checkpoint.
        listing: open the latest step of a run that has no score yet.

    Raises:
        InputError: it is no checkpoint, is damaged, or contradicts its own config.
    """
    reader = fill.open_reader(name)
    if reader is None:
        return _open_run(epath.Path(name), overrides, listing)
    if isinstance(reader, hf.HFCheckpoint):
        model, step = T5Config(**reader.fields, scan_layers=scan_layers), 0
    else:
        model, step = sizes.infer(reader.shapes, reader.where, scan_layers), reader.step or 0
    fill.check(reader, abstract_params(model))
    return OpenedCheckpoint(reader.form, step, model, reader)


def _open_run(folder: epath.Path, overrides: Sequence[str], listing: bool) -> OpenedCheckpoint:
    """The step of a run that the folder or EVAL_STEP names."""
    step: int | None = None
    if folder.parent.name == CHECKPOINTS and folder.name.isdigit():
        folder, step = folder.parent.parent, int(folder.name)
    steps = restore.available_steps(folder)
    if not steps:
        raise InputError(
            f"{folder}: no checkpoint in this folder: expected checkpoints/STEP (a run), "
            "config.json (Hugging Face) or checkpoint_STEP (T5X). Correct the name, or write "
            "hf:OWNER/NAME for the hub."
        )
    run = load.read(folder, overrides) if (folder / CONFIG_FILE).exists() else None
    if step is None:
        if run is None or (listing and restore.best_step(folder) is None):
            step = steps[-1]
        elif run.eval.step == "all":
            raise InputError(
                "EVAL_STEP='all': a conversion takes one step. Set EVAL_STEP to best, latest or a "
                "number."
            )
        else:
            ((step, _),) = steps_to_score(folder, dataclasses.replace(run.eval, watch=False))
    arrays = RunArrays(folder, step)
    model = sizes.infer(arrays.shapes, arrays.where) if run is None else run.model
    if "encoder/layers_0/mlp/wo/kernel" in arrays.shapes:
        model = dataclasses.replace(model, scan_layers=False)
    restore.check_shapes(folder, step, abstract_params(model))
    return OpenedCheckpoint("orbax", step, model, arrays, run)


def listing(checkpoint: OpenedCheckpoint) -> str:
    """Every array with shape, dtype and size, and the totals."""
    arrays = checkpoint.arrays
    shapes = arrays.shapes
    # An empty slice has the dtype of its array.
    dtypes = {
        key: arrays.read(key, tuple(slice(0, 0) for _ in shape)).dtype
        for key, shape in shapes.items()
    }
    steps = ""
    if isinstance(arrays, RunArrays):
        folder = epath.Path(arrays.where).parent.parent
        best = restore.best_step(folder)
        steps = f" of {restore.available_steps(folder)}, best on validation {best}"
    lines = [
        f"{arrays.where}: {FORMS[checkpoint.form]}, step {checkpoint.step}{steps}",
        f"model: {load.model_name(checkpoint.model)}",
    ]
    width = max(map(len, shapes))
    for key, shape in sorted(shapes.items()):
        size = math.prod(shape)
        lines.append(
            f"  {key:<{width}}  {'x'.join(map(str, shape)):>16}  {dtypes[key]!s:<9} {size:>14,}"
        )
    total = sum(math.prod(shape) for shape in shapes.values())
    size_bytes = sum(math.prod(shape) * dtypes[key].itemsize for key, shape in shapes.items())
    lines.append(
        f"{len(shapes):,} arrays, {total:,} elements, {size_bytes / 2**20:,.1f} MiB; the model has "
        f"{checkpoint.parameter_count:,} parameters"
    )
    return "\n".join(lines)
