"""How long runs will take, estimated from runs that have finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from stepdistill_jax.sweep.matrix import PlannedRun
from stepdistill_jax.sweep.workload import Workload

# Assumed rate of a train step, as a share of the rate of a large matrix product, until a run has
# finished.
EFFICIENCY = 0.3
# Assumed time of process start, compilation, evaluation and saving.
START_SECONDS = 20.0
# Training takes at least this share of a run's time, however short the run was.
_MINIMUM_TRAINING_SHARE = 0.1

# What an estimate is based on, from the least to the most reliable.
ROUGH, BY_FLOPS, BY_KIND = range(3)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that one process trained from start to end."""

    run: PlannedRun
    workload: Workload
    seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated seconds of a run, and what the estimate is based on."""

    seconds: float
    basis: int


def estimate_time(
    run: PlannedRun,
    workload: Workload,
    saved: int = 0,
    *,
    product_rate: float,
    finished: Sequence[FinishedRun] = (),
) -> Estimate:
    """Seconds from step `saved` to the end, start-up included.

    The best basis is `finished` runs of the same data set, method, labels, model and number of
    steps; then the FLOP/s of all finished runs; then `EFFICIENCY` times `product_rate`, the FLOP/s
    of a large matrix product over all devices.
    """
    left = 1 - saved / workload.steps if workload.steps else 1.0
    same_kind = [f.seconds for f in finished if _kind(f.run) == _kind(run)]
    if same_kind:
        whole = sum(same_kind) / len(same_kind)
        start = min(START_SECONDS, whole)
        return Estimate(start + (whole - start) * left, BY_KIND)
    rate, basis = product_rate * EFFICIENCY, ROUGH
    seconds = sum(_training_seconds(f) for f in finished)
    flops = sum(f.workload.flops for f in finished)
    if seconds and flops:
        rate, basis = flops / seconds, BY_FLOPS
    return Estimate(START_SECONDS + workload.flops * left / rate, basis)


def _kind(run: PlannedRun) -> tuple[object, ...]:
    """Runs of one kind take equally long; fraction and seeds do not matter."""
    return (*run.cell[:4], run.config.train_steps)


def _training_seconds(finished: FinishedRun) -> float:
    if not finished.workload.steps:
        return 0.0
    return max(finished.seconds - START_SECONDS, _MINIMUM_TRAINING_SHARE * finished.seconds)


@dataclasses.dataclass(frozen=True)
class PlannedVariant:
    """The runs of one variant: one line of the plan.

    Attributes:
        seconds: estimated for the unfinished runs.
        basis: the least reliable one of their estimates.
    """

    runs: tuple[PlannedRun, ...]
    workloads: tuple[Workload, ...]
    seconds: float
    basis: int


def by_variant(
    runs: Iterable[PlannedRun],
    workloads: Mapping[str, Workload],
    unfinished: Mapping[str, Estimate],
) -> list[PlannedVariant]:
    """The runs by variant, in the order of each variant's first run.

    Args:
        workloads: name -> workload of every run.
        unfinished: name -> estimate of every unfinished run.
    """
    members: dict[tuple[object, ...], list[PlannedRun]] = {}
    for run in runs:
        members.setdefault(run.variant, []).append(run)
    variants = []
    for group in members.values():
        estimates = [unfinished[run.name] for run in group if run.name in unfinished]
        variants.append(
            PlannedVariant(
                tuple(group),
                tuple(workloads[run.name] for run in group),
                sum(estimate.seconds for estimate in estimates),
                min((estimate.basis for estimate in estimates), default=BY_KIND),
            )
        )
    return variants
