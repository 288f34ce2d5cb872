"""Damaged side files of a run are set aside, and the run continues without loss of the rest."""

import json

import pytest

from stepdistill_jax.checkpoint import manager
from stepdistill_jax.run import load
from stepdistill_jax.run.mend import mend
from stepdistill_jax.run.results import read_results
from stepdistill_jax.spec import InputError

RESULT = {
    "dataset": "demo", "method": "standard", "labels": "gold", "rationales": "none",
    "fraction": 1.0, "seed": 0, "model": "demo", "step": 3, "split": "validation", "n": 10,
    "accuracy": 0.5, "stderr": 0.1, "selected_on": "none",
}  # fmt: skip
COST = {"step": 3, "train_pairs": 10, "train_flops": 1.0, "device_seconds": 2.0}
GOOD = {
    "goodput.json": json.dumps({"since": 0.0, "seconds": {"step": 1.0}}),
    "metrics.jsonl": '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n',
    "costs.jsonl": json.dumps(COST) + "\n",
    "results.jsonl": json.dumps(RESULT) + "\n",
}


@pytest.fixture
def folder(tmp_path):
    """A run with a checkpoint of step 3 and all its accounts."""
    config = load.parse(["demo.gin"], [f"MODEL_DIR={str(tmp_path)!r}", "SEED=4"])
    (tmp_path / "config.gin").write_text(load.dump(config))
    for name, text in GOOD.items():
        (tmp_path / name).write_text(text)
    identity = tmp_path / "checkpoints" / "3" / "identity"
    identity.mkdir(parents=True)
    (identity / "metadata").write_text(json.dumps({"config": load.dump(config)}))
    (tmp_path / "checkpoints" / "3" / "_CHECKPOINT_METADATA").write_text("{}")
    return tmp_path


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_sound_files_stay_as_they_are(folder, caplog):
    # With the torn last line that a kill leaves.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    before = files(folder)
    mend(folder)
    assert files(folder) == before
    assert not caplog.messages
    assert manager.checkpoints_folder(folder).exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"[]", b"{}", b"{"])
def test_a_damaged_account_of_time_is_begun_anew(folder, caplog, content):
    (folder / "goodput.json").write_bytes(content)
    mend(folder)
    assert caplog.messages == [
        f"{folder}/goodput.json is damaged: kept as goodput.json.damaged1, and begun anew"
    ]
    assert not (folder / "goodput.json").exists()
    assert (folder / "goodput.json.damaged1").read_bytes() == content


@pytest.mark.parametrize("name", ["metrics.jsonl", "costs.jsonl", "results.jsonl"])
@pytest.mark.parametrize("bad", [b"\0" * 40, b'{"st', b"[1]", b'{"other": 1}'])
def test_lines_that_can_be_read_are_kept(folder, caplog, name, bad):
    good = GOOD[name].encode()
    (folder / name).write_bytes(bad + b"\n" + good)
    mend(folder)
    assert (folder / name).read_bytes() == good
    assert (folder / f"{name}.damaged1").read_bytes() == bad + b"\n" + good
    count = 1 + good.count(b"\n")
    assert caplog.messages == [
        f"{folder}/{name} is damaged: kept as {name}.damaged1, and continued without 1 of {count} "
        "lines"
    ]
    mend(folder)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 99, None])
def test_the_configuration_comes_back_from_the_checkpoint(folder, caplog, content):
    path, before = folder / "config.gin", (folder / "config.gin").read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged: empty.*Run the training command again"):
            load.read(folder)
    mend(folder)
    assert path.read_bytes() == before
    assert load.read(folder).seed == 4
    (message,) = caplog.messages
    assert "written again from" in message


def test_results_of_the_kept_lines_are_read(folder):
    (folder / "results.jsonl").write_text("{\n" + GOOD["results.jsonl"])
    mend(folder)
    assert [result.accuracy for result in read_results(folder)] == [0.5]
