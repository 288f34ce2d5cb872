"""METHOD=teacher: the teacher's own answers, scored by the binaries as a run of their own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from launch import eval as eval_binary
from launch import train
from launch.flags import Arguments
from stepdistill_jax import records
from stepdistill_jax.data import join
from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.eval import teacher
from stepdistill_jax.eval.teacher import RELEASED_PARAMETERS, TeacherEvalConfig
from stepdistill_jax.run import load
from stepdistill_jax.run.results import read_results
from stepdistill_jax.spec import InputError

ROOT = pathlib.Path(__file__).parents[2]


def run_of(folder, gin_file, shared, *overrides):
    """The configuration that ``--gin_file=GIN_FILE --gin_file=methods/teacher.gin`` gives."""
    settings = (f"MODEL_DIR={folder}", f"DATA_DIR={shared / 'data'}", "VOCABULARY=bytes")
    return load.parse([gin_file, "methods/teacher.gin"], [*settings, *overrides])


def lines_of(folder, split):
    path = folder / "eval" / split / "0" / "predictions.jsonl"
    return [row for _, row in records.read_jsonl(path)]


def metrics_of(folder, split):
    return json.loads((folder / "eval" / split / "0" / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("dataset", "split", "n", "percent", "repaired", "unreadable"),
    [
        ("esnli", "test", 9824, "72.99", "72.99", 1),
        ("esnli", "validation", 9842, "73.17", "73.17", 4),
        ("anli", "test", 1000, "65.60", "66.40", 10),
        ("anli", "validation", 1000, "66.80", "67.50", 9),
        ("cqa", "test", 1221, "77.23", "78.38", 46),
        ("svamp", "test", 200, "74.00", "77.50", 7),
    ],
)
def test_the_published_figures(shared, tmp_path, dataset, split, n, percent, repaired, unreadable):
    run = run_of(tmp_path, f"{dataset}.gin", shared, f"EVAL_SPLITS=('{split}',)")
    assert train.main(run) == 0
    (result,) = read_results(tmp_path)
    assert (result.n, f"{100 * result.accuracy:.2f}") == (n, percent)
    assert (result.dataset, result.split, result.step) == (dataset, split, 0)
    assert (result.method, result.model, result.labels) == ("teacher", "teacher", "none")
    assert (result.selected_on, result.fraction, result.seed) == ("none", 1.0, 0)
    assert result.train_pairs is result.train_flops is result.device_seconds is None
    stored = metrics_of(tmp_path, split)
    assert {
        parse: f"{100 * share:.2f}" for parse, share in stored["accuracy_by_parse"].items()
    } == {
        "release": percent,
        "repaired": repaired,
    }
    lines = lines_of(tmp_path, split)
    assert len(lines) == n
    assert sum(line["correct"] for line in lines) == round(n * result.accuracy)
    failed = [line for line in lines if "failure" in line]
    assert len(failed) == sum(stored["failures"].values()) == unreadable
    assert not any(line["correct"] for line in failed)
    assert set(lines[0]) == {"id", "input", "target", "prediction", "correct"}
    finished = json.loads((tmp_path / "finished.json").read_text())
    assert finished == {"step": 0, "best_step": 0, "accuracy": {split: result.accuracy}}


def test_our_parsing_can_be_scored_instead(shared, tmp_path):
    train.main(run_of(tmp_path, "svamp.gin", shared, "TEACHER_PARSE=repaired"))
    (result,) = read_results(tmp_path)
    assert result.accuracy == 0.775
    assert metrics_of(tmp_path, "test")["parse"] == "repaired"
    # The same folder does not take the other parsing's figures.
    with pytest.raises(InputError, match="holds a run with TEACHER_PARSE='repaired'"):
        train.main(run_of(tmp_path, "svamp.gin", shared))


def test_validation_that_is_carved_is_what_students_are_validated_on(shared, tmp_path):
    train.main(run_of(tmp_path, "cqa.gin", shared, "EVAL_SPLITS=('validation', 'train')"))
    assert {result.split: result.n for result in read_results(tmp_path)} == {
        "validation": 974,
        "train": 8767,
    }
    ids = [{line["id"] for line in lines_of(tmp_path, split)} for split in ("validation", "train")]
    assert not ids[0] & ids[1]


def test_the_same_command_again_adds_nothing_and_eval_adds_splits(shared, tmp_path):
    run = run_of(tmp_path, "svamp.gin", shared)
    train.main(run)
    before = (tmp_path / "results.jsonl").read_bytes()
    predictions = tmp_path / "eval" / "test" / "0" / "predictions.jsonl"
    written = predictions.stat().st_mtime_ns
    assert train.main(run) == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert predictions.stat().st_mtime_ns == written
    arguments = Arguments(
        positional=(str(tmp_path),), overrides=("EVAL_SPLITS=('validation', 'test')",)
    )
    eval_binary.main(arguments)
    assert [result.split for result in read_results(tmp_path)] == ["test", "validation"]
    assert json.loads((tmp_path / "finished.json").read_text())["accuracy"] == {"test": 0.74}


def test_a_folder_of_another_run_is_refused(shared, tmp_path):
    train.main(run_of(tmp_path, "svamp.gin", shared))
    with pytest.raises(InputError, match=r"holds a run with .*DATASET='svamp' .now 'anli'."):
        train.main(run_of(tmp_path, "anli.gin", shared))


def test_it_runs_without_devices_vocabulary_or_weights(shared, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STEPDISTILL_")}
    environment |= {"JAX_PLATFORMS": "none_such", "HF_HUB_CACHE": str(tmp_path / "empty")}
    flags = (
        "--gin_file=svamp.gin",
        "--gin_file=methods/teacher.gin",
        f"--gin.DATA_DIR={shared / 'data'}",
        f"--gin.MODEL_DIR={tmp_path / 'run'}",
    )
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy of the teacher 74.00% (standard error 3.10%, n 200)" in done.stdout
    (result,) = read_results(tmp_path / "run")
    # Without a vocabulary there are no tokens to charge for.
    assert (result.parameters, result.serving_flops) == (RELEASED_PARAMETERS, None)
    assert metrics_of(tmp_path / "run", "test")["mean_tokens"] is None


def own(folder, shared, *overrides):
    """A user's own data, and another teacher's answers to its test rows."""
    rows = [{"id": n, "input": f"text {n}", "label": ("no", "yes")[n % 2]} for n in range(8)]
    lines = [{"id": n, "rationale": f"r{n}", "label": "yes"} for n in range(6)]
    lines.append({"id": 6, "rationale": "r6"})
    for name, content in (("rows", rows), ("taught_test", lines), ("taught_train", lines)):
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text)
    columns = (
        "TRAIN_FILE=rows.jsonl",
        "TEST_FILE=rows.jsonl",
        "ID_COLUMN=id",
        "INPUT_TEMPLATE='{input}'",
        "LABEL_COLUMN=label",
        "RATIONALE_COLUMN=''",
        f"DATA_DIR={folder}",
        f"RATIONALES='file:{folder}/taught_{{split}}.jsonl'",
    )
    return run_of(folder / "run", "own_jsonl.gin", shared, *columns, *overrides)


def test_another_teachers_file_is_scored_with_what_it_lacks_as_wrong(shared, tmp_path):
    train.main(own(tmp_path, shared, "TEACHER_PARAMETERS=1000"))
    (result,) = read_results(tmp_path / "run")
    assert (result.n, result.accuracy, result.parameters) == (8, 3 / 8, 1000)
    lines = lines_of(tmp_path / "run", "test")
    assert [line.get("failure") for line in lines] == [None] * 6 + ["no label", "no output"]
    assert [line["prediction"] for line in lines] == ["yes"] * 6 + ["", ""]
    stored = metrics_of(tmp_path / "run", "test")
    assert stored["failures"] == {"no label": 1, "no output": 1}
    assert stored["accuracy_by_parse"] == {}
    # In bytes: "text 0" is read; "r0 yes", of the seventh "r6", and of the last nothing written.
    assert stored["mean_tokens"] == {"read": 6.0, "written": (6 * 6 + 2) / 8}
    assert result.serving_flops == 2 * 1000 * (6 + 38 / 8)


def test_answers_with_the_gold_label_given_are_not_the_teachers_own(shared, tmp_path):
    run = own(tmp_path, shared)
    path = tmp_path / "taught_test.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["hinted"] = lines[3]["hinted"] = True
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train.main(run)
    (result,) = read_results(tmp_path / "run")
    # Rows 1, 3 and 5 are "yes"; of the first two that was told.
    assert (result.n, result.accuracy) == (8, 1 / 8)
    stored = metrics_of(tmp_path / "run", "test")
    assert stored["failures"] == {"hinted": 2, "no label": 1, "no output": 1}
    # A student that reads rationales may not read those.
    with pytest.raises(InputError, match=r"taught_test\.jsonl:2: the rationale of id 1 .*hinted"):
        join.load_pairs(run.data, "test")


def test_a_teacher_is_not_scored_on_rows_without_gold_labels(shared, tmp_path):
    with pytest.raises(InputError, match=r"rows.jsonl:1: no gold label .*but test is scored by it"):
        train.main(own(tmp_path, shared, "LABEL_COLUMN=''"))
    assert read_results(tmp_path / "run") == []


def test_nobody_elses_teacher_has_540_billion_parameters(shared, tmp_path):
    train.main(own(tmp_path, shared))
    (result,) = read_results(tmp_path / "run")
    assert (result.parameters, result.serving_flops) == (None, None)
    # Outputs of one's own in the release's place are not the release's either.
    folder = tmp_path / "data" / "svamp"
    (folder / "llm").mkdir(parents=True)
    for name in ("svamp_test.json", "llm/test_CoT_0.json"):
        (folder / name).write_bytes((shared / "data" / "svamp" / name).read_bytes())
    settings = (DataConfig("svamp", str(tmp_path / "data")), TeacherEvalConfig(), "test", None)
    assert teacher.score(tmp_path / "a", *settings).parameters == RELEASED_PARAMETERS
    path = folder / "llm" / "test_CoT_0.json"
    path.write_text(path.read_text().replace("The answer", "the answer", 1))
    assert teacher.score(tmp_path / "b", *settings).parameters is None
    with pytest.raises(InputError, match=r"scored with data .*\. Restore the old data, or delete"):
        teacher.score(tmp_path / "a", *settings)


def test_a_teacher_of_train_alone_cannot_be_scored_on_test(shared, tmp_path):
    path = tmp_path / "taught_train.jsonl"
    run = own(tmp_path, shared, f"RATIONALES='file:{path}'")
    with pytest.raises(InputError, match=r"annotates only train, but .* test\. Write .*\{split\}"):
        train.main(run)
    (tmp_path / "svamp").mkdir()
    name = "svamp/svamp_test.json"
    (tmp_path / name).write_bytes((shared / "data" / name).read_bytes())
    bare = run_of(tmp_path / "bare", "svamp.gin", shared, f"DATA_DIR={tmp_path}")
    with pytest.raises(InputError, match=r"'svamp' has no teacher outputs for test in .*svamp/llm"):
        train.main(bare)


@pytest.mark.parametrize(
    ("gin_file", "override", "message"),
    [
        (
            "cqa.gin",
            "RATIONALES=human",
            r"RATIONALES='human' of DATASET='cqa' has none\. .*'teacher'",
        ),
        ("cqa.gin", "RATIONALES=shuffled", "RATIONALES='shuffled' of DATASET='cqa' has none"),
        (
            "own_jsonl.gin",
            "SEED=0",
            r"gin:8: .* of DATASET='jsonl' has none\. Set .* a label per line\)\.$",
        ),
        ("cqa.gin", "TEACHER_PARSE=ours", "TEACHER_PARSE: got 'ours', expected one of"),
        ("cqa.gin", "TEACHER_PARAMETERS=-1", r"TEACHER_PARAMETERS: got -1\.0, expected at least 0"),
    ],
)
def test_a_teacher_without_answers_is_refused(shared, tmp_path, gin_file, override, message):
    with pytest.raises(InputError, match=message):
        run_of(tmp_path, gin_file, shared, override)
