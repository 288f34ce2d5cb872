"""What runs will take: tokens and FLOPs from their data, time from runs that have finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from stepdistill_jax.data.packing import row_shape
from stepdistill_jax.data.pipeline import SplitCache
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.sweep.matrix import PlannedRun

# Share of the device's rate in one large matrix product that a train step is taken to reach, as
# long as no run has shown it.
EFFICIENCY = 0.3
# Start of a process, compilation, evaluation and saving are taken to last this long at least.
START_SECONDS = 20.0
# However short the training was, some of a run's time went into its steps.
_LEAST_SHARE = 0.1

# How an estimate of time came about, the better the later.
ROUGH, BY_FLOPS, BY_KIND = range(3)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a run consists of; all 0 where nothing is trained.

    Attributes:
        steps: optimizer steps.
        pairs: training pairs that there are.
        tokens: input and target tokens in the batches of all steps.
        flops: model FLOPs of all steps, forward and backward.
    """

    steps: int
    pairs: int
    tokens: float
    flops: float


NOTHING = Work(0, 0, 0.0, 0.0)


def train_work(config: RunConfig, pairs: SplitCache) -> Work:
    """The work of a run on what its method reads of its training split."""
    shape = row_shape(pairs.lengths, config.pipeline, config.streams)
    features = shape.feature_lengths()
    tokens = sum(float(pairs.lengths[feature].mean()) for feature in features)
    return Work(
        config.train_steps,
        len(pairs),
        config.train_steps * shape.rows * shape.pairs_per_row * tokens,
        config.train_steps * train_flops(config.model, shape.rows, shape.inputs, shape.targets),
    )


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run whose whole training took one process: what estimates are made from."""

    run: PlannedRun
    work: Work
    seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds that a run will take from start to end, and how that is known."""

    seconds: float
    basis: int


@dataclasses.dataclass(frozen=True)
class Clock:
    """Tells how long runs will take.

    Attributes:
        product_rate: FLOP/s of a large matrix product over all devices.
        finished: runs to learn from.
    """

    product_rate: float
    finished: Sequence[Finished] = ()

    def estimate(self, run: PlannedRun, work: Work, saved: int = 0) -> Estimate:
        """Seconds from the step `saved` on, start-up included.

        Runs of the same data set, method, labels, model and length that have finished know best;
        else the FLOP/s of those that have finished, else `EFFICIENCY` of the matrix product's.
        """
        left = 1 - saved / work.steps if work.steps else 1.0
        alike = [f.seconds for f in self.finished if _kind(f.run) == _kind(run)]
        if alike:
            whole = sum(alike) / len(alike)
            start = min(START_SECONDS, whole)
            return Estimate(start + (whole - start) * left, BY_KIND)
        rate, basis = self.product_rate * EFFICIENCY, ROUGH
        seconds = sum(_training_seconds(f) for f in self.finished)
        flops = sum(f.work.flops for f in self.finished)
        if seconds and flops:
            rate, basis = flops / seconds, BY_FLOPS
        return Estimate(START_SECONDS + work.flops * left / rate, basis)


def _kind(run: PlannedRun) -> tuple[object, ...]:
    """Runs of one kind take equally long: the share of the data and the seeds do not matter."""
    return (*run.group[:4], run.config.train_steps)


def _training_seconds(finished: Finished) -> float:
    if not finished.work.steps:
        return 0.0
    return max(finished.seconds - START_SECONDS, _LEAST_SHARE * finished.seconds)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, for a line of the plan.

    Attributes:
        runs: in order.
        seconds: for what is left of them to do.
        basis: the worst that one of them was estimated by.
    """

    runs: tuple[PlannedRun, ...]
    work: tuple[Work, ...]
    seconds: float
    basis: int


def grouped(
    runs: Iterable[PlannedRun], work: Mapping[str, Work], left: Mapping[str, Estimate]
) -> list[Group]:
    """The runs by group, in the order of their first.

    Args:
        runs: all of them.
        work: name -> work.
        left: name -> estimate, of the runs that are not done.
    """
    members: dict[tuple[object, ...], list[PlannedRun]] = {}
    for run in runs:
        members.setdefault(run.group, []).append(run)
    groups = []
    for group in members.values():
        estimates = [left[run.name] for run in group if run.name in left]
        groups.append(
            Group(
                tuple(group),
                tuple(work[run.name] for run in group),
                sum(estimate.seconds for estimate in estimates),
                min((estimate.basis for estimate in estimates), default=BY_KIND),
            )
        )
    return groups
