"""Plans a run on a topology: its train step and label decode, or a search for mesh and batch."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import jax

from stepdistill_jax.data.packing import RowShape, row_shape
from stepdistill_jax.data.pipeline import EVAL_LENGTH_MULTIPLE
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.parallel.mesh import batch_shards, make_mesh
from stepdistill_jax.plan.compiler_process import CompilerCrashedError, CompilerProcess
from stepdistill_jax.plan.program import (
    DECODE,
    TRAIN,
    BatchShapes,
    Program,
    abstract_batch,
    decode_program,
    failed_program,
    padded,
    train_program,
)
from stepdistill_jax.plan.search import Candidate, candidates, search
from stepdistill_jax.plan.tables import Planned
from stepdistill_jax.plan.topology import Topology, topology
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.splits import open_split, tokens_before_label
from stepdistill_jax.spec import LABEL, InputError

_SHAPE = re.compile(r"\d+(x\d+){2,3}")
_SHAPE_EXAMPLE = ("64", "512", "32", "128")
# Tokens of a decoded label where no data says how long labels are.
_LABEL_TOKENS = 64


def batch_shapes(config: RunConfig, shape: str) -> BatchShapes:
    """The batches of a run's train step and label decode.

    Args:
        config: the run.
        shape: a train batch as ``ROWSxINPUTSxLABEL[xRATIONALE]``; "" = the shape of the run's data,
            which is opened.

    Raises:
        InputError: METHOD trains nothing, `shape` is malformed, or the data is unavailable.
    """
    if not config.streams:
        raise InputError(
            f"METHOD={config.method!r} trains nothing. Set a METHOD that does, as step_by_step."
        )
    if shape:
        rows = _parse_shape(shape, config.streams)
        eval_inputs = rows.inputs
        label_tokens = min(_LABEL_TOKENS, config.tokens.max_label_length)
        pairs_per_row = None if config.pipeline.pack else 1.0
    else:
        rows, eval_inputs, label_tokens = _shapes_of_data(config)
        pairs_per_row = rows.pairs_per_row
    label_tokens = config.eval.max_decode_length or label_tokens
    eval_tokens = tokens_before_label(config) + label_tokens
    return BatchShapes(rows, eval_inputs, eval_tokens, pairs_per_row)


def _parse_shape(shape: str, streams: tuple[str, ...]) -> RowShape:
    sizes = [int(size) for size in shape.split("x")] if _SHAPE.fullmatch(shape) else []
    if len(sizes) != 2 + len(streams) or not all(sizes):
        form = "x".join(["ROWS", "INPUTS", *(stream.upper() for stream in streams)])
        example = "x".join(_SHAPE_EXAMPLE[: 2 + len(streams)])
        raise InputError(
            f"--shape={shape}: expected {form}: rows of a step over all devices, then tokens of a "
            f"row. Write it as --shape={example}."
        )
    rows, inputs, *targets = sizes
    assert streams[0] == LABEL
    return RowShape(rows, inputs, dict(zip(streams, targets, strict=True)))


def _shapes_of_data(config: RunConfig) -> tuple[RowShape, int, int]:
    """A train batch, the longest label input as an evaluation pads it, and the longest label."""
    try:
        cache = open_split(config, "train")
    except InputError as error:
        raise InputError(
            f"{str(error).rstrip('.')}, or plan without data: --shape=64x512x32x128."
        ) from error
    longest = int(max(cache.lengths[f"{LABEL}_inputs"]))
    return (
        row_shape(cache.lengths, config.pipeline, config.streams),
        padded(longest, EVAL_LENGTH_MULTIPLE),
        min(int(max(cache.lengths[f"{LABEL}_targets"])), config.tokens.max_label_length),
    )


@dataclasses.dataclass(frozen=True)
class Planner:
    """Plans on one topology.

    Attributes:
        config: the run; its mesh and remat policy may be replaced by a search.
        shapes: of the run's batches.
        target: the topology.
        effort: a key of `program.EFFORTS`.
        compiler: where to compile.
    """

    config: RunConfig
    shapes: BatchShapes
    target: Topology
    effort: str
    compiler: CompilerProcess

    def plan(self) -> Iterator[Planned]:
        """The train step and the label decode.

        Raises:
            InputError: the run's mesh does not fit the topology.
        """
        mesh = make_mesh(self.config.mesh, self.target.devices)
        trained = self._train_step(self.config, self.shapes)
        yield trained
        rows = padded(self.config.eval.batch_size, batch_shards(mesh))
        yield dataclasses.replace(
            trained,
            rows=rows,
            pairs=rows,
            about=f"{self.shapes.eval_inputs} inputs, up to {self.shapes.eval_tokens} outputs",
            model_flops=None,
            held=trained.program.memory.optimizer,
            program=self._compile(DECODE, self.config, self.shapes),
        )

    def search(self) -> Iterator[Planned]:
        """Train steps with every mesh and remat policy, then with the largest batches that fit."""

        def plan(candidate: Candidate, rows: int) -> Planned:
            model = dataclasses.replace(self.config.model, remat=candidate.remat)
            config = dataclasses.replace(self.config, model=model, mesh=candidate.mesh)
            train = dataclasses.replace(self.shapes.train, rows=rows)
            return self._train_step(config, dataclasses.replace(self.shapes, train=train))

        devices, slices = len(self.target.devices), self.target.slices
        yield from search(
            plan, candidates(self.config.model, devices, slices), self.shapes.train.rows
        )

    def _train_step(self, config: RunConfig, shapes: BatchShapes) -> Planned:
        mesh = make_mesh(config.mesh, self.target.devices)
        model, train, per_row = config.model, shapes.train, shapes.pairs_per_row
        targets = " + ".join(str(length) for length in train.targets.values())
        return Planned(
            topology=self.target.name,
            chip=self.target.chip,
            slices=self.target.slices,
            devices=len(self.target.devices),
            mesh=dict(mesh.shape),
            remat=model.remat,
            scan_layers=model.scan_layers,
            rows=next(iter(abstract_batch(config, train, mesh).values())).shape[0],
            pairs=None if per_row is None else train.rows * per_row,
            about=f"{train.inputs} inputs and {targets} targets",
            parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(model))),
            model_flops=train_flops(model, train.rows, train.inputs, train.targets),
            held=0.0,
            program=self._compile(TRAIN, config, shapes),
        )

    def _compile(self, name: str, config: RunConfig, shapes: BatchShapes) -> Program:
        try:
            return self.compiler.call(
                compile_program, name, config, shapes, self.target.name, self.effort
            )
        except CompilerCrashedError as error:
            mesh = make_mesh(config.mesh, self.target.devices)
            return failed_program(name, config, mesh, str(error))


def compile_program(
    name: str, config: RunConfig, shapes: BatchShapes, topology_name: str, effort: str
) -> Program:
    """Compiles a program in a `CompilerProcess`; devices cannot be pickled, a name can."""
    jax.config.update("jax_platforms", "cpu")
    program = {TRAIN: train_program, DECODE: decode_program}[name]
    return program(config, shapes, make_mesh(config.mesh, topology(topology_name).devices), effort)
