"""Several real processes make one run: the same losses, files and ends as one process.

Losses of different topologies are compared to 1e-5: they sum the same numbers in another order.
"""

import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import process_group
import pytest

from launch import eval as eval_binary
from launch import flags, train
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.run import load as configs
from stepdistill_jax.train import build

STEPS = 8
# What one wait may take on a busy machine; nothing here depends on how fast it is.
PATIENCE = 240
SETTINGS = {
    # One stream compiles faster; that streams do not depend on the mesh is tested with the step.
    "METHOD": "standard",
    "EMB_DIM": 16,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "MLP_DIM": 32,
    "NUM_ENCODER_LAYERS": 1,
    "TRAIN_STEPS": STEPS,
    "WARMUP_STEPS": 2,
    "EVAL_PERIOD": 0,
    "CHECKPOINT_PERIOD": 1,
    "KEEP_CHECKPOINTS": STEPS,
    "LOG_PERIOD": 1,
    "FRACTION": 0.2,
    "EVAL_SPLITS": ("validation",),
    # With dropout on, the masks of a row must not depend on the process that has it.
    "DROPOUT_RATE": 0.1,
    # Not a multiple of the devices.
    "BATCH_SIZE": 30,
}


# Trains, but for one process that waits after a step, until a notice of preemption has come: so
# what strikes it comes before the last step, however fast the steps are.
HOLDING = f"""
import contextlib, pathlib, sys, time
from jax._src import distributed
from jax.errors import JaxRuntimeError
from launch import flags, train
from stepdistill_jax.parallel import processes
from stepdistill_jax.train import loop

folder, number, held_at = pathlib.Path(sys.argv.pop(1)), int(sys.argv.pop(1)), int(sys.argv.pop(1))
reached = loop.Preemption.reached

def hold(self, step):
    if (processes.index(), step) == (number, held_at):
        (folder / f"held{{step}}").touch()
        client, end = distributed.global_state.client, time.monotonic() + {PATIENCE}
        # In short waits: Ctrl-C is noticed between two calls into JAX.
        while time.monotonic() < end:
            with contextlib.suppress(JaxRuntimeError):
                client.blocking_key_value_get("RECEIVED_PREEMPTION_NOTICE", 200)
                break
    return reached(self, step)

loop.Preemption.reached = hold
flags.run(train.run)
"""


def overrides(model_dir: pathlib.Path, **more) -> list[str]:
    settings = {**SETTINGS, "MODEL_DIR": str(model_dir), **more}
    return [f"{name}={value!r}" for name, value in settings.items()]


def command(model_dir: pathlib.Path, program=("-m", "launch.train"), **more) -> list[str]:
    given = [f"--gin.{text}" for text in overrides(model_dir, **more)]
    return [*program, "--gin_file=demo.gin", *given]


def start(count, devices, model_dir, **more):
    return process_group.ProcessGroup(count, devices, command(model_dir, **more), model_dir.parent)


def finish(count, devices, model_dir, **more):
    with start(count, devices, model_dir, **more) as group:
        assert group.wait(PATIENCE) == [0] * count, group.output()
    return model_dir


def train_here(model_dir, monkeypatch, devices, **more) -> None:
    """The run in this process, on so many of its devices."""
    monkeypatch.setattr(build, "make_mesh", lambda c: make_mesh(c, jax.devices()[:devices]))
    assert train.main(configs.parse(["demo.gin"], overrides(model_dir, **more), [])) == 0


def metrics(model_dir: pathlib.Path) -> list[dict]:
    path = model_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def assert_same_losses(one: pathlib.Path, other: pathlib.Path, rtol: float = 1e-5) -> None:
    for name in ("step", "loss", "label_loss", "grad_norm", "param_norm"):
        values = [[row[name] for row in metrics(folder)] for folder in (one, other)]
        assert len(values[0]) == STEPS
        np.testing.assert_allclose(*values, rtol=rtol, err_msg=name)


def files(model_dir: pathlib.Path) -> set[str]:
    """The files of a run, but for those in a checkpoint."""
    found = (path.relative_to(model_dir) for path in model_dir.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != "checkpoints"}


def cut(source: pathlib.Path, target: pathlib.Path, step: int) -> pathlib.Path:
    """A copy of a run that stopped after `step`."""
    shutil.copytree(source, target)
    for name in ("eval", "results.jsonl", "finished.json"):
        path = target / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (target / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    text = (target / "config.gin").read_text()
    (target / "config.gin").write_text(text.replace(str(source), str(target)))
    return target


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process on one device."""
    folder = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        train_here(folder, monkeypatch, 1)
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four processes of one device."""
    return finish(4, 1, tmp_path_factory.mktemp("four") / "run")


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Two processes of two devices, each with a copy of the model as a slice has."""
    return finish(2, 2, tmp_path_factory.mktemp("slices") / "run", MESH_REPLICA=2)


def test_four_processes_have_the_losses_of_one(one, four):
    assert_same_losses(one, four)


def test_two_slices_have_the_losses_of_one_process(one, slices):
    assert_same_losses(one, slices)


def test_each_file_is_written_once_and_each_word_said_once(one, four):
    assert files(four) == files(one)
    lead, *others = [log.read_text() for log in sorted(four.parent.glob("log*"))]
    assert "on 4 device(s) of 4 processes" in lead
    assert f"the best on validation of {STEPS} steps" in lead
    for other in others:
        assert "training data" not in other
        assert "step/s" not in other
        assert "accuracy" not in other
    steps = {int(path.name) for path in (four / "checkpoints").iterdir() if path.name.isdigit()}
    assert steps == set(range(1, STEPS + 1))


@pytest.mark.parametrize(("devices", "replica"), [(1, 1), (2, 1), (8, 2)])
def test_a_run_of_four_processes_goes_on_elsewhere(four, tmp_path, monkeypatch, devices, replica):
    model_dir = cut(four, tmp_path / "run", 5)
    train_here(model_dir, monkeypatch, devices, MESH_REPLICA=replica)
    assert_same_losses(four, model_dir)


def test_a_run_of_one_process_goes_on_in_three(one, four, tmp_path):
    model_dir = finish(3, 1, cut(one, tmp_path / "run", 5))
    assert_same_losses(four, model_dir)


def test_several_processes_score_as_one_does(four, tmp_path):
    splits = ("validation", "test")
    scored = {}
    for name in ("several", "alone"):
        model_dir = cut(four, tmp_path / name / "run", STEPS)
        arguments = [str(model_dir), f"--gin.EVAL_SPLITS={splits!r}"]
        if name == "alone":
            given = tuple(text.removeprefix("--gin.") for text in arguments[1:])
            eval_binary.main(flags.Arguments(overrides=given, positional=(str(model_dir),)))
        else:
            group = process_group.ProcessGroup(
                2, 1, ["-m", "launch.eval", *arguments], model_dir.parent
            )
            with group:
                assert group.wait(PATIENCE) == [0, 0], group.output()
            assert (model_dir.parent / "log1").read_text().count("accuracy") == 0
        scored[name] = {
            split: (model_dir / f"eval/{split}/{STEPS}/predictions.jsonl").read_bytes()
            for split in splits
        }
        results = (model_dir / "results.jsonl").read_text().splitlines()
        assert [json.loads(line)["split"] for line in results] == list(splits)
    assert scored["several"] == scored["alone"]
    while_training = (four / f"eval/validation/{STEPS}/predictions.jsonl").read_bytes()
    assert scored["alone"]["validation"] == while_training


def parameters(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """The whole state of the last checkpoint, read without the project's code."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        folder = model_dir / "checkpoints" / str(STEPS) / "state"
        stored = reader.metadata(folder).item_metadata.tree
        # On the host: the devices that it was saved from are not here.
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        tree = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=plain))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_whatever_happens_to_one_process_all_end_and_the_run_goes_on_exactly(slices, tmp_path):
    model_dir = tmp_path / "run"
    for number, sent, step in [
        (1, signal.SIGTERM, 2),
        (0, signal.SIGINT, 4),
        (1, signal.SIGKILL, 6),
        (0, signal.SIGKILL, 7),
    ]:
        program = ("-c", HOLDING, str(tmp_path), str(number), str(step))
        held = tmp_path / f"held{step}"
        with start(2, 2, model_dir, program=program, MESH_REPLICA=2) as group:
            group.signal_when(held.exists, number, sent, PATIENCE)
            codes = group.wait(PATIENCE)
            said = group.logs[1 - number].read_text()
        assert len(metrics(model_dir)) < STEPS, f"{sent.name} at step {step} came too late"
        if sent in (signal.SIGTERM, signal.SIGINT):
            assert codes == [75, 75], group.output()
            assert "is saved" in group.logs[0].read_text()
        else:
            assert codes[number] == -signal.SIGKILL
            assert codes[1 - number] == 69, group.output()
            assert f"error: process {1 - number} of 2: " in said
            assert "another process" in said
            assert "continues from the last checkpoint" in said
    finish(2, 2, model_dir, MESH_REPLICA=2)
    assert_same_losses(slices, model_dir, rtol=0)
    want, got = parameters(slices), parameters(model_dir)
    assert want.keys() == got.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
