import os
import signal
import subprocess
import sys

import pytest
import seqio

import tasks.cqa
import tasks.demo
import tasks.svamp
from stepdistill_jax.spec import FEATURES, InputError
from tasks.registration import register

LENGTHS = dict.fromkeys(FEATURES, 64)


def rows(name, split, count):
    task = seqio.get_mixture_or_task(name)
    dataset = task.get_dataset(LENGTHS, split=split, shuffle=False)
    return list(dataset.take(count).as_numpy_iterator())


def test_one_command_lists_every_task_by_name_and_reads_no_file():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STEPDISTILL_")}
    done = subprocess.run(
        [sys.executable, "-m", "tasks"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    names = [
        f"{dataset}_{labels}_{method}"
        for dataset in ("anli", "cqa", "esnli", "svamp")
        for labels in ("gold", "teacher")
        for method in ("standard", "step_by_step")
    ]
    demo = ["demo_gold_standard", "demo_gold_step_by_step"]
    assert done.stdout.split() == sorted(names + demo)


def test_a_reader_that_closes_the_list_early_gets_no_trace():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tasks"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "BrokenPipeError" not in done.stderr
    assert done.returncode == -signal.SIGPIPE


def test_importing_a_data_set_registers_its_tasks():
    assert tasks.cqa.NAMES == (
        "cqa_gold_standard",
        "cqa_gold_step_by_step",
        "cqa_teacher_standard",
        "cqa_teacher_step_by_step",
    )
    assert all(name in seqio.TaskRegistry.names() for name in tasks.cqa.NAMES)


def test_the_demo_task_needs_neither_files_nor_environment(monkeypatch):
    for variable in ("STEPDISTILL_DATA_DIR", "STEPDISTILL_VOCABULARY"):
        monkeypatch.delenv(variable, raising=False)
    assert tasks.demo.NAMES == ("demo_gold_standard", "demo_gold_step_by_step")
    for row in rows("demo_gold_step_by_step", "validation", 5):
        assert set(FEATURES) <= row.keys()
        assert all(row[feature][-1] == 1 for feature in FEATURES)
        assert row["rationale_weight"] == 1.0
        assert len(row["label_inputs"]) == 15
        assert len(row["label_targets"]) == 2
        assert len(row["rationale_targets"]) <= 25


def test_labels_and_rationales_are_those_of_the_name(shared, spiece, monkeypatch):
    """SVAMP's teacher is right on three rows in four, so some of its labels differ from gold."""
    monkeypatch.setenv("STEPDISTILL_DATA_DIR", str(shared / "data"))
    monkeypatch.setenv("STEPDISTILL_VOCABULARY", str(spiece))
    gold = rows("svamp_gold_step_by_step", "train", 100)
    teacher = rows("svamp_teacher_step_by_step", "train", 100)
    standard = rows("svamp_gold_standard", "train", 100)
    assert all(row["label"] == row["gold"] for row in gold)
    assert any(row["label"] != row["gold"] for row in teacher)
    assert sum(row["rationale_weight"] for row in gold) > 90
    assert all(row["rationale_weight"] == 0 for row in standard)
    assert all(row["rationale_targets"].tolist() == [1] for row in standard)
    assert [row["label_inputs"].tolist() for row in gold] == [
        row["label_inputs"].tolist() for row in standard
    ]


def test_a_task_scores_with_its_data_sets_metric():
    (cqa,) = seqio.TaskRegistry.get("cqa_gold_standard").metric_fns
    (svamp,) = seqio.TaskRegistry.get("svamp_gold_standard").metric_fns
    pairs = {"targets": ["( 8.0 + 2.0 )", "4"], "predictions": ["(2 + 8)", "5"]}
    assert svamp(**pairs) == {"accuracy": 0.5}
    assert cqa(**pairs) == {"accuracy": 0.0}
    assert cqa(["a", "b"], [" a", "b"]) == {"accuracy": 1.0}


def test_using_a_task_without_its_data_says_what_to_set(spiece, monkeypatch):
    monkeypatch.setenv("STEPDISTILL_VOCABULARY", str(spiece))
    monkeypatch.setenv("STEPDISTILL_DATA_DIR", "/no/such/folder")
    with pytest.raises(InputError, match="/no/such/folder"):
        rows("cqa_gold_standard", "train", 1)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="duplicate provider: svamp_gold_standard"):
        register("svamp")
