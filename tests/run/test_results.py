import dataclasses
import errno
import json
import subprocess
import sys

import pytest
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.run import load
from stepdistill_jax.run.results import (
    Result,
    append_result,
    find_result,
    mark_selected,
    read_results,
    score_folder,
)
from stepdistill_jax.spec import InputError

RESULT = Result(
    "demo", "standard", "gold", "none", 1.0, 0, "tiny", 10, "test", 100, 0.5, 0.05, "none"
)

WRITER = """
import dataclasses, sys
from stepdistill_jax.run.results import Result, append_result
RESULT = {result!r}
for step in (10, *range(int(sys.argv[2]), int(sys.argv[2]) + 20)):
    append_result(sys.argv[1], dataclasses.replace(RESULT, step=step))
"""


def test_two_writers_lose_nothing_and_write_nothing_twice(tmp_path):
    program = WRITER.format(result=RESULT)
    folder = tmp_path / "run"
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), str(start)])
        for start in (100, 200, 300)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    steps = [result.step for result in read_results(folder)]
    assert sorted(steps) == [10, *range(100, 120), *range(200, 220), *range(300, 320)]


def test_a_failed_write_leaves_the_old_lines(tmp_path, monkeypatch):
    append_result(tmp_path, RESULT)
    before = (tmp_path / "results.jsonl").read_bytes()

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "replace", full)
        with pytest.raises(OSError, match="No space left"):
            append_result(tmp_path, dataclasses.replace(RESULT, step=20))
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert append_result(tmp_path, dataclasses.replace(RESULT, step=20))
    assert [result.step for result in read_results(tmp_path)] == [10, 20]


def test_a_second_line_of_the_same_step_split_and_settings_is_refused(tmp_path):
    assert append_result(tmp_path, RESULT)
    assert not append_result(tmp_path, dataclasses.replace(RESULT, accuracy=0.9))
    assert append_result(tmp_path, dataclasses.replace(RESULT, split="validation"))
    chosen = dataclasses.replace(RESULT, settings={"EVAL_MODE": "'choices'"})
    assert append_result(tmp_path, chosen)
    assert find_result(tmp_path, 10, "test", {}) == RESULT
    assert find_result(tmp_path, 10, "test", chosen.settings) == chosen
    assert find_result(tmp_path, 20, "test", {}) is None


def test_results_of_earlier_versions_take_their_settings_from_the_run(tmp_path):
    settings = ["LEARNING_RATE=3e-4", "MAX_DECODE_LENGTH=64", "MESH_FSDP=2", "SEED=5"]
    config = load.parse(["demo.gin"], [f"MODEL_DIR='{tmp_path}'", *settings])
    (tmp_path / "config.gin").write_text(load.dump(config))
    rows = [dataclasses.asdict(RESULT), dataclasses.asdict(dataclasses.replace(RESULT, step=20))]
    for row in rows:
        del row["settings"]
    records.write_jsonl(epath.Path(tmp_path) / "results.jsonl", rows)
    scores = {
        10: {"mode": "decode", "max_decode_length": 64},
        20: {"mode": "choices", "max_decode_length": 2},
    }
    for step, score in scores.items():
        folder = tmp_path / "eval" / "test" / str(step)
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(score | {"metric": "exact"}))
    first, second = read_results(tmp_path, lambda: load.identity(load.read(tmp_path)))
    # Nothing that cannot change a result, no seed, and no default of earlier versions.
    assert first.settings["LEARNING_RATE"] == "0.0003"
    assert not {"MESH_FSDP", "SEED", "MODEL_DIR", "MAX_DECODE_LENGTH"} & first.settings.keys()
    assert second.settings == {
        **first.settings,
        "EVAL_MODE": "'choices'",
        "MAX_DECODE_LENGTH": "2",
    }
    assert score_folder(tmp_path, 10, "test", first.settings) == tmp_path / "eval/test/10"
    assert score_folder(tmp_path, 20, "test", second.settings) == tmp_path / "eval/test/20"
    assert score_folder(tmp_path, 20, "test", first.settings) == tmp_path / "eval/test/20/default"
    assert (
        score_folder(tmp_path, 10, "test", second.settings)
        == tmp_path / "eval/test/10/eval_mode=choices,max_decode_length=2"
    )


def test_one_step_a_split_is_the_selected_one(tmp_path):
    def selected():
        return [(r.step, r.split) for r in read_results(tmp_path) if r.selected_on == "validation"]

    append_result(tmp_path, RESULT)
    append_result(
        tmp_path, dataclasses.replace(RESULT, split="validation", selected_on="validation")
    )
    append_result(tmp_path, dataclasses.replace(RESULT, step=20, selected_on="validation"))
    assert selected() == [(10, "validation"), (20, "test")]
    mark_selected(tmp_path, RESULT)
    assert selected() == [(10, "test"), (10, "validation")]
    assert len(read_results(tmp_path)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"step": 1', r"results\.jsonl:2: not a JSON object"), ('{"step": 1}', r":2: fields \['st")],
)
def test_a_damaged_line_is_named(tmp_path, text, message):
    append_result(tmp_path, RESULT)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(InputError, match=message):
        read_results(tmp_path)
