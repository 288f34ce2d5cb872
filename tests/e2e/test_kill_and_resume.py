"""A run that is killed at any moment ends with the parameters of one that was not."""

import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import process_group
import pytest

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 60
SETTINGS = {
    "TRAIN_STEPS": STEPS,
    "EVAL_PERIOD": 20,
    "CHECKPOINT_PERIOD": 5,
    "LOG_PERIOD": 1,
    "FRACTION": 0.1,
    # Resuming does not depend on the depth, and each process compiles the model.
    "NUM_ENCODER_LAYERS": 1,
    "EVAL_SPLITS": ("validation",),
    # With dropout on, the random streams have to come back too.
    "DROPOUT_RATE": 0.1,
}


def command(model_dir: pathlib.Path, **more) -> list[str]:
    settings = {**SETTINGS, "MODEL_DIR": str(model_dir), **more}
    flags = [f"--gin.{name}={value!r}" for name, value in settings.items()]
    return [sys.executable, "-m", "launch.train", "--gin_file=demo.gin", *flags]


def start(model_dir, log, **more):
    # One device and XLA's own optimizations, as a user on a small machine has.
    env = process_group.environment(XLA_FLAGS="")
    return subprocess.Popen(command(model_dir, **more), cwd=ROOT, env=env, stdout=log, stderr=log)


def parameters(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every parameter of the last checkpoint, read without the project's code."""
    import orbax.checkpoint as ocp

    step = max(int(p.name) for p in (model_dir / "checkpoints").iterdir() if p.name.isdigit())
    assert step == STEPS
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(model_dir / "checkpoints" / str(step) / "state")
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def losses(model_dir: pathlib.Path) -> list[tuple[int, float]]:
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with open(folder / "log", "w") as log:
        process = start(folder / "run", log)
        assert process.wait(300) == 0, (folder / "log").read_text()[-3000:]
    return folder / "run"


def test_sigkill_at_random_moments_changes_nothing(uninterrupted, tmp_path):
    moments = random.Random(0)
    model_dir = tmp_path / "run"
    kills = 0
    with open(tmp_path / "log", "w") as log:
        while True:
            process = start(model_dir, log)
            if kills < 3:
                # Killed after some more lines of metrics, wherever the process then is.
                seen = len(losses(model_dir)) if (model_dir / "metrics.jsonl").exists() else 0
                goal = min(seen + moments.randint(1, 12), STEPS - 2)
                deadline = time.monotonic() + 120
                while process.poll() is None and time.monotonic() < deadline:
                    if (model_dir / "metrics.jsonl").exists():
                        lines = (model_dir / "metrics.jsonl").read_text().count("\n")
                        if lines >= goal:
                            break
                    time.sleep(0.01)
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(moments.random() * 0.3)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    assert process.wait(60) == -signal.SIGKILL
                    continue
            assert process.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
            break
    assert kills >= 2
    want, got = parameters(uninterrupted), parameters(model_dir)
    assert want.keys() == got.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert losses(model_dir) == losses(uninterrupted)
    assert [step for step, _ in losses(model_dir)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_exits_75_and_the_same_command_continues(uninterrupted, tmp_path, number):
    model_dir = tmp_path / "run"
    # No periodic checkpoint before the signal: the one found afterwards is the signal's own.
    with open(tmp_path / "log", "w") as log:
        process = start(model_dir, log, CHECKPOINT_PERIOD=1000)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (model_dir / "metrics.jsonl").exists() and len(losses(model_dir)) >= 3:
                break
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(120) == 75, (tmp_path / "log").read_text()[-3000:]
        said = (tmp_path / "log").read_text()
        assert f"{number.name}: stopping when this step is saved" in said
        assert re.search(r"^stopped: step \d+ is saved in .* to continue\.$", said, re.MULTILINE)
        assert "Traceback" not in said
        assert re.search(r"^goodput [\d.]+% of", (tmp_path / "log").read_text(), re.MULTILINE)
        saved = [int(p.name) for p in (model_dir / "checkpoints").iterdir() if p.name.isdigit()]
        assert saved
        assert 3 <= max(saved) < STEPS
        process = start(model_dir, log, CHECKPOINT_PERIOD=1000)
        assert process.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    want, got = parameters(uninterrupted), parameters(model_dir)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert losses(model_dir) == losses(uninterrupted)
