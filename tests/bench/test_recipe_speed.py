import itertools

import numpy as np
import pytest

from stepdistill_jax.bench import recipe_speed, run_speed
from stepdistill_jax.bench.measurement import Results
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.run import load
from stepdistill_jax.spec import EXAMPLE_INDEX, InputError

pytestmark = pytest.mark.usefixtures("one_device")


def benchmark_run(caches, *overrides):
    settings = load.parse(
        ["demo.gin"],
        [
            f"CACHE_DIR={str(caches)!r}",
            "MODEL_DIR='unused'",
            "FRACTION=0.1",
            "EMB_DIM=8",
            "MLP_DIM=8",
            "NUM_ENCODER_LAYERS=1",
            "DROPOUT_RATE=0.1",
            "BATCH_SIZE=16",
            "PACK=True",
            "INPUT_ROW_LENGTH=64",
            "LABEL_ROW_LENGTH=8",
            "RATIONALE_ROW_LENGTH=80",
            "EVAL_BATCH_SIZE=10",
            *overrides,
        ],
    )
    return run_speed.BenchmarkRun(settings, turns=2)


def test_both_train_on_the_same_pairs_in_the_same_order(caches, monkeypatch):
    pytest.importorskip("torch", reason="the released recipe runs on PyTorch")
    ours = benchmark_run(caches)
    recipe = recipe_speed.make_recipe(ours)
    seen = {"ours": [], "recipe": []}
    place, collate = ours.place, recipe.collate

    def spy_place(batch):
        index = batch[EXAMPLE_INDEX]
        seen["ours"].append([ours.cache[int(i) - 1] for i in index[index > 0]])
        return place(batch)

    def spy_collate(pairs):
        seen["recipe"].append(pairs)
        return collate(pairs)

    monkeypatch.setattr(ours, "place", spy_place)
    monkeypatch.setattr(recipe, "collate", spy_collate)
    results = Results()
    recipe_speed.train(ours, recipe, results, steps=3)
    measured = {(m.name, m.unit): m for m in results.measurements}

    # Two steps of warm-up, then three of each in both turns.
    assert len(seen["ours"]) == len(seen["recipe"]) == 2 + 2 * 3
    assert {len(batch) for batch in seen["recipe"]} == {16}
    flat = [[*itertools.chain(*seen[name])] for name in ("ours", "recipe")]
    assert abs(len(flat[0]) - len(flat[1])) < 0.1 * len(flat[1])
    for a, b in zip(*flat, strict=False):
        assert all(np.array_equal(a[feature], b[feature]) for feature in a)

    rates = [measured[f"train, {name}", "pairs/s"].spread.values for name in ("ours", "recipe")]
    quotients = [o / r for o, r in zip(*rates, strict=True)]
    assert measured["train, ours over recipe", "times"].spread.values == pytest.approx(quotients)
    # The demo's texts are all as long, so that none of the recipe's slots is padding.
    assert "3 steps a window, 100% of slots" in measured["train, recipe", "pairs/s"].remark


def test_both_label_the_same_rows(caches):
    pytest.importorskip("torch", reason="the released recipe runs on PyTorch")
    ours = benchmark_run(caches)
    results = Results()
    recipe_speed.label_evaluation(ours, recipe_speed.make_recipe(ours), results)
    measured = {m.name: m for m in results.measurements}
    rows = 4 * 10
    quotient = measured["label evaluation, ours over recipe"]
    assert quotient.remark == f"paired; {rows} of {rows} labels equal"
    assert len(quotient.spread.values) == 2
    for name in ("ours", "recipe"):
        line = measured[f"label evaluation, {name}"]
        assert line.unit == "examples/s"
        assert line.remark == f"{rows} validation examples, 10 at once, at most 2 tokens each"


def test_refuses_runs_that_train_nothing(caches):
    with pytest.raises(InputError, match="METHOD='teacher' trains nothing"):
        benchmark_run(caches, "METHOD=teacher")


def test_refuses_several_devices(caches, monkeypatch):
    monkeypatch.setattr(run_speed, "make_mesh", make_mesh)
    with pytest.raises(InputError, match="got 8 of platform 'cpu', expected one CPU or GPU"):
        recipe_speed.make_recipe(benchmark_run(caches))
