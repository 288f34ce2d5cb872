"""Folders as runs leave them, with scores that are made up."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from stepdistill_jax import records
from stepdistill_jax.run.results import VALIDATION, Result
from stepdistill_jax.spec import PREDICTIONS_FILE, RESULTS_FILE

LABELS = ("red", "green", "blue")


def make_result(**changes) -> Result:
    facts = {
        "dataset": "cqa", "method": "standard", "labels": "gold", "rationales": "none",
        "fraction": 1.0, "seed": 0, "model": "tiny", "step": 100, "split": "test", "n": 200,
        "accuracy": 0.5, "stderr": 0.035, "selected_on": VALIDATION, "parameters": 215_000,
    }  # fmt: skip
    return Result(**{**facts, **changes})


def write_run(
    folder: pathlib.Path,
    accuracy: float,
    *,
    n: int = 200,
    data_seed: int = 0,
    predictions: bool = True,
    more: tuple[Result, ...] = (),
    **facts,
) -> Result:
    """A run that is right on `accuracy` of `n` rows; easy rows first, with some luck.

    Args:
        folder: of the run.
        accuracy: share of right answers, to the nearest row.
        n: rows of the test set.
        data_seed: the rows' inputs are of it, their ids are not.
        predictions: whether to write them.
        more: further lines of its results.
        facts: other fields of its result.
    """
    right = round(accuracy * n)
    world = np.random.default_rng([7, data_seed])
    easy = world.random(n)
    targets = world.integers(len(LABELS), size=n)
    luck = np.random.default_rng([facts.get("seed", 0), right]).random(n)
    order = np.argsort(easy + 0.5 * luck)
    correct = np.zeros(n, bool)
    correct[order[:right]] = True
    share = right / n
    result = make_result(
        n=n,
        accuracy=share,
        stderr=float(np.sqrt(share * (1 - share) / n)),
        data_seed=data_seed,
        **facts,
    )
    records.write_jsonl(folder / RESULTS_FILE, map(dataclasses.asdict, [*more, result]))
    if predictions:
        rows = [
            {
                "id": f"test-{number}",
                "input": f"row {number} of world {data_seed}",
                "target": LABELS[target],
                "prediction": LABELS[target if is_right else (target + 1) % len(LABELS)],
                "correct": bool(is_right),
            }
            for number, (target, is_right) in enumerate(zip(targets, correct, strict=True))
        ]
        where = folder / "eval" / result.split / str(result.step)
        records.write_jsonl(where / PREDICTIONS_FILE, rows)
    return result


def write_sweep(folder: pathlib.Path, *, seeds: int = 3) -> None:
    """Many runs as a sweep leaves them: four data sets, methods, fractions, two sizes, teachers."""
    tiny, small = 215_000, 77_000_000
    base = {"esnli": 0.62, "anli": 0.35, "cqa": 0.41, "svamp": 0.3}
    teacher = {"esnli": 0.73, "anli": 0.656, "cqa": 0.77, "svamp": 0.74}
    methods = {
        ("standard", "none"): 0.0,
        ("step_by_step", "teacher"): 0.07,
        ("step_by_step", "shuffled"): -0.02,
        ("single_task", "teacher"): 0.02,
    }
    number = 0
    for dataset, start in base.items():
        split = "validation" if dataset in ("esnli", "anli") else "train"
        write_run(
            folder / f"{dataset}-teacher", teacher[dataset], dataset=dataset, method="teacher",
            labels="none", rationales="none", model="teacher", step=0, selected_on="none",
            parameters=540_000_000_000, serving_flops=1.7e14, train_split=split, n=400,
        )  # fmt: skip
        for labels in ("gold", "teacher"):
            for (method, rationales), gain in methods.items():
                for model, parameters in (("tiny", tiny), ("t5_1_1_small", small)):
                    for fraction in (0.125, 0.25, 0.5, 1.0):
                        if model != "tiny" and (fraction < 1 or method == "single_task"):
                            continue
                        for seed in range(seeds):
                            number += 1
                            noise = np.random.default_rng(number).normal(0, 0.012)
                            score = start + gain + 0.05 * np.log2(fraction) + noise
                            score += 0.25 * (model != "tiny") - 0.03 * (labels == "teacher")
                            write_run(
                                folder / f"{number:03d}", score, n=400, dataset=dataset,
                                method=method, labels=labels, rationales=rationales,
                                fraction=fraction, seed=seed, model=model, train_split=split,
                                parameters=parameters,
                                train_pairs=int(9000 * fraction), train_flops=3.1e15,
                                device_seconds=412.0 + seed, serving_flops=5.2e9,
                            )  # fmt: skip
