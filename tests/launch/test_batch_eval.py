"""Many runs scored: each in a process of its own, a share on each worker, failures at the end."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import process_group
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from launch import batch_eval as binary
from launch.flags import Arguments
from stepdistill_jax.spec import InputError
from stepdistill_jax.sweep import score_runs

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    *("EMB_DIM=8", "NUM_HEADS=1", "HEAD_DIM=8", "MLP_DIM=8", "NUM_ENCODER_LAYERS=1"),
    *("FRACTION=0.05", "TRAIN_STEPS=2", "WARMUP_STEPS=1", "EVAL_PERIOD=2", "CHECKPOINT_PERIOD=2"),
    *("LOG_PERIOD=1", "EVAL_SPLITS='validation'", "METHOD='standard'"),
)


@pytest.fixture(scope="module")
def environment():
    return process_group.environment()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, environment):
    folder = tmp_path_factory.mktemp("runs") / "a"
    command = [sys.executable, "-m", "launch.train", "--gin_file=demo.gin"]
    command += [f"--gin.{setting}" for setting in (*SMALL, f"MODEL_DIR={folder}")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def launch(environment, *arguments):
    command = [sys.executable, "-m", "launch.batch_eval", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def scored(folder):
    """(split, n) of each line of results."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [(row["split"], row["n"]) for row in map(json.loads, lines)]


def test_one_failure_does_not_end_the_others(tmp_path, trained, environment):
    good, broken, empty = (tmp_path / name for name in ("good", "broken", "empty"))
    shutil.copytree(trained, good)
    shutil.copytree(trained, broken)
    shutil.rmtree(broken / "checkpoints")
    empty.mkdir()
    flags = ["--gin.EVAL_SPLITS=('validation', 'test')", "--gin.EVAL_STEP=latest"]
    done = launch(environment, broken, empty, good, *flags)
    assert done.returncode == 4, done.stdout + done.stderr
    table = done.stdout[done.stdout.rindex("folder ") :].splitlines()
    assert table[0].split() == ["folder", "step", "split", "accuracy", "stderr", "n", "time"]
    assert [line.split()[:3] for line in table[1:3]] == [
        [str(good), "2", "validation"],
        [str(good), "2", "test"],
    ]
    assert table[3].startswith(
        f"failed: {broken}: exit code 2: {broken}: no checkpoint for EVAL_STEP="
    )
    assert table[4].startswith(f"failed: {empty}: exit code 2: {empty}/config.gin does not exist")
    assert table[5] == "1 scored now, 0 before, 2 failed"
    # Validation from training, and test once, however often it is asked for.
    assert [split for split, _ in scored(good)] == ["validation", "test"]
    before = (good / "eval/test/2/predictions.jsonl").stat().st_mtime_ns
    again = launch(environment, good, *flags)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.endswith("\n0 scored now, 1 before, 0 failed\n")
    assert [split for split, _ in scored(good)] == ["validation", "test"]
    assert (good / "eval/test/2/predictions.jsonl").stat().st_mtime_ns == before


@pytest.fixture
def folders(tmp_path, trained):
    """Five folders of runs, as far as their configuration goes."""
    for name in ("s/m1/x", "s/m1/y", "s/m2/x", "s/m2/y", "z"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(trained / "config.gin", tmp_path / name)
    (tmp_path / "s/m2/notes").mkdir()
    return tmp_path


def test_folders_patterns_and_files_name_each_run_once(folders):
    (folders / "list").write_text(f"# the last\n\n  {folders}/z/ \n{folders}/s/m1/*\n")
    listed = score_runs.read_lists([folders / "list"])
    found = score_runs.expand([f"{folders}/s/*/*", *listed])
    names = [os.path.relpath(folder, folders) for folder in found]
    assert names == ["s/m1/x", "s/m1/y", "s/m2/x", "s/m2/y", "z"]


def test_a_pattern_may_be_of_the_working_folder(folders, monkeypatch):
    monkeypatch.chdir(folders)
    assert score_runs.expand(["s/m1/[xy]", "z"]) == ["s/m1/x", "s/m1/y", "z"]
    assert score_runs.expand(["s/m1/*", "./s/m1/x", f"{folders}/s/m1/y"]) == ["s/m1/x", "s/m1/y"]


@pytest.mark.parametrize("pattern", ["gs://b/**/x", "gs://b*/x"])
def test_a_pattern_that_no_store_knows_is_one_clear_line(pattern):
    with pytest.raises(InputError, match=r"a pattern on a store cannot contain \*\* or match b"):
        score_runs.expand([pattern])


@pytest.mark.parametrize(("first", "code"), [(69, 69), (2, 4)])
def test_what_failed_for_want_of_a_store_is_tried_again(folders, run, first, code):
    program = script(folders / "eval", f"case $3 in */x) exit {first} ;; *) exit 1 ;; esac")
    assert run(f"{folders}/s/m1/*", program=program)[0] == code


def test_a_folder_that_one_worker_cannot_read_is_still_in_one_share(folders, run, monkeypatch):
    program = script(folders / "eval", f'echo "$3" >>{folders}/seen; exit 1')
    monkeypatch.setenv("EVAL_WORKERS", "2")
    for worker, is_read in (("0", True), ("1", False)):
        monkeypatch.setenv("EVAL_WORKER", worker)
        if not is_read:
            (folders / "s/m1/x/config.gin").write_text("DATASET = ")
        run(f"{folders}/s/*/y", f"{folders}/s/m1/x", f"{folders}/z", program=program)
    assert len((folders / "seen").read_text().split()) == 4


@pytest.fixture
def run(monkeypatch, capsys):
    """The binary in this process, with launch.eval replaced: its code or error, and its output."""

    def ran(*named, program="", overrides=(), **flags):
        monkeypatch.setattr(sys, "executable", program)
        with flagsaver.flagsaver(**flags):
            try:
                code = binary.main(Arguments(positional=named, overrides=tuple(overrides)))
            except InputError as error:
                code = str(error)
        return code, capsys.readouterr().out

    absl_flags.FLAGS(["batch_eval"])
    return ran


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_workers_share_the_folders(folders, run, monkeypatch):
    program = script(folders / "eval", f'echo "$3" >>{folders}/seen; exit 1')
    shares = []
    monkeypatch.setenv("EVAL_WORKERS", "2")
    for worker in ("0", "1"):
        monkeypatch.setenv("EVAL_WORKER", worker)
        code, said = run(f"{folders}/s/*/*", f"{folders}/z", program=program)
        assert code == 4
        shares.append((folders / "seen").read_text().split())
        assert f"worker {worker} of 2: {len(shares[-1])} of 5 folders\n[1/" in said
        (folders / "seen").unlink()
    assert sorted(map(len, shares)) == [2, 3]
    assert len({*shares[0], *shares[1]}) == 5
    for worker, workers in ((2, 2), (-1, 2), (0, 0)):
        code, _ = run(f"{folders}/z", worker=worker, workers=workers)
        assert code.startswith(f"worker {worker} of {workers}: expected 0 to {workers - 1}. Set ")
        assert "or EVAL_WORKER and EVAL_WORKERS in the environment" in code


def test_the_settings_are_handed_on_and_the_reason_is_what_was_said_last(folders, run):
    program = script(
        folders / "eval",
        'echo "$@"; echo "one of $JAX_NUM_PROCESSES"; echo "error: no room" >&2; echo bye; exit 2',
    )
    overrides = ["EVAL_SPLITS=('test', 'train')", "EVAL_STEP=2"]
    code, said = run(f"{folders}/z", program=program, overrides=overrides)
    assert code == 4
    assert (
        f"-m launch.eval {folders}/z --gin.EVAL_SPLITS=('test', 'train') --gin.EVAL_STEP=2" in said
    )
    # Whatever job this is a worker of: two workers' evaluations would meet.
    assert "one of 1\n" in said
    assert said.endswith(
        f"failed: {folders}/z: exit code 2: no room\n0 scored now, 0 before, 1 failed\n"
    )


@pytest.mark.parametrize(
    ("named", "overrides", "message"),
    [
        ((), (), "no folders to score. Name folders of runs, patterns or --from_file=FILE."),
        (("{0}/q*",), (), r"/q*: no folder with a config.gin matches. Check the path."),
        (("{0}/z", "{0}/s/m1/x"), ("EVAL_STEPS=2",), "EVAL_STEPS"),
        (("{0}/z",), ("MODEL_DIR=a",), "the folder is {0}/z already. Remove the flag"),
    ],
)
def test_wrong_input_starts_nothing(folders, run, named, overrides, message):
    program = script(folders / "eval", f"touch {folders}/started")
    code, _ = run(*(name.format(folders) for name in named), program=program, overrides=overrides)
    assert message.format(folders) in code
    assert not (folders / "started").exists()


def test_sigterm_reaches_the_one_at_work_and_the_rest_is_left(folders, environment):
    # Python's place is taken by what waits to be ended, and says so.
    program = script(
        folders / "eval",
        f"trap 'touch {folders}/ended; exit 75' TERM; echo at work; sleep 60 & wait",
    )
    code = f"import sys; from launch import batch_eval, flags; sys.executable = {program!r}; "
    code += "flags.run_with_arguments(batch_eval.main)"
    command = [sys.executable, "-c", code, f"{folders}/s/*/*"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line == "at work\n":
                break
        process.send_signal(signal.SIGTERM)
        said = process.stdout.read()
        assert process.wait(60) == 75
    assert said.endswith("stopped after 0 of 4: run the same command again to continue\n")
    assert (folders / "ended").exists()


def test_this_program_leaves_the_accelerator_to_those_that_it_starts(trained, environment):
    code = "from stepdistill_jax.sweep import score_runs; import sys; "
    code += "from jax._src import xla_bridge; "
    code += "run = score_runs.read_run(sys.argv[1], []); "
    code += "print([r.step for r in score_runs.requested_results(run.config)], "
    code += "xla_bridge.backends_are_initialized())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(trained)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[2] False\n", done.stderr
