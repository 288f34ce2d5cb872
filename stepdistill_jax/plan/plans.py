"""Plans of the run that a `RunConfig` describes, for topologies that need not be there."""

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
from stepdistill_jax.parallel.mesh import MeshConfig, batch_shards, make_mesh
from stepdistill_jax.plan.isolated import CrashedError, Isolated
from stepdistill_jax.plan.program import (
    DECODE,
    TRAIN,
    Job,
    Program,
    abstract_batch,
    decode_program,
    failed_program,
    train_program,
)
from stepdistill_jax.plan.search import Candidate, candidates, search
from stepdistill_jax.plan.tables import Planned
from stepdistill_jax.plan.topology import Topology, topology
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.splits import open_split, tokens_before_label
from stepdistill_jax.spec import LABEL, InputError

_SHAPE = re.compile(r"\d+(x\d+){2,3}")


def job(config: RunConfig, shape: str) -> Job:
    """What is compiled of a run.

    Args:
        config: the run's.
        shape: ``ROWSxINPUTSxLABEL[xOTHER]``, a train batch without looking at the data; "" = as
            training would make it, which opens the data.

    Raises:
        InputError: METHOD trains nothing, `shape` is not of this form, or the data cannot be had.
    """
    if not config.streams:
        raise InputError(f"METHOD={config.method!r} trains nothing; set one that does")
    if shape:
        rows = _given(shape, config.streams)
        longest = rows.inputs
        pairs_per_row = None if config.pipeline.pack else 1.0
    else:
        rows, longest = _of_data(config)
        pairs_per_row = rows.pairs_per_row
    eval_tokens = tokens_before_label(config) + config.eval.max_decode_length
    return Job(config, rows, longest, eval_tokens, pairs_per_row)


def plans(
    run: RunConfig, work: Job, target: Topology, effort: str, compiler: Isolated
) -> Iterator[Planned]:
    """The train step and the label decode of a run on a topology.

    Raises:
        InputError: the run's mesh does not fit the topology.
    """
    mesh = make_mesh(run.mesh, target.devices)
    trained = _trained(work, target, run.mesh, effort, compiler)
    yield trained
    decoded = _compiled(DECODE, work, target, run.mesh, effort, compiler)
    rows = -(-work.config.eval.batch_size // batch_shards(mesh)) * batch_shards(mesh)
    yield dataclasses.replace(
        trained,
        rows=rows,
        pairs=rows,
        about=f"{work.eval_inputs} inputs, up to {work.eval_tokens} tokens written",
        model_flops=None,
        held=trained.program.memory.optimizer,
        program=decoded,
    )


def searched(work: Job, target: Topology, effort: str, compiler: Isolated) -> Iterator[Planned]:
    """Train steps of every mesh and remat policy, and with the largest batches that fit."""

    def plan(candidate: Candidate, rows: int) -> Planned:
        model = dataclasses.replace(work.config.model, remat=candidate.remat)
        tried = dataclasses.replace(
            work,
            config=dataclasses.replace(work.config, model=model),
            shape=dataclasses.replace(work.shape, rows=rows),
        )
        return _trained(tried, target, candidate.mesh, effort, compiler)

    choices = candidates(work.config.model, len(target.devices), target.slices)
    yield from search(plan, choices, work.shape.rows)


def compile_program(
    name: str, work: Job, topology_name: str, mesh: MeshConfig, effort: str
) -> Program:
    """Compiles a program by the name of its topology, as another process can."""
    jax.config.update("jax_platforms", "cpu")
    program = {TRAIN: train_program, DECODE: decode_program}[name]
    return program(work, make_mesh(mesh, topology(topology_name).devices), effort)


def _compiled(
    name: str, work: Job, target: Topology, mesh: MeshConfig, effort: str, compiler: Isolated
) -> Program:
    try:
        return compiler.call(compile_program, name, work, target.name, mesh, effort)
    except CrashedError as error:
        return failed_program(name, work, make_mesh(mesh, target.devices), str(error))


def _trained(
    work: Job, target: Topology, mesh: MeshConfig, effort: str, compiler: Isolated
) -> Planned:
    program = _compiled(TRAIN, work, target, mesh, effort, compiler)
    laid = make_mesh(mesh, target.devices)
    model, shape, per_row = work.config.model, work.shape, work.pairs_per_row
    targets = " + ".join(str(length) for length in shape.targets.values())
    return Planned(
        topology=target.name,
        chip=target.chip,
        slices=target.slices,
        devices=len(target.devices),
        mesh=dict(laid.shape),
        remat=model.remat,
        scan_layers=model.scan_layers,
        rows=next(iter(abstract_batch(work, laid).values())).shape[0],
        pairs=None if per_row is None else shape.rows * per_row,
        about=f"{shape.inputs} inputs and {targets} targets",
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(model))),
        model_flops=train_flops(model, shape.rows, shape.inputs, shape.targets),
        held=0.0,
        program=program,
    )


def _given(shape: str, streams: tuple[str, ...]) -> RowShape:
    wanted = "x".join(["ROWS", "INPUTS", *(s.upper() for s in streams)])
    sizes = [int(size) for size in shape.split("x")] if _SHAPE.fullmatch(shape) else []
    if len(sizes) != 2 + len(streams) or not all(sizes):
        raise InputError(
            f"--shape={shape}: expected {wanted}, rows of a step over all devices and tokens of a "
            f"row, as {'x'.join(['64', '512', '32', '128'][: 2 + len(streams)])}"
        )
    rows, inputs, *targets = sizes
    assert streams[0] == LABEL
    return RowShape(rows, inputs, dict(zip(streams, targets, strict=True)))


def _of_data(config: RunConfig) -> tuple[RowShape, int]:
    """A train batch, and the longest label input, as an evaluation fills its rows up."""
    try:
        cache = open_split(config, "train")
    except InputError as error:
        raise InputError(
            f"{error}; or give the shape of a batch, which needs no data, as --shape=64x512x32x128"
        ) from error
    longest = int(max(cache.lengths[f"{LABEL}_inputs"]))
    filled = -(-longest // EVAL_LENGTH_MULTIPLE) * EVAL_LENGTH_MULTIPLE
    return row_shape(cache.lengths, config.pipeline, config.streams), filled
