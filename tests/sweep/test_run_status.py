import json
import os

import pytest

from stepdistill_jax.run import load as configs
from stepdistill_jax.sweep import matrix, run_status
from stepdistill_jax.sweep.run_status import Attempt, State, TrainingProgress


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text(
        f'include "parts/sweep.gin"\nSWEEP_DIR = "{tmp_path}/sweep"\n'
        'SWEEP_RUN_FILES = "demo.gin"\nSWEEP_METHODS = "standard"\n'
        'EVAL_SPLITS = ("validation", "test")\n'
    )
    (planned,) = matrix.read([path]).runs
    return planned


@pytest.fixture
def folder(run, tmp_path):
    folder = tmp_path / "sweep" / run.name
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(configs.dump(run.config))
    return folder


def save(folder, step):
    """What a checkpoint looks like from outside."""
    (folder / "checkpoints" / str(step)).mkdir(parents=True)


def finish(folder, *splits):
    accuracy = dict.fromkeys(splits, 0.5)
    (folder / "finished.json").write_text(json.dumps({"step": 9, "accuracy": accuracy}))


def test_a_run_from_its_beginning_to_its_end(run, folder):
    assert run_status.read_status(run).state == State.WAITING
    save(folder, 500)
    save(folder, 1000)
    status = run_status.read_status(run)
    assert (status.state, status.saved) == (State.STARTED, 1000)
    finish(folder, "validation", "test")
    status = run_status.read_status(run)
    assert status.state == State.DONE
    assert dict(status.accuracy) == {"validation": 0.5, "test": 0.5}


def test_without_a_folder_it_waits_and_looking_makes_none(run):
    assert run_status.read_status(run).state == State.WAITING
    assert not os.path.exists(run.config.model_dir)


def test_a_split_that_was_added_later_is_still_to_be_scored(run, folder):
    save(folder, 1500)
    finish(folder, "test")
    assert run_status.read_status(run).state == State.STARTED


def test_a_failure_is_remembered_until_it_is_done(run, folder):
    run_status.write_attempt(folder, Attempt(2, "exit code 2: no such file", 3.5, 0))
    status = run_status.read_status(run)
    assert (status.state, status.reason) == (State.FAILED, "exit code 2: no such file")
    assert status.attempt == Attempt(2, "exit code 2: no such file", 3.5, 0)
    finish(folder, "validation", "test")
    assert run_status.read_status(run).state == State.DONE


def test_a_preempted_attempt_is_no_failure(run, folder):
    save(folder, 3)
    run_status.write_attempt(folder, Attempt(75, "", 3.5, 0))
    assert run_status.read_status(run).state == State.STARTED


@pytest.mark.parametrize("begin", [lambda f: save(f, 5), lambda f: finish(f, "validation", "test")])
def test_a_folder_with_another_run(run, folder, begin):
    other = configs.dump(run.config).replace("LEARNING_RATE = 0.002", "LEARNING_RATE = 0.1")
    (folder / "config.gin").write_text(other)
    # Nothing was trained yet: the settings may change.
    assert run_status.read_status(run).state == State.WAITING
    begin(folder)
    status = run_status.read_status(run)
    assert status.state == State.CHANGED
    assert status.reason == "LEARNING_RATE=0.1 (now 0.002)"


def test_a_lock_keeps_others_off_until_its_last_holder_is_gone(run, folder):
    descriptor = run_status.lock(folder)
    inherited = os.dup(descriptor)
    assert run_status.lock(folder) is None
    assert run_status.read_status(run).state == State.RUNNING
    assert run_status.read_status(run, locked_here=True).state == State.WAITING
    os.close(descriptor)
    assert run_status.read_status(run).state == State.RUNNING
    os.close(inherited)
    assert run_status.read_status(run).state == State.WAITING


def test_progress_of_a_run_that_is_writing(folder):
    assert run_status.read_progress(folder) == TrainingProgress(0, None, None)
    lines = [json.dumps({"step": s, "pairs_per_second": 2.0 * s}) + "\n" for s in range(1, 900)]
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 900, "pairs_')
    rows = [("validation", 1, 0.25), ("validation", 2, 0.5), ("test", 2, 0.75)]
    (folder / "results.jsonl").write_text(
        "".join(json.dumps({"split": s, "step": n, "accuracy": a}) + "\n" for s, n, a in rows)
    )
    assert run_status.read_progress(folder) == TrainingProgress(899, 1798.0, 0.5)


def test_damaged_files_show_as_no_progress(run, folder):
    (folder / "metrics.jsonl").mkdir()
    (folder / "results.jsonl").write_text("{}\nnot JSON\n[1]\n")
    (folder / "finished.json").write_text('{"step"')
    (folder / "attempt.json").write_text('{"step": 1}')
    assert run_status.read_progress(folder) == TrainingProgress(0, None, None)
    assert run_status.read_status(run).attempt is None
