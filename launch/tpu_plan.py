"""Plans of the run that a `RunConfig` describes, for topologies that need not be there."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import jax

from launch import evaluation
from stepdistill_jax.data.packing import RowShape, row_shape
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
    crashed_program,
    decode_program,
    train_program,
)
from stepdistill_jax.plan.search import Candidate, candidates, search
from stepdistill_jax.plan.tables import Planned
from stepdistill_jax.plan.topology import Topology, topology
from stepdistill_jax.run_config import RunConfig
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
    rows = _given(shape, config.streams) if shape else _of_data(config)
    return Job(
        model=config.model,
        objective=config.objective,
        optimizer=config.optimizer,
        train_steps=config.train_steps,
        streams=config.streams,
        shape=rows,
        microbatches=config.microbatches,
        prng_impl=config.prng_impl,
        eval_rows=config.eval.batch_size,
        eval_inputs=rows.inputs,
        eval_tokens=config.eval.max_decode_length,
    )


def plans(
    run: RunConfig, work: Job, target: Topology, effort: str, compiler: Isolated
) -> Iterator[Planned]:
    """The train step and the label decode of a run on a topology."""
    mesh = _over_slices(run.mesh, target)
    yield _trained(work, target, mesh, effort, compiler)
    decoded = _compiled(DECODE, work, target, mesh, effort, compiler)
    shards = batch_shards(make_mesh(mesh, target.devices))
    rows = -(-work.eval_rows // shards) * shards
    yield _planned(work, target, mesh, decoded, rows, rows, None)


def searched(work: Job, target: Topology, effort: str, compiler: Isolated) -> Iterator[Planned]:
    """Train steps of every mesh and remat policy, and with the largest batches that fit."""

    def plan(candidate: Candidate, rows: int) -> Planned:
        tried = dataclasses.replace(
            work,
            model=dataclasses.replace(work.model, remat=candidate.remat),
            shape=dataclasses.replace(work.shape, rows=rows),
        )
        return _trained(tried, target, candidate.mesh, effort, compiler)

    choices = candidates(work.model, len(target.devices), target.slices)
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
    except CrashedError:
        return crashed_program(name, work, make_mesh(mesh, target.devices))


def _over_slices(mesh: MeshConfig, target: Topology) -> MeshConfig:
    """The run's mesh; where it leaves MESH_REPLICA at 1, one replica a slice."""
    if target.slices > 1 and mesh.replica == 1:
        return dataclasses.replace(mesh, replica=target.slices)
    return mesh


def _trained(
    work: Job, target: Topology, mesh: MeshConfig, effort: str, compiler: Isolated
) -> Planned:
    program = _compiled(TRAIN, work, target, mesh, effort, compiler)
    batch = abstract_batch(work, make_mesh(mesh, target.devices))
    rows = next(iter(batch.values())).shape[0]
    pairs = work.shape.rows * work.shape.pairs_per_row
    flops = train_flops(work.model, rows, work.shape.inputs, work.shape.targets)
    return _planned(work, target, mesh, program, rows, pairs, flops)


def _planned(
    work: Job,
    target: Topology,
    mesh: MeshConfig,
    program: Program,
    rows: int,
    pairs: float,
    flops: float | None,
) -> Planned:
    return Planned(
        topology=target.name,
        chip=target.chip,
        slices=target.slices,
        devices=len(target.devices),
        mesh=dict(make_mesh(mesh, target.devices).shape),
        remat=work.model.remat,
        scan_layers=work.model.scan_layers,
        rows=rows,
        pairs=pairs,
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(work.model))),
        model_flops=flops,
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


def _of_data(config: RunConfig) -> RowShape:
    try:
        cache = evaluation.open_split(config, "train")
    except InputError as error:
        raise InputError(
            f"{error}; or give the shape of a batch, which needs no data, as --shape=64x512x32x128"
        ) from error
    return row_shape(cache.lengths, config.pipeline, config.streams)
