import json
import os
import pathlib
import subprocess
import sys

import pytest

from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.run import load

ROOT = pathlib.Path(__file__).parents[2]

# As on a machine where they are not installed: no finder knows them.
BLOCKED = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_text", "seqio", "tasks", "torch"):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

from launch import bench, flags

def main(arguments):
    bench.main(arguments)
    assert not {"tensorflow", "seqio", "tasks", "torch"} & set(sys.modules)

flags.run_with_arguments(main)
"""


def overrides(folder):
    return [
        f"CACHE_DIR={str(folder / 'caches')!r}",
        f"MODEL_DIR={str(folder / 'run')!r}",
        "FRACTION=0.1",
        "EMB_DIM=8",
        "MLP_DIM=8",
        "NUM_HEADS=2",
        "NUM_ENCODER_LAYERS=1",
        "EVAL_BATCH_SIZE=16",
        "INITIAL_CHECKPOINT='hf:not/fetched'",
        "RATIONALE_ROW_LENGTH=36",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds warm token caches of a small part of the demo."""
    folder = tmp_path_factory.mktemp("bench")
    run = load.parse(["demo.gin"], overrides(folder))
    for split in ("train", "validation"):
        open_or_build(run.data, run.tokens, split)
    return folder


def bench(folder, *flags):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            BLOCKED,
            "--gin_file=demo.gin",
            *(f"--gin.{setting}" for setting in overrides(folder)),
            "--windows=2",
            "--steps_per_window=1",
            *flags,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_measures_a_run_with_a_warm_token_cache_and_no_tensorflow(folder):
    done = bench(folder, f"--json={folder / 'numbers.json'}", "--startup")
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "numbers.json").read_text())
    assert report["machine"]["devices"] == 8
    assert report["run"]["dtype"] == "float32"
    assert report["unpacked batch"]["rows"] == 32
    assert [what.split(" (")[0] for what in report["left_out"]] == ["start-up", "token cache build"]

    medians = {
        (m["name"], m["unit"]): m["spread"] and m["spread"]["median"]
        for m in report["measurements"]
    }
    for name in ("train, packed", "train, unpacked"):
        # The demo's pairs hold 15 input tokens a stream, a label of 2 and a rationale of 18.
        assert medians[name, "tokens/s"] > 49.9 * medians[name, "pairs/s"] > 0
    for mode in ("packed", "unpacked"):
        parts = [medians[f"step time, {mode}: {part}", "ms"] for part in ("wait", "place", "step")]
        assert min(parts) >= 0 < max(parts)
        for stream in ("label", "rationale"):
            for feature in ("inputs", "targets"):
                assert 0 < medians[f"fill, {mode}: {stream}_{feature}", "of slots"] <= 1
    # The demo's inputs are all as long as their rows, its rationales have half of theirs.
    assert medians["fill, unpacked: label_inputs", "of slots"] == 1
    assert medians["fill, unpacked: rationale_targets", "of slots"] == 0.5
    for measured in (
        ("train, packed over unpacked", "times"),
        ("label decode", "examples/s"),
        ("pipeline alone", "pairs/s"),
        ("pipeline alone", "pairs/CPU s"),
        ("peak host memory", "MiB"),
    ):
        assert medians[measured] > 0
    assert medians["peak device memory", "MiB"] is None

    repeated = [m for m in report["measurements"] if m["name"].startswith("train")]
    assert {len(m["spread"]["values"]) for m in repeated} == {2}
    for line in (
        "machine: cpu ",
        "run: dataset demo, ",
        "left out: token cache build",
        "measured ",
    ):
        assert f"\n{line}" in f"\n{done.stdout}"
    assert "not reported by this device" in done.stdout
    # Each figure is printed when it is measured, the table at the end.
    lines = done.stdout.splitlines()
    table = next(i for i, line in enumerate(lines) if line.startswith("machine: "))
    names = [line.partition(": ")[0] for line in lines[: table - 1]]
    assert names[0] == "first step, packed"
    assert names[-1] == "peak device memory"
    assert len(names) == len(report["measurements"])
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--against=recipe", "not installed: torch. Run pip install 'stepdistill-jax[test]'."),
        ("--trajectories=there", "needs a second trainer. Add --against=recipe."),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line(folder, flag, message):
    done = bench(folder, flag)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"{message}\n")


def test_a_cache_that_is_neither_there_nor_can_be_built_is_one_line(tmp_path):
    done = bench(tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "error: No token cache of dataset 'demo', split 'train'" in done.stderr
    assert "Traceback" not in done.stderr
