import os
import pathlib
import sys
import time

import pytest

from stepdistill_jax.bench.startup import seconds_to_first_step, train_command
from stepdistill_jax.run import load
from stepdistill_jax.spec import METRICS_FILE, InputError

TRAINS = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "pid").write_text(str(os.getpid()))
(folder / "{metrics}").touch()
time.sleep(0.3)
(folder / "{metrics}").write_text("a line")
time.sleep(60)
"""
FAILS = "import sys; sys.exit('error: DATA_DIR holds no data')"


def command(program, folder):
    return [sys.executable, "-c", program, str(folder)]


def test_time_until_the_first_step_has_its_line_and_no_longer(tmp_path):
    program = TRAINS.format(metrics=METRICS_FILE)
    started = time.perf_counter()
    seconds = seconds_to_first_step(command(program, tmp_path), tmp_path)
    # An empty file, as opened before the first step, is no line.
    assert 0.3 <= seconds <= time.perf_counter() - started < 30
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_command_that_fails_is_quoted(tmp_path):
    with pytest.raises(InputError, match=r"exit code 1 .*error: DATA_DIR holds no data"):
        seconds_to_first_step(command(FAILS, tmp_path), tmp_path)


def test_train_command_is_the_run_with_one_step_and_folders_of_its_own(tmp_path):
    parts = train_command(
        ["cqa.gin"],
        ["SEED=3", "WARMUP_STEPS=50", "MODEL_DIR=runs/mine"],
        [],
        tmp_path / "a run",
        tmp_path / "caches",
    )
    assert parts[:3] == [sys.executable, "-m", "launch.train"]
    overrides = [part.removeprefix("--gin.") for part in parts if part.startswith("--gin.")]
    files = [part.removeprefix("--gin_file=") for part in parts if part.startswith("--gin_file=")]
    run = load.parse(files, overrides)
    assert (run.seed, run.train_steps, run.initial_checkpoint) == (3, 1, None)
    assert pathlib.Path(run.model_dir) == tmp_path / "a run"
    assert run.tokens.root() == tmp_path / "caches"
