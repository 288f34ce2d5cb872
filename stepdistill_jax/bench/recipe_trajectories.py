"""This package and the released recipe, trained side by side on the same batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.bench import figure
from stepdistill_jax.bench.measurement import Results, announce
from stepdistill_jax.bench.recipe_speed import OURS, RECIPE, make_recipe, pairs_of
from stepdistill_jax.bench.run_speed import BenchmarkRun
from stepdistill_jax.checkpoint.fill import arrays
from stepdistill_jax.run import load
from stepdistill_jax.run.config import RunConfig

STEPS_FILE, PARAMETERS_FILE, FIGURE_FILE = "steps.jsonl", "parameters.jsonl", "steps.png"
METRICS = ("label_loss", "rationale_loss", "grad_norm")
# Largest relative difference that counts as equal, in float32 without dropout.
TOLERANCE = 1e-4
# Seeds are compared by the mean loss of their last steps.
_LAST_STEPS = 20

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrajectoryStep:
    """One step of both trainers.

    Attributes:
        number: from 1.
        ours: metric -> value.
        theirs: the recipe's, under the same names.
    """

    number: int
    ours: Mapping[str, float]
    theirs: Mapping[str, float]

    def difference(self, metric: str) -> float:
        """Relative to theirs."""
        return abs(self.ours[metric] - self.theirs[metric]) / abs(self.theirs[metric])


@dataclasses.dataclass(frozen=True)
class Distance:
    """Distance of one parameter between the trainers after the last step (2-norms).

    Attributes:
        name: of the parameter, or ``all``.
        relative: ``|ours - theirs| / |theirs|``.
        of_update: ``|ours - theirs| / |theirs - initial|``.
        largest: ``max |ours - theirs|``.
        largest_update: ``max |theirs - initial|``.
    """

    name: str
    relative: float
    of_update: float
    largest: float
    largest_update: float


def compare(
    config: RunConfig, steps: int, seeds: int, folder: epath.PathLike, results: Results
) -> None:
    """Trains both and writes every step, every parameter's distance and a figure to `folder`.

    Ours trains on the run's batches, packed or not; the recipe on the same pairs, padded.

    Args:
        config: the run; further seeds count from its seed.
        steps: of each trainer.
        seeds: runs of each trainer.
        folder: created if necessary.
        results: receives, without dropout, the largest relative differences (with dropout the two
            draw different masks); for several seeds, the mean losses of the last steps.
    """
    announce("both trainers on the same batches")
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs: dict[int, list[TrajectoryStep]] = {}
    distance_rows: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + seeds):
        pipeline = dataclasses.replace(config.pipeline, seed=seed)
        seed_config = dataclasses.replace(config, seed=seed, pipeline=pipeline)
        runs[seed], apart = _train_both(seed_config, steps)
        distance_rows += [{"seed": seed, **dataclasses.asdict(distance)} for distance in apart]
        if not config.model.dropout_rate:
            _add_differences(results, f"seed {seed}", runs[seed], apart)
    if seeds > 1:
        for metric in METRICS[:2]:
            _add_comparison(results, metric, [*runs.values()])
    step_rows = [
        {"seed": seed, **dataclasses.asdict(step)} for seed, run in runs.items() for step in run
    ]
    records.write_jsonl(folder / STEPS_FILE, step_rows)
    records.write_jsonl(folder / PARAMETERS_FILE, distance_rows)
    _draw(folder / FIGURE_FILE, config, [*runs.values()])


def _train_both(config: RunConfig, steps: int) -> tuple[list[TrajectoryStep], list[Distance]]:
    run = BenchmarkRun(config, turns=1)
    recipe = make_recipe(run)
    initial = recipe.arrays()
    batches = run.batches(run.mode)
    trajectory = []
    for number in range(1, steps + 1):
        batch = next(batches)
        reported = recipe.step(recipe.collate(pairs_of(run, batch)), precise=True)
        theirs = {name: float(value) for name, value in reported.items()}
        # PyTorch's float32 norm is imprecise and would hide whether the gradients agree.
        theirs["pytorch_grad_norm"] = theirs.pop("grad_norm")
        theirs["grad_norm"] = theirs.pop("precise_grad_norm")
        metrics = jax.device_get(run.step(run.place(batch)))
        ours = {name: float(metrics[name]) for name in ("loss", *METRICS)}
        trajectory.append(TrajectoryStep(number, ours, theirs))
    batches.close()
    return trajectory, distances(initial, dict(arrays(run.state.params, "hf")), recipe.arrays())


def distances(initial: Arrays, ours: Arrays, theirs: Arrays) -> list[Distance]:
    """A `Distance` for each parameter, then one named ``all`` for their concatenation."""

    def concatenated(parameters: Arrays) -> np.ndarray:
        return np.concatenate([parameters[name].ravel() for name in theirs])

    each = [_distance(name, initial[name], ours[name], theirs[name]) for name in theirs]
    return [*each, _distance("all", *map(concatenated, (initial, ours, theirs)))]


def _distance(name: str, initial: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> Distance:
    apart = (ours - theirs).astype(np.float64)
    update = (theirs - initial).astype(np.float64)
    norm = np.linalg.norm(apart)
    return Distance(
        name,
        relative=_quotient(norm, np.linalg.norm(theirs.astype(np.float64))),
        of_update=_quotient(norm, np.linalg.norm(update)),
        largest=float(np.abs(apart).max()),
        largest_update=float(np.abs(update).max()),
    )


def _quotient(numerator: Any, denominator: Any) -> float:
    """Defines 0 / 0 as 0, for parameters that neither trainer changed."""
    return 0.0 if numerator == 0 else float(numerator / denominator) if denominator else math.inf


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of at least two values, and its standard error (sample deviation / sqrt(n))."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def means_agree(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether two means differ by at most the standard error of their difference."""
    (our_mean, our_error), (their_mean, their_error) = map(mean_and_error, (ours, theirs))
    return abs(our_mean - their_mean) <= math.hypot(our_error, their_error)


def _add_differences(
    results: Results, name: str, run: list[TrajectoryStep], apart: list[Distance]
) -> None:
    """The largest differences over all steps and over all parameters."""

    def add(what: str, value: float, remark: str) -> None:
        results.add(f"{name}: {what}", "1e-6 relative", [value * 1e6], remark)

    for metric in METRICS:
        worst = max(run, key=lambda step: step.difference(metric))
        add(metric, worst.difference(metric), f"step {worst.number}")
    *each, together = apart
    for field, what in (
        ("relative", "final parameters"),
        ("of_update", "final parameters, of the update"),
    ):
        furthest = max(each, key=lambda distance: getattr(distance, field))
        add(what, getattr(furthest, field), f"largest, {furthest.name}")
        add(what, getattr(together, field), "all parameters")


def _add_comparison(results: Results, metric: str, runs: Sequence[list[TrajectoryStep]]) -> None:
    ours, theirs = (
        [float(np.mean([getattr(s, who)[metric] for s in run[-_LAST_STEPS:]])) for run in runs]
        for who in ("ours", "theirs")
    )
    what = f"{metric}, last {min(_LAST_STEPS, len(runs[0]))} steps"
    verdict = "within" if means_agree(ours, theirs) else "not within"
    for who, values, remark in (
        (OURS, ours, ""),
        (RECIPE, theirs, ""),
        (
            f"{OURS} less {RECIPE}",
            np.subtract(ours, theirs).tolist(),
            f"; means {verdict} the standard error",
        ),
    ):
        mean, error = mean_and_error(values)
        results.add(f"{what}, {who}", "nats", values, f"mean {mean:.5f} +- {error:.5f}{remark}")


def _draw(path: epath.Path, config: RunConfig, runs: list[list[TrajectoryStep]]) -> None:
    panels = {
        metric: {
            OURS: [[step.ours[metric] for step in run] for run in runs],
            RECIPE: [[step.theirs[metric] for step in run] for run in runs],
        }
        for metric in METRICS
    }
    # With dropout the trainers draw different masks, so single steps are not comparable.
    exact = not config.model.dropout_rate
    below = {
        metric: [max(run[i].difference(metric) for run in runs) for i in range(len(runs[0]))]
        for metric in METRICS
    }
    title = (
        f"{config.data.dataset}, {load.model_name(config.model)}, {config.model.dtype}, "
        f"{'packed' if config.pipeline.pack else 'unpacked'}, dropout {config.model.dropout_rate}"
    )
    figure.draw(path, title, panels, below if exact else None, TOLERANCE)
