"""Programs of XLA's TPU compiler, for TPUs that are not there: what lies and moves where."""

import math
import re
import signal
import subprocess
import sys

import jax
import pytest

from stepdistill_jax.data.config import DataConfig, TokenConfig
from stepdistill_jax.data.packing import PipelineConfig, RowShape
from stepdistill_jax.data.views import ViewConfig
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.optim import OptimizerConfig, optimizer
from stepdistill_jax.parallel.chips import GIB
from stepdistill_jax.parallel.device_memory import exceeded
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.plan.compiler_process import CompilerCrashedError, CompilerProcess
from stepdistill_jax.plan.hlo import parse
from stepdistill_jax.plan.planner import batch_shapes
from stepdistill_jax.plan.program import (
    TRAIN,
    BatchShapes,
    bytes_per_device,
    failed_program,
    train_program,
)
from stepdistill_jax.plan.roofline import bound
from stepdistill_jax.plan.topology import topology
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.eval_config import EvalConfig
from stepdistill_jax.run.splits import tokens_before_label
from stepdistill_jax.spec import EXIT_INCOMPLETE, InputError
from stepdistill_jax.train.state import abstract_state

MODEL = T5Config(
    vocab_size=1024,
    emb_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=256,
    num_encoder_layers=3,
    num_decoder_layers=3,
    dtype="bfloat16",
    dropout_rate=0.0,
)
RUN = RunConfig(
    model_dir="unused",
    data=DataConfig("demo"),
    tokens=TokenConfig(),
    pipeline=PipelineConfig(),
    views=ViewConfig(),
    model=MODEL,
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(),
    mesh=MeshConfig(),
    eval=EvalConfig(batch_size=16),
    train_steps=100,
)
TARGETS = {"label": 16, "rationale": 64}
SHAPES = BatchShapes(RowShape(64, 128, TARGETS), eval_inputs=128, eval_tokens=8)


@pytest.fixture(scope="module")
def on_one_slice():
    return train_program(RUN, SHAPES, make_mesh(MeshConfig(), topology("v5e:4x4").devices))


@pytest.fixture(scope="module")
def on_two_slices():
    return train_program(
        RUN, SHAPES, make_mesh(MeshConfig(2, -1, 1), topology("v5e:2x2*2").devices)
    )


def test_flops_of_a_device_are_its_share_of_the_model_s(on_one_slice):
    """Of the method's own count, but for what the remat policy computes again."""
    model = train_flops(MODEL, 64, 128, TARGETS) / 16
    assert 1.0 <= on_one_slice.work.flops / model < 1.25


def test_state_lies_in_sixteen_parts(on_one_slice):
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(MODEL)))
    assert on_one_slice.memory.parameters == 4 * count / 16


def test_no_collective_leaves_more_than_one_layer_s_kernel_or_a_table(on_one_slice):
    table = MODEL.vocab_size * MODEL.emb_dim
    layer = MODEL.emb_dim * MODEL.mlp_dim
    for collective in on_one_slice.work.collectives:
        assert collective.largest <= 4 * table, collective
        if collective.kind == "all-reduce":
            # Gradients are never summed whole in float32.
            assert collective.largest <= 2 * max(table, layer), collective


def arrays_of(program, *opcodes):
    """Every array that instructions of these opcodes, or any, leave on a device."""
    return [
        array
        for computation in parse(program.text).computations.values()
        for instruction in computation.instructions.values()
        if not opcodes or instruction.opcode.startswith(opcodes)
        for array in instruction.arrays
    ]


def test_no_device_has_more_logits_than_its_own_rows(on_one_slice):
    elements = 64 // 16 * TARGETS["rationale"] * MODEL.vocab_size
    logits = [a for a in arrays_of(on_one_slice) if MODEL.vocab_size in a.dims]
    assert max(a.elements for a in logits) == elements


def test_what_is_gathered_is_one_layer_s_at_a_time(on_one_slice):
    stacked = (MODEL.num_encoder_layers, MODEL.num_decoder_layers)
    gathered = arrays_of(on_one_slice, "all-gather")
    assert gathered
    assert not [a for a in gathered if len(a.dims) == 3 and a.dims[0] in stacked]
    assert max(a.elements for a in gathered) <= MODEL.vocab_size * MODEL.emb_dim


def test_a_bias_gradient_is_not_summed_over_devices_for_every_layer(on_one_slice):
    """Only the tables' gradients [H, 32] are; [H, Q, K] stays where its rows are."""
    pairs = {(MODEL.num_heads, n, n) for n in (128, 64, 16)}
    summed = {array.dims[-3:] for array in arrays_of(on_one_slice, "all-reduce")}
    assert not summed & pairs


def test_between_slices_only_gradients_and_sums_travel(on_two_slices):
    between = [c for c in on_two_slices.work.collectives if c.between_slices]
    assert {c.axis for c in between} == {"replica"}
    # At most a device's own part of the parameters in float32, and no rows.
    parameters = on_two_slices.memory.parameters
    assert 0 < sum(c.sent for c in between) <= 1.25 * parameters
    assert max(c.largest for c in between) <= 4 * MODEL.vocab_size * MODEL.emb_dim / 4
    assert bound(on_two_slices.work, topology("v5e:2x2*2").chip).dcn > 0


def test_slices_want_a_replica_each():
    with pytest.raises(InputError, match=r"MESH_REPLICA=1, but the 8 devices form 2 slices"):
        make_mesh(MeshConfig(), topology("v5e:2x2*2").devices)
    mesh = make_mesh(MeshConfig(4, -1, 1), topology("v5e:2x2*2").devices)
    for replica, devices in enumerate(mesh.devices):
        assert {d.slice_index for d in devices.flat} == {replica // 2}


@pytest.mark.parametrize(
    ("size", "name", "mesh"),
    [
        ("t5_1_1_base", "v5e:2x2", MeshConfig()),
        ("t5_1_1_large", "v5e:2x4", MeshConfig()),
        ("t5_1_1_xxl", "v5e:8x8", MeshConfig()),
        ("t5_1_1_xxl", "v5p:2x2x4", MeshConfig(1, -1, 4)),
    ],
)
def test_state_of_every_size_is_split_over_its_slice(size, name, mesh):
    """Parameters and both of AdamW's moments: what no remat policy can save."""
    config = configs.parse(
        ("demo.gin", f"models/{size}.gin"), ("MODEL_DIR='x'", "VOCABULARY='bytes'")
    )
    target = topology(name)
    state = abstract_state(
        config.model, optimizer(config.optimizer, 100), make_mesh(mesh, target.devices)
    )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config.model)))
    state_bytes = bytes_per_device(state)
    assert 12 * count / len(target.devices) <= state_bytes < 12.5 * count / len(target.devices)
    assert state_bytes < target.chip.hbm_bytes / 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5litepod-16", r"--topology=v5litepod-16: .*expected GENERATION:SHAPE"),
        ("v6:2x2", r"Did you mean v6e\? Write it as"),
        ("v6e:4x4x4", r"a slice of v6e has two dimensions\. Write v6e:ROWSxCOLUMNS, as v6e:8x8"),
        ("v5e:3x5", r"--topology=v5e:3x5: no such slice"),
        ("v5e:2x2*0", r"--topology=v5e:2x2\*0: expected GENERATION:SHAPE"),
    ],
)
def test_a_topology_that_is_none(name, message):
    with pytest.raises(InputError, match=message):
        topology(name)


def test_a_shape_that_is_none():
    config = configs.parse(("demo.gin",), ())
    with pytest.raises(InputError, match=r"--shape=64x512: expected ROWSxINPUTSxLABELxRATIONALE"):
        batch_shapes(config, "64x512")
    assert batch_shapes(config, "8x16x4x6").train == RowShape(8, 16, {"label": 4, "rationale": 6})


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (signal.SIGSEGV, r"crashed \(SIGSEGV\)\. Try another mesh, REMAT or PRNG_IMPL"),
        (signal.SIGKILL, r"was killed \(SIGKILL\)\. Free host memory"),
    ],
)
def test_a_crash_is_told_and_the_next_call_answered(sent, message):
    with CompilerProcess() as process:
        with pytest.raises(CompilerCrashedError, match=message):
            process.call(signal.raise_signal, sent)
        assert process.call(abs, -3) == 3
        with pytest.raises(ZeroDivisionError):
            process.call(divmod, 1, 0)
        assert process.call(abs, -3) == 3


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G",
            17.5 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: for temporaries (1.5T) beside", 1.5 * 2**40),
        ("RESOURCE_EXHAUSTED: no figure", math.inf),
        # Another memory, which a smaller batch need not mend.
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 130M of 128M", None),
        ("INTERNAL: anything", None),
    ],
)
def test_the_compiler_s_words_on_memory(message, needed):
    assert exceeded(message) == needed


def test_a_program_that_failed_has_its_state(on_one_slice):
    mesh = make_mesh(MeshConfig(), topology("v5e:4x4").devices)
    failed = failed_program(TRAIN, RUN, mesh, "it broke")
    assert (failed.fits, failed.work, failed.failure) == (False, None, "it broke")
    assert failed.memory.parameters == on_one_slice.memory.parameters
    assert failed.memory.optimizer == on_one_slice.memory.optimizer


def test_decoding_is_planned_as_the_method_evaluates():
    """A student of one task writes the rationale and the marker before the label."""
    settings = (
        "VOCABULARY='bytes'",
        "MODEL_DIR='x'",
        "MAX_DECODE_LENGTH=5",
        "MAX_RATIONALE_LENGTH=30",
    )
    shape = "8x16x4x6"
    plain = batch_shapes(configs.parse(("demo.gin",), (*settings, "PACK=True")), shape)
    assert (plain.eval_tokens, plain.eval_inputs, plain.pairs_per_row) == (5, 16, None)
    single = configs.parse(("demo.gin",), (*settings, "METHOD='single_task'"))
    assert batch_shapes(single, "8x16x4").eval_tokens == tokens_before_label(single) + 5 > 5 + 29
    unpacked = configs.parse(("demo.gin",), (*settings, "PACK=False"))
    assert batch_shapes(unpacked, shape).pairs_per_row == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--json={}/file/plan.json", ": cannot write to {}/file: a file is in the way. Choose"),
        ("--json={}", " is a folder. Name a file in it."),
        ("--hlo={}/file", ": cannot write to {}/file: a file is in the way. Choose"),
        ("--hlo=/proc", ": cannot write to /proc: "),
    ],
)
def test_a_plan_that_could_not_be_written_is_told_before_it_is_made(tmp_path, flag, message):
    (tmp_path / "file").touch()
    flag = flag.format(tmp_path)
    command = ["-m", "launch.plan", "--gin_file=demo.gin", "--topology=v5e:2x2"]
    done = subprocess.run(
        [sys.executable, *command, flag],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"error: {flag}{message.format(tmp_path)}" in done.stderr
    assert "train step" not in done.stdout


def test_what_does_not_fit_says_by_how_much():
    """Rows far beyond a chip's memory: exit code 4, and the compiler's own figure."""
    sizes = {"VOCAB_SIZE": 1024, "EMB_DIM": 128, "MLP_DIM": 256, "DROPOUT_RATE": 0.0}
    sizes |= {"NUM_ENCODER_LAYERS": 1, "NUM_DECODER_LAYERS": 1, "LOGITS_CHUNK": 1_000_000}
    done = subprocess.run(
        [sys.executable, "-m", "launch.plan", "--gin_file=demo.gin", "--gin.REMAT=none"]
        + [f"--gin.{name}={value}" for name, value in sizes.items()]
        + ["--topology=v5e:2x2", "--shape=65536x512x128x512"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == EXIT_INCOMPLETE, done.stderr[-3000:]
    used = re.search(r"HBM per device +([\d.]+) GiB of 16.00 GiB: DOES NOT FIT", done.stdout)
    assert used, done.stdout
    assert float(used[1]) > 16
