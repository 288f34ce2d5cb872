"""T5X's own train.py, eval.py and infer.py on the demo, by our gin files alone."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("t5x.models", reason="t5x is not importable; see stepdistill_jax/t5x/README.md")

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = "stepdistill_jax/t5x/configs"
TASK = "demo_gold_step_by_step"
STEPS = 60
EVERY = 20


def run(program, **bindings):
    """The log of T5X's program under our run file of the same name, on two devices."""
    command = [sys.executable, "-m", f"t5x.{program}", "--alsologtostderr"]
    command += [f"--gin_file={CONFIGS}/{name}.gin" for name in (program, "demo")]
    command += [f"--gin.{name}={value!r}" for name, value in bindings.items()]
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
    return done.stderr


def logged(log, collection, name):
    """A metric's values by step, as T5X's log has them."""
    line = rf"\[(\d+)\] collection={collection} .*?\b{name}=([^,\s]+)"
    return {int(step): float(value) for step, value in re.findall(line, log)}


@pytest.mark.slow
def test_train_eval_and_infer(tmp_path):
    log = run(
        "train",
        MODEL_DIR=str(tmp_path / "run"),
        TRAIN_STEPS=STEPS,
        EVAL_PERIOD=EVERY,
        CHECKPOINT_PERIOD=EVERY,
        EVALUATOR_NUM_EXAMPLES=64,
        NUM_MICROBATCHES=2,
    )
    losses = logged(log, "train", "(?<!_)loss")
    assert list(losses) == [20, 40, 60]
    assert losses[20] > losses[40] > losses[60]
    for stream in ("label", "rationale"):
        by_step = logged(log, "train", f"{stream}_loss")
        assert by_step[20] > by_step[60]
    held_out = logged(log, f"training_eval/{TASK}", "(?<!_)loss")
    assert held_out[20] > held_out[60]

    checkpoint = str(tmp_path / "run" / f"checkpoint_{STEPS}")
    run("eval", CHECKPOINT_PATH=checkpoint, EVAL_OUTPUT_DIR=str(tmp_path / "eval"))
    metrics = tmp_path / "eval" / "inference_eval" / f"{TASK}-metrics.jsonl"
    scored = json.loads(metrics.read_text().splitlines()[-1])
    assert scored["step"] == STEPS

    run("infer", CHECKPOINT_PATH=checkpoint, INFER_OUTPUT_DIR=str(tmp_path / "infer"))
    (written,) = (tmp_path / "infer").glob(f"{TASK}-predict.jsonl-00000-of-00001")
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["inputs"]["id"] for row in rows] == [f"test-{i}" for i in range(1000)]
    right = [row["prediction"] == row["inputs"]["label_targets_pretokenized"] for row in rows]
    assert sum(right) / len(rows) == pytest.approx(scored["accuracy"])
    assert {row["prediction"] for row in rows} <= {"tea", "coffee", "cocoa"}
