"""Compiles the real train step and label decode for devices that need not be there."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from stepdistill_jax import optim
from stepdistill_jax.data.packing import RowShape
from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.model.network import abstract_params, logical_axes
from stepdistill_jax.parallel.device_memory import exceeded
from stepdistill_jax.parallel.mesh import batch_shards
from stepdistill_jax.parallel.place import batch_sharding
from stepdistill_jax.parallel.rules import activation_rules, fitting_rules
from stepdistill_jax.plan.work import Work, work
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import batch_keys
from stepdistill_jax.train.build import build_step
from stepdistill_jax.train.state import abstract_state

PyTree = Any

TRAIN, DECODE = "train step", "label decode"

# Quick: the compiler looks less long for the fastest code; what it partitions, computes and
# stores is decided before that. Full: as on a TPU.
EFFORTS: dict[str, dict[str, Any] | None] = {
    "quick": {"exec_time_optimization_effort": -1.0},
    "full": None,
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What is compiled, whatever the devices.

    Attributes:
        config: the run.
        shape: of a train batch, over all devices.
        eval_inputs: input tokens of a row that is decoded.
        eval_tokens: the maximum of tokens written for one.
        pairs_per_row: mean of a train batch; None where the data was not read.
    """

    config: RunConfig
    shape: RowShape
    eval_inputs: int
    eval_tokens: int
    pairs_per_row: float | None = None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM on each device.

    Attributes:
        parameters: float32.
        optimizer: its moments; 0 in decoding.
        activations: all else that the program allocates: activations, gradients, gathered
            parameters, buffers.
        total: these, the batch and the program itself.
        told: False where the program does not fit: then only `total`, which the compiler names.
    """

    parameters: float
    optimizer: float
    activations: float
    total: float
    told: bool = True


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, or one that did not fit.

    Attributes:
        name: ``train step`` or ``label decode``.
        fits: it compiled within the device's HBM.
        memory: see `Memory`.
        work: None where it does not fit.
        lower_seconds: from Python to StableHLO.
        compile_seconds: from there to the program.
        text: the compiled program.
        failure: why there is no program and nothing else is known; "" = it compiled, or did not
            fit.
    """

    name: str
    fits: bool
    memory: Memory
    work: Work | None
    lower_seconds: float
    compile_seconds: float
    text: str = dataclasses.field(repr=False, default="")
    failure: str = ""


def train_program(job: Job, mesh: Mesh, effort: str = "quick") -> Program:
    """The train step of `job` on `mesh`, state and batch as `launch.train` lays them out."""
    optimizer, step = build_step(job.config, mesh)
    state = abstract_state(job.config.model, optimizer, mesh)
    batch = abstract_batch(job, mesh)
    return _program(
        TRAIN,
        # Jitted, though its type says no more than that it can be called.
        lambda: cast(Any, step).lower(state, batch),
        state.params,
        state.opt_state,
        mesh,
        effort,
    )


def decode_program(job: Job, mesh: Mesh, effort: str = "quick") -> Program:
    """Greedy decoding of the label stream, as an evaluation runs it."""
    rows = _padded(job.config.eval.batch_size, batch_shards(mesh))
    tokens = jax.ShapeDtypeStruct((rows, job.eval_inputs), jnp.int32, sharding=batch_sharding(mesh))
    optimizer = optax.identity()
    params = abstract_state(job.config.model, optimizer, mesh).params
    rules = fitting_rules(logical_axes(job.config.model), abstract_params(job.config.model), mesh)

    def lower() -> jax.stages.Lowered:
        with activation_rules(rules, mesh):
            return greedy.lower(job.config.model, params, tokens, tokens, job.eval_tokens)

    return _program(DECODE, lower, params, (), mesh, effort, job.eval_tokens)


def abstract_batch(job: Job, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a train batch on the mesh, rows padded as `parallel.place.place_batch` pads."""
    rows = _padded(job.shape.rows, batch_shards(mesh) * job.config.microbatches)
    sharding = batch_sharding(mesh)
    batch = {}
    for key in batch_keys(job.config.streams):
        stream = key.partition("_")[0]
        length = job.shape.inputs if "_inputs" in key else job.shape.targets[stream]
        dtype = jnp.float32 if key.endswith("_weights") else jnp.int32
        batch[key] = jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding)
    return batch


def bytes_per_device(tree: PyTree) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""

    def size(leaf: Any) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def failed_program(name: str, job: Job, mesh: Mesh, failure: str) -> Program:
    """What is known where there is no program: its state.

    Args:
        name: of the program.
        job: what was to be compiled.
        mesh: for which devices.
        failure: what the compiler said, or how it ended.
    """
    optimizer = optim.optimizer(job.config.optimizer, job.config.train_steps)
    state = abstract_state(job.config.model, optimizer, mesh)
    moments = bytes_per_device(state.opt_state) if name == TRAIN else 0
    memory = Memory(bytes_per_device(state.params), moments, 0.0, math.inf, told=False)
    return Program(name, False, memory, None, 0.0, 0.0, failure=failure)


def _padded(rows: int, parts: int) -> int:
    return -(-rows // parts) * parts


def _program(
    name: str,
    lower: Callable[[], jax.stages.Lowered],
    params: PyTree,
    opt_state: PyTree,
    mesh: Mesh,
    effort: str,
    loop_rounds: int = 1,
) -> Program:
    started = time.perf_counter()
    lowered = lower()
    lower_seconds = time.perf_counter() - started
    started = time.perf_counter()
    parameters, moments = bytes_per_device(params), bytes_per_device(opt_state)
    try:
        compiled = lowered.compile(compiler_options=EFFORTS[effort])
    except jax.errors.JaxRuntimeError as error:
        said = str(error)
        total = exceeded(said)
        failure = "" if total is not None else said.splitlines()[0]
        needed = math.inf if total is None else total
        memory = Memory(parameters, moments, 0.0, needed, told=False)
        seconds = time.perf_counter() - started
        return Program(name, False, memory, None, lower_seconds, seconds, failure=failure)
    compile_seconds = time.perf_counter() - started
    text = compiled.as_text() or ""
    return Program(
        name,
        True,
        _memory(compiled.memory_analysis(), parameters, moments),
        work(text, dict(mesh.shape), loop_rounds),
        lower_seconds,
        compile_seconds,
        text,
    )


def _memory(found: Any, parameters: int, moments: int) -> Memory:
    written = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
        parameters=parameters,
        optimizer=moments,
        activations=found.temp_size_in_bytes + written,
        total=found.argument_size_in_bytes
        + written
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes,
    )
