"""The sweep binary: stopped at any moment and continued, it ends as if it had not been."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import process_group
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from launch import sweep
from launch.flags import Arguments
from stepdistill_jax.spec import FINISHED_FILE, InputError
from stepdistill_jax.sweep import run_status, train_runs, workload

ROOT = pathlib.Path(__file__).parents[2]
MICRO = """
EMB_DIM = 8
NUM_HEADS = 1
HEAD_DIM = 8
MLP_DIM = 8
NUM_ENCODER_LAYERS = 1
NUM_DECODER_LAYERS = 1
VOCAB_SIZE = 640
"""
SWEEP = """
include "parts/sweep.gin"
SWEEP_RUN_FILES = "demo.gin"
SWEEP_METHODS = "standard"
SWEEP_MODELS = "micro.gin"
SWEEP_SEEDS = (0, 1)
SWEEP_DATA_SEEDS = "fixed"
FRACTION_IS = 0.05
SWEEP_FRACTIONS = %FRACTION_IS
TRAIN_STEPS = 40
WARMUP_STEPS = 2
EVAL_PERIOD = 20
CHECKPOINT_PERIOD = 5
LOG_PERIOD = 1
EVAL_SPLITS = "validation"
"""
FIRST, SECOND = (f"demo-standard-gold-micro-f0.05-s{seed}" for seed in (0, 1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("sweep")
    (place / "micro.gin").write_text(MICRO)
    (place / "sweep.gin").write_text(SWEEP)
    return place


@pytest.fixture(scope="module")
def environment():
    # Of two workers of a job: what they start would wait for what the other worker starts.
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}
    # One device, as a user on a small machine has.
    return process_group.environment(**job, SLURM_PROCID="1", SLURM_LOCALID="0")


def command(place, name, *flags):
    return [
        *(sys.executable, "-m", "launch.sweep", f"--gin_file={place / 'sweep.gin'}"),
        *(f"--gin.SWEEP_DIR={place / name}", *flags),
    ]


def launch(place, environment, name, *flags):
    return subprocess.run(
        command(place, name, *flags), cwd=ROOT, env=environment, capture_output=True, text=True
    )


def results(folder):
    """What the report reads of a sweep, but for what the clock says."""
    rows = {}
    for path in sorted(folder.glob("*/results.jsonl")):
        rows[path.parent.name] = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows[path.parent.name]:
            del row["device_seconds"]
    return rows


def states(folder):
    summary = json.loads((folder / "sweep.json").read_text())
    return {row["name"]: row["state"] for row in summary["runs"]}


@pytest.fixture(scope="module")
def uninterrupted(place, environment):
    done = launch(place, environment, "uninterrupted")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def wait_for_steps(folder, count):
    """Until the run in a folder has logged `count` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{folder} has not come to step {count}")


def children(process):
    """The processes that a process has started, and theirs."""
    path = pathlib.Path(f"/proc/{process}/task/{process}/children")
    found = [int(child) for child in path.read_text().split()]
    return [*found, *(other for child in found for other in children(child))]


def test_a_sweep_says_what_it_does(place, uninterrupted):
    assert "2 runs in" in uninterrupted
    assert f"[1/2] {FIRST} starts, about" in uninterrupted
    assert f"[2/2] {SECOND} is done in" in uninterrupted
    assert states(place / "uninterrupted") == {FIRST: "done", SECOND: "done"}
    for name in (FIRST, SECOND):
        rows = results(place / "uninterrupted")[name]
        assert [(row["step"], row["split"]) for row in rows] == [
            (20, "validation"),
            (40, "validation"),
        ]


def test_killed_then_stopped_and_continued_it_ends_the_same(place, environment, uninterrupted):
    folder = place / "killed"
    with subprocess.Popen(
        command(place, "killed"), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        wait_for_steps(folder / FIRST, 12)
        for number in (process.pid, *children(process.pid)):
            os.kill(number, signal.SIGKILL)
    steps = (folder / FIRST / "metrics.jsonl").read_text().count("\n")
    assert steps < 40, "the run was over before it was killed"
    with subprocess.Popen(
        command(place, "killed"), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for_steps(folder / SECOND, 3)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert f"{FIRST} continues after step" in said
    assert "stopped: run the same command again to continue" in said
    assert states(folder) == {FIRST: "done", SECOND: "half-trained"}
    done = launch(place, environment, "killed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 done, 1 half-trained" in done.stdout
    assert f"{SECOND} continues after step" in done.stdout
    assert results(folder) == results(place / "uninterrupted")
    assert len(results(folder)) == 2


def test_what_another_process_does_is_said_and_counted_once(place, environment, uninterrupted):
    # As after a killed sweep whose run goes on: the lock of FIRST is held, then FIRST is done.
    folder = place / "orphan"
    shutil.copytree(place / "uninterrupted" / FIRST, folder / FIRST)
    (folder / FIRST / FINISHED_FILE).rename(folder / "later")
    lock = run_status.lock(folder / FIRST)
    with subprocess.Popen(
        command(place, "orphan"), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for_steps(folder / SECOND, 3)
        (folder / "later").rename(folder / FIRST / FINISHED_FILE)
        os.close(lock)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"[1/2] {FIRST} is running in another process" in said
    assert f"[1/2] {FIRST} was finished by another process; 2 done" in said
    counted = [
        sum(int(n) for n in re.findall(r"(\d+) (?:done|failed|stopped|running|waiting)", line))
        for line in said.splitlines()
        if line.startswith("[") and " starts" not in line
    ]
    assert counted == [2, 2, 2]


@pytest.fixture
def plan(place, monkeypatch, capsys):
    """The binary in this process: what it returns or refuses, and what it prints."""
    # Nothing here needs a process of its own.
    monkeypatch.setattr(workload, "survey", workload._survey)
    monkeypatch.setattr(workload, "_PRODUCT_SECONDS", 0.0)

    def run(name, *overrides, **flags):
        arguments = Arguments(
            (str(place / "sweep.gin"),), (f"SWEEP_DIR={place / name}", *overrides)
        )
        with flagsaver.flagsaver(**flags):
            try:
                code = sweep.main(arguments)
            except InputError as error:
                code = str(error)
        return code, capsys.readouterr().out

    absl_flags.FLAGS(["sweep"])
    return run


def test_a_failing_run_does_not_end_the_sweep(place, environment, plan, uninterrupted):
    folder = place / "failing"
    # A folder where the first run wants to write a file.
    (folder / FIRST / "metrics.jsonl").mkdir(parents=True)
    done = launch(place, environment, "failing")
    assert done.returncode == 4, done.stderr[-3000:]
    assert states(folder) == {FIRST: "failed", SECOND: "done"}
    assert f"failed: {FIRST}: exit code " in done.stdout
    assert results(folder)[SECOND] == results(place / "uninterrupted")[SECOND]
    # Left alone where that is asked for, else tried again.
    code, said = plan("failing", retry=False)
    assert code == 4
    assert not re.search(r"^\[.* starts", said, re.MULTILINE)
    (folder / FIRST / "metrics.jsonl").rmdir()
    assert launch(place, environment, "failing").returncode == 0
    assert results(folder) == results(place / "uninterrupted")


def test_a_changed_sweep_file_is_refused_and_new_runs_are_added(place, plan, uninterrupted):
    code, said = plan("uninterrupted", "ALPHA=0.25")
    assert "2 runs of the sweep are impossible" in code
    assert f"{FIRST}, {SECOND}: its folder holds a run with ALPHA=0.5 (now 0.25)" in said
    assert states(place / "uninterrupted") == {FIRST: "done", SECOND: "done"}
    code, said = plan("uninterrupted", "SWEEP_SEEDS=(0, 1, 2)", dry_run=True)
    assert code == 0
    assert "2 done, 1 waiting" in said
    code, said = plan("uninterrupted", "ALPHA=0.25", skip_impossible=True)
    assert code == 0
    assert "all runs are impossible" in said


def test_workers_split_the_runs(place, plan, uninterrupted, monkeypatch):
    monkeypatch.setenv("SWEEP_WORKER", "1")
    monkeypatch.setenv("SWEEP_WORKERS", "2")
    assert "worker 1 of 2: 1 of 2 runs in" in plan("shared", dry_run=True)[1]
    assert "worker 0 of 2: 1 of 2 runs in" in plan("shared", dry_run=True, worker=0)[1]
    monkeypatch.setenv("SWEEP_WORKER", "one")
    code, _ = plan("shared", dry_run=True)
    assert code == "environment variable SWEEP_WORKER: got 'one', expected a whole number."


@pytest.mark.parametrize("dry_run", [False, True])
def test_data_that_is_not_there_is_told_before_anything_starts(place, plan, tmp_path, dry_run):
    code, said = plan(
        *("missing", "SWEEP_RUN_FILES='svamp.gin'", "INITIAL_CHECKPOINT=None"),
        *(f"DATA_DIR={tmp_path}", "VOCABULARY=bytes", "VOCAB_SIZE=384"),
        dry_run=dry_run,
    )
    assert "nothing is left to do" not in said
    assert "2 runs of the sweep are impossible" in code
    assert "svamp-standard-gold-micro-f0.05-s0" in said
    assert str(tmp_path) in said
    assert not (place / "missing").exists()


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        (
            b"step 1\nerror: svamp/train.json: no such file\n",
            2,
            "exit code 2: svamp/train.json: no",
        ),
        (b"Traceback\n  File x\nKeyError: 'a'\n", 1, "exit code 1: KeyError: 'a'"),
        (b"10%|#\r20%|##\rMemoryError\n\n", 1, "exit code 1: MemoryError"),
        (b"", 1, "exit code 1: no output"),
        (b"fine\n", -9, "killed by SIGKILL"),
    ],
)
def test_a_failure_is_told_in_one_line(tmp_path, text, code, expected):
    before = b"error: of an earlier attempt\n"
    (tmp_path / "train.log").write_bytes(before + text)
    assert train_runs.describe_failure(tmp_path, len(before), code).startswith(expected)
