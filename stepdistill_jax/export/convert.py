"""What `launch.convert` reads and writes: checkpoints of a run, of Hugging Face and of T5X."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from stepdistill_jax import hub, records, storage
from stepdistill_jax.checkpoint import fill, hf, manager, restore, sizes, t5x_native
from stepdistill_jax.checkpoint.names import Form
from stepdistill_jax.checkpoint.restore import sharded_params
from stepdistill_jax.checkpoint.run_arrays import RunArrays
from stepdistill_jax.data.vocabulary import SentencePieceVocabulary, Vocabulary, load_vocabulary
from stepdistill_jax.eval.build import run_facts
from stepdistill_jax.eval.follow import steps_to_score
from stepdistill_jax.export import hf_folder
from stepdistill_jax.export.model_card import Student, model_card
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.results import read_results
from stepdistill_jax.run.splits import tokens_before_label
from stepdistill_jax.spec import (
    CHECKPOINTS,
    CONFIG_FILE,
    EVAL_FOLDER,
    PREDICTIONS_FILE,
    PREFIXES,
    READER_METHODS,
    InputError,
)

PyTree = Any

CARD = "README.md"
# Form of a checkpoint -> how a listing calls it.
KINDS = {
    "orbax": "a run of this package (Orbax)",
    "hf": "Hugging Face",
    "t5x": "T5X, unrolled layers",
    "t5x_scanned": "T5X, scanned layers",
}
# Texts on which an exported tokenizer is tried.
_TRIED = 2000


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint, open.

    Attributes:
        kind: a key of `KINDS`.
        step: optimizer steps done; 0 where the checkpoint does not say.
        model: what it is a checkpoint of.
        arrays: where, shapes and dtypes of its parameters, and a way to read them.
        run: configuration of the run, where the checkpoint is of one.
    """

    kind: str
    step: int
    model: T5Config
    arrays: RunArrays | hf.Checkpoint | t5x_native.Checkpoint
    run: RunConfig | None = None

    def params(self) -> PyTree:
        """The parameters: of a run each read when it is used, of others all in host memory."""
        if isinstance(self.arrays, RunArrays):
            return self.arrays.tree()
        return fill.fill(self.arrays, _form(self.arrays), abstract_params(self.model))

    def sharded_params(self) -> PyTree:
        """The parameters, spread over all devices."""
        abstract = sharded_params(self.model, make_mesh(MeshConfig()))
        if isinstance(self.arrays, RunArrays):
            folder = epath.Path(self.arrays.where)
            return restore.restore_params(folder.parent.parent, int(folder.name), abstract)
        return fill.fill(self.arrays, _form(self.arrays), abstract)


def _form(arrays: hf.Checkpoint | t5x_native.Checkpoint) -> Form:
    return "hf" if isinstance(arrays, hf.Checkpoint) else arrays.form


def open_source(
    name: str, overrides: Sequence[str] = (), *, scan_layers: bool = True, listing: bool = False
) -> Source:
    """Opens what `name` means.

    Args:
        name: the folder of a run or of one of its steps, of a Hugging Face or T5X checkpoint, or
            ``hf:OWNER/NAME``.
        overrides: ``NAME=value`` of macros; EVAL_STEP chooses a run's step.
        scan_layers: of the parameters made from another form's checkpoint.
        listing: only shapes are asked for: a run that has not been scored yet will do.

    Raises:
        InputError: it is no checkpoint, is damaged, or contradicts its own config.
    """
    folder = epath.Path(name)
    if name.startswith(hub.PREFIX) or hf.is_checkpoint(folder):
        checkpoint = hf.Checkpoint(name)
        model = T5Config(**checkpoint.fields, scan_layers=scan_layers)
        fill.check(checkpoint, "hf", abstract_params(model))
        return Source("hf", 0, model, checkpoint)
    if t5x_native.is_checkpoint(folder):
        t5x = t5x_native.open_checkpoint(folder)
        model = sizes.infer(t5x.shapes, t5x.where, scan_layers)
        fill.check(t5x, t5x.form, abstract_params(model))
        return Source(t5x.form, t5x.step or 0, model, t5x)
    return _open_run(folder, overrides, listing)


def _open_run(folder: epath.Path, overrides: Sequence[str], listing: bool) -> Source:
    """The step of a run that EVAL_STEP, or the folder itself, names."""
    step: int | None = None
    if folder.parent.name == CHECKPOINTS and folder.name.isdigit():
        folder, step = folder.parent.parent, int(folder.name)
    present = restore.available_steps(folder)
    if not present:
        raise InputError(
            f"{folder}: no checkpoint lies there, neither of a run of this package "
            "(checkpoints/STEP) nor of Hugging Face (config.json) nor of T5X (checkpoint_STEP); "
            "correct the name, or write hf:OWNER/NAME for one on the hub"
        )
    run = None
    if (folder / CONFIG_FILE).exists():
        run = configs.read(folder, overrides)
    if step is None:
        if run is None or (listing and restore.best_step(folder) is None):
            step = present[-1]
        elif run.eval.step == "all":
            raise InputError("EVAL_STEP='all': one step is converted; name it, or set best")
        else:
            ((step, _),) = steps_to_score(folder, dataclasses.replace(run.eval, watch=False))
    arrays = RunArrays(folder, step)
    model = sizes.infer(arrays.shapes, arrays.where) if run is None else run.model
    if "encoder/layers_0/mlp/wo/kernel" in arrays.shapes:
        model = dataclasses.replace(model, scan_layers=False)
    restore.check_shapes(folder, step, abstract_params(model))
    return Source("orbax", step, model, arrays, run)


def convert(source: Source, form: str, out: str) -> str:
    """Writes a checkpoint in another form; all of it appears at once, or nothing.

    Args:
        source: what is converted.
        form: a key of `KINDS`.
        out: a folder that does not exist or is empty.

    Returns:
        What was written, in a few words.

    Raises:
        InputError: the form cannot hold it, or the folder is taken or cannot be written.
    """
    with _staged(epath.Path(out), form) as folder:
        if form == "hf":
            return _to_hf(source, folder)
        if form == "orbax":
            manager.save_params(folder, source.step, source.sharded_params())
            return f"checkpoints/{source.step}, parameters alone: INITIAL_CHECKPOINT={out!r}"
        t5x_form: Form = "t5x" if form == "t5x" else "t5x_scanned"
        arrays = fill.arrays(source.params(), t5x_form)
        name = f"checkpoint_{source.step}"
        t5x_native.write(folder / name, source.step, arrays, source.model.num_heads)
        return f"{name}: T5X's native form, without optimizer state"


@contextlib.contextmanager
def _staged(out: epath.Path, form: str) -> Iterator[epath.Path]:
    """A folder to write `form` into, which becomes `out` in the end.

    Raises:
        InputError: `out` holds something.
    """
    storage.check("--out", out, write=True)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out={out} is not empty; name a new folder, or empty this one")
    if storage.is_remote(out):
        if form == "hf":  # whose libraries know disks alone
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


def _to_hf(source: Source, folder: epath.Path) -> str:
    run = source.run
    if run is None:
        raise InputError(
            f"{source.arrays.where}: only a run with its {CONFIG_FILE} becomes a Hugging "
            "Face model, for that says which vocabulary it has; --to=orbax and --to=t5x need none"
        )
    vocabulary = load_vocabulary(run.tokens.vocabulary)
    run.check_vocabulary(vocabulary.size)
    hf_folder.write_json(folder / hf.CONFIG, hf_folder.config_json(source.model))
    generation = hf_folder.generation_json(_decode_length(run))
    hf_folder.write_json(folder / hf_folder.GENERATION_CONFIG, generation)
    hf_folder.write_tokenizer(folder, vocabulary, _input_length(run))
    rows = _predictions(run, source.step)
    label_prefix = PREFIXES[run.tokens.prefixes][0]
    tried = [*(label_prefix + _read_text(row) for row in rows), *_of_pieces(vocabulary)]
    compared = hf_folder.check_tokenizer(folder, vocabulary, tried)
    hf_folder.write_weights(folder, source.params())
    records.write_atomic(folder / CARD, _card(source, run, rows))
    return (
        f"config, weights, tokenizer (equal ids on {compared:,} texts) and {CARD} of step "
        f"{source.step}"
    )


def _read_text(row: Mapping[str, Any]) -> str:
    """What the student read of a row of predictions.jsonl, without the prefix."""
    return str(row.get("read", row["input"]))


def _predictions(run: RunConfig, step: int) -> list[dict[str, Any]]:
    """The first rows of a scored split with this step's predictions; [] where none was scored."""
    for split in ("test", "validation"):
        path = epath.Path(run.model_dir) / EVAL_FOLDER / split / str(step) / PREDICTIONS_FILE
        if path.exists():
            rows = itertools.islice(records.read_jsonl(path), _TRIED)
            return [row for _, row in rows]
    return []


def _of_pieces(vocabulary: Vocabulary) -> list[str]:
    """Texts in which every piece of a vocabulary occurs."""
    if not isinstance(vocabulary, SentencePieceVocabulary):
        return []
    ids = range(3, len(vocabulary.pieces()))
    return [vocabulary.decode_ids(ids[start : start + 16]) for start in range(0, len(ids), 16)]


def _decode_length(run: RunConfig) -> int:
    """Tokens that an answer may have, with what METHOD lets the student write before the label."""
    return tokens_before_label(run) + run.eval.max_decode_length


def _input_length(run: RunConfig) -> int:
    """Tokens that an input may have, with the rationale that the student of METHOD reads."""
    read = run.tokens.max_rationale_length if run.method in READER_METHODS else 0
    return run.tokens.max_input_length + read


def _card(source: Source, run: RunConfig, rows: Sequence[dict[str, Any]]) -> str:
    prefixes = run.tokens.prefix_texts()
    student = Student(
        facts=run_facts(run),
        step=source.step,
        alpha=run.objective.alpha if len(run.streams) > 1 else None,
        alpha_end=run.objective.alpha_end,
        initial=run.initial_checkpoint,
        parameters=count(source),
        prefixes=[prefixes[stream] for stream in run.streams if stream in prefixes],
        max_input_length=run.tokens.max_input_length,
        max_label_length=_decode_length(run),
        marker=run.views.answer_marker if run.method == "single_task" else None,
        example=(_read_text(rows[0]), rows[0]["prediction"]) if rows else None,
    )
    return model_card(student, read_results(run.model_dir))


def count(source: Source) -> int:
    """How many numbers the model has."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(source.model)))


def _others(source: Source) -> str:
    """The steps that lie beside a run's."""
    if not isinstance(source.arrays, RunArrays):
        return ""
    folder = epath.Path(source.arrays.where).parent.parent
    return f" of {restore.available_steps(folder)}, best on validation {restore.best_step(folder)}"


def listing(source: Source) -> str:
    """Every array of a checkpoint with shape and dtype, and what they come to."""
    shapes = source.arrays.shapes
    # A slice without elements has its array's dtype.
    dtypes = {
        key: source.arrays.read(key, tuple(slice(0, 0) for _ in shape)).dtype
        for key, shape in shapes.items()
    }
    lines = [
        f"{source.arrays.where}: {KINDS[source.kind]}, step {source.step}{_others(source)}",
        f"model: {configs.model_name(source.model)}",
    ]
    width = max(map(len, shapes))
    for key, shape in sorted(shapes.items()):
        size = math.prod(shape)
        lines.append(
            f"  {key:<{width}}  {'x'.join(map(str, shape)):>16}  {dtypes[key]!s:<9} {size:>14,}"
        )
    total = sum(math.prod(shape) for shape in shapes.values())
    held = sum(math.prod(shape) * dtypes[key].itemsize for key, shape in shapes.items())
    lines.append(
        f"{len(shapes):,} arrays, {total:,} numbers, {held / 2**20:,.1f} MiB; the model has "
        f"{count(source):,} parameters"
    )
    return "\n".join(lines)
