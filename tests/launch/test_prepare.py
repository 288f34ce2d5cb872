"""``python -m launch.prepare`` as a user runs it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def prepare(*arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("STEPDISTILL_")}
    return subprocess.run(
        [sys.executable, "-m", "launch.prepare", *map(str, arguments)],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_table_and_json_of_public_data(shared, spiece, tmp_path):
    file = tmp_path / "numbers.json"
    done = prepare(
        "--datasets=svamp,anli",
        f"--vocabulary={spiece}",
        f"--json={file}",
        STEPDISTILL_DATA_DIR=str(shared / "data"),
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
    assert lines["svamp"] == ["svamp", "train", "test", "validation,", "carved"]
    assert "  missing from train: anli1/anli1_train.json, anli1/llm/train_CoT_0.json" in done.stdout
    columns = {(c["dataset"], c["split"]): c for c in json.loads(file.read_text())["splits"]}
    test = columns["svamp", "test"]
    assert test["rows"] == 200
    # On train and test together: input 41 / 68 tokens at 50 / 99%, label 10 / 18, rationale
    # 36 / 97 where outputs without an answer count as rationales, as they do not here.
    quantiles = {feature: length["quantiles"] for feature, length in test["lengths"].items()}
    assert [(q[0], q[2]) for q in quantiles.values()] == [(41, 68), (10, 19), (41, 68), (37, 92)]
    assert all(length["truncated"] == 0 for length in test["lengths"].values())


def test_damaged_file_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "svamp").mkdir()
    (tmp_path / "svamp" / "svamp_test.json").write_text('{"input": "a b", "label": "( 1.0 + ')
    done = prepare(f"--data_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: svamp_test.json:1: not a JSON object")
    assert "Traceback" not in done.stderr


def test_without_a_folder_the_cache_is_read(shared, tmp_path):
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "svamp").symlink_to(shared / "data" / "svamp")
    done = prepare(STEPDISTILL_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "svamp" in done.stdout


def test_no_network_is_one_line_that_says_where_to_place_the_file(tmp_path):
    nowhere = {"https_proxy": "http://127.0.0.1:1", "no_proxy": "", "NO_PROXY": ""}
    done = prepare(f"--data_dir={tmp_path}", "--datasets=asdiv", **nowhere)
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error: https://raw.githubusercontent.com/chaochun/")
    assert f"Save the file as {tmp_path}/asdiv/ASDiv.xml and run again" in message
    assert "Traceback" not in done.stderr


def test_own_gin_file(tmp_path):
    for split in ("train", "test"):
        rows = [{"q": f"{split} {i}", "y": "ja", "why": "so ja"} for i in range(40)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    gin_file = tmp_path / "own.gin"
    gin_file.write_text(
        'include "parts/run.gin"\ninclude "models/tiny.gin"\ninclude "methods/step_by_step.gin"\n'
        f'MODEL_DIR = "{tmp_path}/run"\nDATASET = "jsonl"\nDATA_DIR = "{tmp_path}"\n'
        'TRAIN_FILE = "train.jsonl"\nTEST_FILE = "test.jsonl"\nINPUT_TEMPLATE = "{q}"\n'
        'LABEL_COLUMN = "y"\nRATIONALE_COLUMN = "why"\nVOCABULARY = "bytes"\n'
        "INITIAL_CHECKPOINT = None\n"
    )
    done = prepare(f"--gin_file={gin_file}", "--gin.MAX_RATIONALE_LENGTH=5")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["jsonl", "train", "validation", "test"] in lines
    assert ["rows", "36", "4", "40"] in lines
    assert ["rationale_targets", "rows", "over", "5", "tokens", "36", "4", "40"] in lines
    assert not (tmp_path / "run").exists()
