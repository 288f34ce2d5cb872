import dataclasses
import json

import pytest

from stepdistill_jax.bench import trajectories
from stepdistill_jax.run import load

pytest.importorskip("torch", reason="the released recipe runs on PyTorch")

pytestmark = pytest.mark.usefixtures("one_device")

STEPS = 12
METRICS = ("loss", "label_loss", "rationale_loss", "grad_norm")
TIED = ("TIED_EMBEDDINGS=True", "MLP_ACTIVATIONS=('relu',)", "SCAN_LAYERS=True")


def run(caches, *overrides):
    return load.parse(
        ["demo.gin"],
        [
            f"CACHE_DIR={str(caches)!r}",
            "MODEL_DIR='unused'",
            "FRACTION=0.1",
            "EMB_DIM=16",
            "MLP_DIM=32",
            "BATCH_SIZE=8",
            "ALPHA=0.3",
            f"TRAIN_STEPS={STEPS}",
            "WARMUP_STEPS=2",
            "WEIGHT_DECAY=0.1",
            "CLIP_NORM=0.3",
            *overrides,
        ],
    )


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("pack", "model"), [(False, ()), (True, TIED)])
def test_ours_and_the_recipe_train_alike(caches, tmp_path, pack, model):
    lengths = ("INPUT_ROW_LENGTH=64", "LABEL_ROW_LENGTH=8", "RATIONALE_ROW_LENGTH=80")
    settings = run(caches, f"PACK={pack}", *model, *(lengths if pack else ()))
    trajectories.follow(settings, STEPS, seeds=1, folder=tmp_path)

    steps = rows(tmp_path / "steps.jsonl")
    assert [step["number"] for step in steps] == list(range(1, STEPS + 1))
    for step in steps:
        for metric in METRICS:
            assert step["ours"][metric] == pytest.approx(step["theirs"][metric], rel=1e-4)
    # Clipping was at work, and both have learned.
    assert min(step["ours"]["grad_norm"] for step in steps) > settings.optimizer.clip_norm
    assert steps[-1]["ours"]["loss"] < steps[0]["ours"]["loss"]

    parameters = rows(tmp_path / "parameters.jsonl")
    for parameter in parameters:
        assert parameter["relative"] < 1e-4, parameter["name"]
    assert parameters[-1]["name"] == "all"
    assert parameters[-1]["of_update"] < 1e-4
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_are_compared_by_their_last_steps(caches, tmp_path):
    settings = run(caches, "DROPOUT_RATE=0.1")
    found = trajectories.follow(settings, 3, seeds=2, folder=tmp_path)
    steps = rows(tmp_path / "steps.jsonl")
    assert [(s["seed"], s["number"]) for s in steps] == [(s, n) for s in (0, 1) for n in (1, 2, 3)]
    # Each seed has its own parameters and order.
    assert steps[0]["ours"]["loss"] != pytest.approx(steps[3]["ours"]["loss"], rel=1e-4)

    measured = {line.name: line for line in found}
    for metric in ("label_loss", "rationale_loss"):
        for who, key in (("ours", "ours"), ("recipe", "theirs")):
            means = [sum(s[key][metric] for s in steps[i : i + 3]) / 3 for i in (0, 3)]
            line = measured[f"{metric}, last 3 steps, {who}"]
            assert line.spread.values == pytest.approx(means)
            assert line.remark.startswith(f"mean {sum(means) / 2:.5f} +- ")
        difference = measured[f"{metric}, last 3 steps, ours less recipe"]
        assert "within the standard error" in difference.remark


def test_a_difference_would_be_seen(caches, tmp_path, monkeypatch):
    """The recipe with another alpha than ours."""
    theirs = trajectories.make_recipe

    def other(parts):
        recipe = theirs(parts)
        objective = dataclasses.replace(recipe.config.objective, alpha=0.31)
        recipe.config = dataclasses.replace(recipe.config, objective=objective)
        return recipe

    monkeypatch.setattr(trajectories, "make_recipe", other)
    trajectories.follow(run(caches), 2, seeds=1, folder=tmp_path)
    first = rows(tmp_path / "steps.jsonl")[0]
    assert first["ours"]["label_loss"] == pytest.approx(first["theirs"]["label_loss"], rel=1e-4)
    assert first["ours"]["grad_norm"] != pytest.approx(first["theirs"]["grad_norm"], rel=1e-4)
