"""Ours and the released recipe side by side on the same batches, from the same parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.bench.against_recipe import OURS, RECIPE, make_recipe, pairs_of, run_mode
from stepdistill_jax.bench.benchmark import Benchmark
from stepdistill_jax.bench.measure import Measurement, spread
from stepdistill_jax.bench.trajectory import Distance, Step, agreement, distances
from stepdistill_jax.checkpoint.fill import arrays
from stepdistill_jax.report import plots
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig

STEPS_FILE, PARAMETERS_FILE, FIGURE_FILE = "steps.jsonl", "parameters.jsonl", "steps.png"
METRICS = ("label_loss", "rationale_loss", "grad_norm")
# What "the same" means in float32 without dropout, at every step and of every parameter.
TOLERANCE = 1e-4
# A single batch's loss says little: seeds are compared by the mean of as many last steps.
_LAST_STEPS = 20


def follow(config: RunConfig, steps: int, seeds: int, folder: epath.PathLike) -> list[Measurement]:
    """Trains both, writes every step, every parameter's distance and a figure to `folder`.

    Ours takes the run's batches, packed or not; the recipe takes the same pairs, whatever their
    number, padded to the longest.

    Args:
        config: of the run; seeds count from its own.
        steps: of each.
        seeds: runs of each.
        folder: is made if need be.

    Returns:
        Without dropout the largest relative differences (two draws of it have nothing to compare
        step by step); with several seeds the means of the last steps' losses.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs: dict[int, list[Step]] = {}
    lines: list[dict[str, Any]] = []
    found: list[Measurement] = []
    for seed in range(config.seed, config.seed + seeds):
        pipeline = dataclasses.replace(config.pipeline, seed=seed)
        own = dataclasses.replace(config, seed=seed, pipeline=pipeline)
        runs[seed], apart = _side_by_side(own, steps)
        lines += [{"seed": seed, **dataclasses.asdict(distance)} for distance in apart]
        if not config.model.dropout_rate:
            found += _differences(f"seed {seed}", runs[seed], apart)
    if seeds > 1:
        found += [line for metric in METRICS[:2] for line in _agreement(metric, [*runs.values()])]
    numbered = [
        {"seed": seed, **dataclasses.asdict(step)} for seed, run in runs.items() for step in run
    ]
    records.write_jsonl(folder / STEPS_FILE, numbered)
    records.write_jsonl(folder / PARAMETERS_FILE, lines)
    _draw(folder / FIGURE_FILE, config, [*runs.values()])
    return found


def _side_by_side(config: RunConfig, steps: int) -> tuple[list[Step], list[Distance]]:
    parts = Benchmark(config, turns=1)
    recipe = make_recipe(parts)
    initial = recipe.arrays()
    batches = parts.batches(run_mode(config))
    run = []
    for number in range(1, steps + 1):
        batch = next(batches)
        reported = recipe.step(recipe.collate(pairs_of(parts, batch)), precise=True)
        theirs = {name: float(value) for name, value in reported.items()}
        # Ours is summed in a tree, which float32 does not spoil; theirs would hide the gradients'
        # own agreement.
        theirs["pytorch_grad_norm"] = theirs.pop("grad_norm")
        theirs["grad_norm"] = theirs.pop("precise_grad_norm")
        metrics = jax.device_get(parts.step(parts.place(batch)))
        ours = {name: float(metrics[name]) for name in ("loss", *METRICS)}
        run.append(Step(number, ours, theirs))
    batches.close()
    return run, distances(initial, dict(arrays(parts.state.params, "hf")), recipe.arrays())


def _differences(name: str, run: list[Step], apart: list[Distance]) -> list[Measurement]:
    """The largest over all steps, and over all parameters, with where it is."""
    found = []
    for metric in METRICS:
        worst = max(run, key=lambda step: step.difference(metric))
        found.append(_line(f"{name}: {metric}", worst.difference(metric), f"step {worst.number}"))
    for field in ("relative", "of_update"):
        furthest = max(apart[:-1], key=lambda distance: getattr(distance, field))
        for distance in (furthest, apart[-1]):
            where = "all parameters" if distance is apart[-1] else f"largest, {distance.name}"
            what = "final parameters" if field == "relative" else "final parameters, of the update"
            found.append(_line(f"{name}: {what}", getattr(distance, field), where))
    return found


def _line(name: str, value: float, remark: str) -> Measurement:
    return Measurement(name, "1e-6 relative", spread([value * 1e6]), remark)


def _agreement(metric: str, runs: Sequence[list[Step]]) -> list[Measurement]:
    ours, theirs = (
        [float(np.mean([getattr(s, who)[metric] for s in run[-_LAST_STEPS:]])) for run in runs]
        for who in ("ours", "theirs")
    )
    a = agreement(ours, theirs)
    what = f"{metric}, last {min(_LAST_STEPS, len(runs[0]))} steps"
    verdict = "within" if a.within else "not within"
    return [
        Measurement(f"{what}, {OURS}", "nats", spread(ours), _mean(a.ours, a.ours_error)),
        Measurement(f"{what}, {RECIPE}", "nats", spread(theirs), _mean(a.theirs, a.theirs_error)),
        Measurement(
            f"{what}, {OURS} less {RECIPE}",
            "nats",
            spread([o - t for o, t in zip(ours, theirs, strict=True)]),
            f"{_mean(a.paired, a.paired_error)}; means {verdict} the standard error",
        ),
    ]


def _mean(value: float, error: float) -> str:
    return f"mean {value:.5f} +- {error:.5f}"


def _draw(path: epath.Path, config: RunConfig, runs: list[list[Step]]) -> None:
    panels = {
        metric: {
            OURS: [[step.ours[metric] for step in run] for run in runs],
            RECIPE: [[step.theirs[metric] for step in run] for run in runs],
        }
        for metric in METRICS
    }
    # Between two draws of dropout there is nothing to compare step by step.
    exact = not config.model.dropout_rate
    below = {
        metric: [max(run[i].difference(metric) for run in runs) for i in range(len(runs[0]))]
        for metric in METRICS
    }
    title = (
        f"{config.data.dataset}, {configs.model_name(config.model)}, {config.model.dtype}, "
        f"{run_mode(config)}, dropout {config.model.dropout_rate}"
    )
    plots.curves(path, title, panels, below if exact else None, TOLERANCE)
