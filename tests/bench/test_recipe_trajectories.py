import dataclasses
import importlib.util
import json
import math

import numpy as np
import pytest

from stepdistill_jax.bench import recipe_trajectories
from stepdistill_jax.bench.measurement import Results
from stepdistill_jax.bench.recipe_trajectories import (
    TrajectoryStep,
    distances,
    mean_and_error,
    means_agree,
)
from stepdistill_jax.run import load

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


needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the released recipe runs on PyTorch"
)


@needs_torch
@pytest.mark.parametrize(("pack", "model"), [(False, ()), (True, TIED)])
def test_ours_and_the_recipe_train_alike(caches, tmp_path, pack, model):
    lengths = ("INPUT_ROW_LENGTH=64", "LABEL_ROW_LENGTH=8", "RATIONALE_ROW_LENGTH=80")
    settings = run(caches, f"PACK={pack}", *model, *(lengths if pack else ()))
    recipe_trajectories.compare(settings, STEPS, 1, tmp_path, Results())

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


@needs_torch
def test_seeds_are_compared_by_their_last_steps(caches, tmp_path):
    settings = run(caches, "DROPOUT_RATE=0.1")
    results = Results()
    recipe_trajectories.compare(settings, 3, 2, tmp_path, results)
    steps = rows(tmp_path / "steps.jsonl")
    assert [(s["seed"], s["number"]) for s in steps] == [(s, n) for s in (0, 1) for n in (1, 2, 3)]
    # Each seed has its own parameters and order.
    assert steps[0]["ours"]["loss"] != pytest.approx(steps[3]["ours"]["loss"], rel=1e-4)

    measured = {line.name: line for line in results.measurements}
    for metric in ("label_loss", "rationale_loss"):
        by_trainer = {}
        for who, key in (("ours", "ours"), ("recipe", "theirs")):
            by_trainer[who] = means = [
                sum(s[key][metric] for s in steps[i : i + 3]) / 3 for i in (0, 3)
            ]
            line = measured[f"{metric}, last 3 steps, {who}"]
            assert line.spread.values == pytest.approx(means)
            assert line.remark.startswith(f"mean {sum(means) / 2:.5f} +- ")
        difference = measured[f"{metric}, last 3 steps, ours less recipe"]
        apart = [o - r for o, r in zip(by_trainer["ours"], by_trainer["recipe"], strict=True)]
        assert difference.spread.values == pytest.approx(apart)
        assert difference.remark.startswith(f"mean {sum(apart) / 2:.5f} +- ")
        assert "within the standard error" in difference.remark


@needs_torch
def test_a_difference_would_be_seen(caches, tmp_path, monkeypatch):
    """The recipe with another alpha than ours."""
    theirs = recipe_trajectories.make_recipe

    def other(parts):
        recipe = theirs(parts)
        objective = dataclasses.replace(recipe.config.objective, alpha=0.31)
        recipe.config = dataclasses.replace(recipe.config, objective=objective)
        return recipe

    monkeypatch.setattr(recipe_trajectories, "make_recipe", other)
    recipe_trajectories.compare(run(caches), 2, 1, tmp_path, Results())
    first = rows(tmp_path / "steps.jsonl")[0]
    assert first["ours"]["label_loss"] == pytest.approx(first["theirs"]["label_loss"], rel=1e-4)
    assert first["ours"]["grad_norm"] != pytest.approx(first["theirs"]["grad_norm"], rel=1e-4)


def test_difference_is_relative_to_theirs():
    step = TrajectoryStep(3, ours={"loss": 2.5}, theirs={"loss": 2.0, "of theirs alone": 1.0})
    assert step.difference("loss") == 0.25


def test_distances_of_each_parameter_and_of_all():
    initial = {"a": np.array([[1.0, 2.0]]), "b": np.array([5.0])}
    theirs = {"a": np.array([[4.0, 6.0]]), "b": np.array([5.0])}
    ours = {"a": np.array([[4.0, 6.5]]), "b": np.array([5.0])}
    a, b, whole = distances(initial, ours, theirs)
    assert (a.name, b.name, whole.name) == ("a", "b", "all")
    assert a.relative == pytest.approx(0.5 / math.sqrt(52))
    assert a.of_update == pytest.approx(0.5 / 5)
    assert (a.largest, a.largest_update) == (0.5, 4.0)
    # Neither trained it.
    assert (b.relative, b.of_update, b.largest) == (0, 0, 0)
    assert whole.relative == pytest.approx(0.5 / math.sqrt(52 + 25))
    assert whole.of_update == pytest.approx(0.5 / 5)


def test_a_parameter_that_only_one_of_them_trained_is_infinitely_far():
    initial = {"a": np.array([1.0])}
    (a, _) = distances(initial, ours={"a": np.array([1.5])}, theirs=initial)
    assert a.relative == 0.5
    assert a.of_update == math.inf


def test_means_agree_within_the_standard_error_of_their_difference():
    # Deviations 1 and 2, of three values each.
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert mean_and_error([2.0, 4.0, 6.0]) == (4.0, pytest.approx(2 / math.sqrt(3)))
    # They differ by 2, and the error of the difference is sqrt(5 / 3).
    assert not means_agree([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert means_agree([1.0, 2.0, 3.0], [1.0, 3.0, 5.0])
