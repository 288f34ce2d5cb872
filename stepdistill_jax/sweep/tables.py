"""The tables of a sweep: the plan before it starts, and the progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from stepdistill_jax.run.eval_config import SPLITS
from stepdistill_jax.sweep.estimate import (
    BY_KIND,
    EFFICIENCY,
    ROUGH,
    START_SECONDS,
    PlannedVariant,
)
from stepdistill_jax.sweep.matrix import ImpossibleRun
from stepdistill_jax.sweep.run_status import RunStatus, State
from stepdistill_jax.text import columns, duration

_HEADINGS = ("data", "method", "labels", "model")
_PLAN_HEADINGS = (
    *(*_HEADINGS, "start", "fraction", "settings", "seeds", "steps", "pairs"),
    *("tokens", "FLOPs", "time left", "state"),
)
_NUMBERS = {"fraction", "tried", "seeds", "steps", "pairs", "tokens", "FLOPs", "time left", *SPLITS}


def quantity(number: float) -> str:
    """Three digits and a unit: 999, 12.3k, 1.5M, 2.0G, 1.2e15."""
    if number >= 1e15:
        return f"{number:.1e}".replace("e+", "e")
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{number:,.0f}"


def plan(
    variants: Sequence[PlannedVariant], statuses: Mapping[str, RunStatus], impossible: int = 0
) -> str:
    """The plan: one line a variant, the total, and the basis of its times.

    Args:
        statuses: name -> status of every run.
        impossible: number of impossible runs, which are not in `variants`.
    """
    if not variants:
        return "all runs are impossible" if impossible else "nothing is left to do"
    starts = [_start(variant) for variant in variants]
    one_start = len(set(starts) - {""}) <= 1
    lines = [
        _plan_line(variant, statuses, "" if one_start else start)
        for variant, start in zip(variants, starts, strict=True)
    ]
    workloads = [workload for variant in variants for workload in variant.workloads]
    seconds = sum(variant.seconds for variant in variants)
    rough = any(variant.basis == ROUGH and variant.seconds for variant in variants)
    total = (
        "total",
        *("",) * 6,
        f"{len(workloads)} runs",
        f"{sum(w.steps for w in workloads):,}",
        "",
        quantity(sum(w.tokens for w in workloads)),
        quantity(sum(w.flops for w in workloads)),
        ("~" if rough else "") + duration(seconds),
        _states(statuses[run.name].state for variant in variants for run in variant.runs),
    )
    text = columns([_PLAN_HEADINGS, *lines, total], _NUMBERS)
    above = f"every run starts from {max(starts)}" if one_start and any(starts) else ""
    return "\n".join(filter(None, (above, text, _basis(variants, impossible))))


def _start(variant: PlannedVariant) -> str:
    """The initial weights; "" if nothing is trained."""
    config = variant.runs[0].config
    return (config.initial_checkpoint or "random weights") if config.streams else ""


def _plan_line(
    variant: PlannedVariant, statuses: Mapping[str, RunStatus], start: str
) -> tuple[str, ...]:
    *shared, fraction, settings = _identity(variant)
    seeds, numbers = "", ("",) * 4
    if variant.runs[0].config.streams:
        seeds = ",".join(str(run.config.seed) for run in variant.runs)
        pairs = sorted({workload.pairs for workload in variant.workloads})
        numbers = (
            f"{variant.workloads[0].steps:,}",
            f"{pairs[0]:,}" if len(pairs) == 1 else f"{pairs[0]:,}-{pairs[-1]:,}",
            quantity(sum(workload.tokens for workload in variant.workloads)),
            quantity(sum(workload.flops for workload in variant.workloads)),
        )
    seconds = ("~" if variant.basis == ROUGH else "") + duration(variant.seconds)
    return (
        *(*shared, start, fraction, settings, seeds, *numbers),
        seconds if variant.seconds else "",
        _states(statuses[run.name].state for run in variant.runs),
    )


def _identity(variant: PlannedVariant) -> tuple[str, ...]:
    run = variant.runs[0]
    fraction = f"{run.config.data.fraction:.12g}" if run.config.streams else ""
    return (run.data, run.method, run.labels, run.model, fraction, ", ".join(run.grid))


def _states(states: Iterable[State]) -> str:
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def _basis(variants: Sequence[PlannedVariant], impossible: int) -> str:
    """What the times are based on; "" if only impossible runs are left."""
    bases = {variant.basis for variant in variants if variant.seconds}
    if not bases:
        return "" if impossible else "nothing is left to do"
    if ROUGH in bases:
        return (
            f"times are rough: {EFFICIENCY:.0%} of this device's rate in a large matrix product, "
            f"plus {START_SECONDS:.0f} s of start-up per run; they improve as runs finish"
        )
    if bases == {BY_KIND}:
        return "times come from finished runs of the same data, method, labels, model and steps"
    return "times come from finished runs: from similar ones if any, else from their FLOP/s"


def impossible(runs: Sequence[ImpossibleRun]) -> str:
    """Impossible runs, one line a reason."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        reasons.setdefault(run.reason, []).append(run.name)
    return "\n".join(
        f"  {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {why}"
        for why, names in reasons.items()
    )


def progress(variants: Sequence[PlannedVariant], statuses: Mapping[str, RunStatus]) -> str:
    """One line a variant: mean accuracy of its finished runs in percent, and its states."""
    accuracies = {name: dict(status.accuracy) for name, status in statuses.items()}
    splits = sorted({s for v in variants for run in v.runs for s in accuracies[run.name]})
    lines = []
    for variant in variants:
        means = []
        for split in splits:
            scored = [accuracies[run.name] for run in variant.runs]
            values = [accuracy[split] for accuracy in scored if split in accuracy]
            means.append(f"{100 * sum(values) / len(values):.1f}" if values else "")
        states = _states(statuses[run.name].state for run in variant.runs)
        lines.append((*_identity(variant), *means, states))
    return columns([(*_HEADINGS, "fraction", "settings", *splits, "state"), *lines], _NUMBERS)


def best(variants: Sequence[PlannedVariant], statuses: Mapping[str, RunStatus]) -> str:
    """Each method's best settings of SWEEP_GRID by mean accuracy on validation; "" without a grid.

    Test accuracies are of these settings alone: the choice has not seen them. Settings with a run
    that is not done are left out; "tried" counts the others.
    """
    cells: dict[object, list[PlannedVariant]] = {}
    for variant in variants:
        done = all(statuses[run.name].validation is not None for run in variant.runs)
        if variant.runs[0].grid and done:
            cells.setdefault(variant.runs[0].cell, []).append(variant)
    if not cells:
        return ""
    lines = []
    for tried in cells.values():
        chosen = max(tried, key=lambda variant: _mean_validation(variant, statuses))
        tests = [dict(statuses[run.name].accuracy).get("test") for run in chosen.runs]
        known = [accuracy for accuracy in tests if accuracy is not None]
        lines.append(
            (
                *_identity(chosen),
                str(len(tried)),
                f"{100 * _mean_validation(chosen, statuses):.1f}",
                f"{100 * sum(known) / len(known):.1f}" if len(known) == len(tests) else "",
            )
        )
    heading = "best settings of each method on validation"
    headings = (*_HEADINGS, "fraction", "settings", "tried", "validation", "test")
    return f"{heading}\n{columns([headings, *lines], _NUMBERS)}"


def _mean_validation(variant: PlannedVariant, statuses: Mapping[str, RunStatus]) -> float:
    values = [statuses[run.name].validation or 0.0 for run in variant.runs]
    return sum(values) / len(values)
