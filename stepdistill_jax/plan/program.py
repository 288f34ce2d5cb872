"""Compiles a run's train step and label decode for devices that this machine need not have."""

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

# Compiler options. "quick" spends less time on optimizing the code, after partitioning and memory
# are decided; "full" compiles as on a TPU.
EFFORTS: dict[str, dict[str, Any] | None] = {
    "quick": {"exec_time_optimization_effort": -1.0},
    "full": None,
}


@dataclasses.dataclass(frozen=True)
class BatchShapes:
    """Shapes of a run's batches, over all devices.

    Attributes:
        train: of a train batch.
        eval_inputs: input tokens of an example that is decoded.
        eval_tokens: maximum output tokens of such an example.
        pairs_per_row: mean pairs in a row of a train batch; None = the data was not read.
    """

    train: RowShape
    eval_inputs: int
    eval_tokens: int
    pairs_per_row: float | None = None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM on each device.

    Attributes:
        parameters: in float32.
        optimizer: optimizer state; 0 for decoding.
        activations: everything else that the program allocates, as gradients, gathered parameters
            and buffers.
        total: the above, the batch and the program itself.
        itemized: False if the program does not fit; then the compiler reports only `total`.
    """

    parameters: float
    optimizer: float
    activations: float
    total: float
    itemized: bool = True


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, or one that did not fit.

    Attributes:
        name: `TRAIN` or `DECODE`.
        fits: compiled within the device's HBM.
        memory: of each device.
        work: of each device; None if the program does not fit.
        lower_seconds: from Python to StableHLO.
        compile_seconds: from StableHLO to the program.
        text: of the compiled program.
        failure: why compilation failed, other than for memory; "" = it did not.
    """

    name: str
    fits: bool
    memory: Memory
    work: Work | None
    lower_seconds: float
    compile_seconds: float
    text: str = dataclasses.field(repr=False, default="")
    failure: str = ""


def train_program(
    config: RunConfig, shapes: BatchShapes, mesh: Mesh, effort: str = "quick"
) -> Program:
    """The train step, with state and batch sharded as in `launch.train`."""
    optimizer, step = build_step(config, mesh)
    state = abstract_state(config.model, optimizer, mesh)
    batch = abstract_batch(config, shapes.train, mesh)
    return _program(
        TRAIN,
        # `TrainStep` is a plain callable, but the step is jitted.
        lambda: cast(Any, step).lower(state, batch),
        state.params,
        state.opt_state,
        mesh,
        effort,
    )


def decode_program(
    config: RunConfig, shapes: BatchShapes, mesh: Mesh, effort: str = "quick"
) -> Program:
    """Greedy decoding of the label stream, as in an evaluation."""
    rows = padded(config.eval.batch_size, batch_shards(mesh))
    inputs = jax.ShapeDtypeStruct(
        (rows, shapes.eval_inputs), jnp.int32, sharding=batch_sharding(mesh)
    )
    params = abstract_state(config.model, optax.identity(), mesh).params
    rules = fitting_rules(logical_axes(config.model), abstract_params(config.model), mesh)

    def lower() -> jax.stages.Lowered:
        with activation_rules(rules, mesh):
            return greedy.lower(config.model, params, inputs, inputs, shapes.eval_tokens)

    return _program(DECODE, lower, params, (), mesh, effort, shapes.eval_tokens)


def abstract_batch(
    config: RunConfig, shape: RowShape, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a train batch on the mesh, with rows padded as in `parallel.place.place_batch`."""
    rows = padded(shape.rows, batch_shards(mesh) * config.microbatches)
    sharding = batch_sharding(mesh)
    batch = {}
    for key in batch_keys(config.streams):
        stream = key.partition("_")[0]
        length = shape.inputs if "_inputs" in key else shape.targets[stream]
        dtype = jnp.float32 if key.endswith("_weights") else jnp.int32
        batch[key] = jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding)
    return batch


def failed_program(name: str, config: RunConfig, mesh: Mesh, failure: str) -> Program:
    """A program that did not compile, with the memory of its state.

    Args:
        name: of the program.
        config: the run.
        mesh: the devices.
        failure: why it did not compile.
    """
    optimizer = optim.optimizer(config.optimizer, config.train_steps)
    state = abstract_state(config.model, optimizer, mesh)
    moments = bytes_per_device(state.opt_state) if name == TRAIN else 0
    memory = Memory(bytes_per_device(state.params), moments, 0.0, math.inf, itemized=False)
    return Program(name, False, memory, None, 0.0, 0.0, failure=failure)


def bytes_per_device(tree: PyTree) -> int:
    """Bytes on one device of a tree of `jax.ShapeDtypeStruct` with shardings."""

    def size(leaf: Any) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def padded(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def _program(
    name: str,
    lower: Callable[[], jax.stages.Lowered],
    params: PyTree,
    opt_state: PyTree,
    mesh: Mesh,
    effort: str,
    open_loop_rounds: int = 1,
) -> Program:
    started = time.perf_counter()
    lowered = lower()
    lower_seconds = time.perf_counter() - started
    parameters, moments = bytes_per_device(params), bytes_per_device(opt_state)
    started = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=EFFORTS[effort])
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        total = exceeded(message)
        failure = "" if total is not None else message.splitlines()[0]
        total = math.inf if total is None else total
        memory = Memory(parameters, moments, 0.0, total, itemized=False)
        seconds = time.perf_counter() - started
        return Program(name, False, memory, None, lower_seconds, seconds, failure=failure)
    compile_seconds = time.perf_counter() - started
    text = compiled.as_text() or ""
    return Program(
        name,
        True,
        _memory(compiled.memory_analysis(), parameters, moments),
        work(text, dict(mesh.shape), open_loop_rounds),
        lower_seconds,
        compile_seconds,
        text,
    )


def _memory(analysis: Any, parameters: int, moments: int) -> Memory:
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        parameters=parameters,
        optimizer=moments,
        activations=analysis.temp_size_in_bytes + outputs,
        total=analysis.argument_size_in_bytes
        + outputs
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes,
    )
