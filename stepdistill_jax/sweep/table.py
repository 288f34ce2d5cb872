"""The texts of a sweep: the plan before it starts, and how it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from stepdistill_jax.run.eval_config import SPLITS
from stepdistill_jax.sweep.estimate import BY_KIND, EFFICIENCY, ROUGH, START_SECONDS, Group
from stepdistill_jax.sweep.matrix import Impossible
from stepdistill_jax.sweep.state import Look, State
from stepdistill_jax.text import columns, duration

_HEADINGS = ("data", "method", "labels", "model")
_PLAN_HEADINGS = (
    *(*_HEADINGS, "start", "fraction", "seeds", "steps", "pairs"),
    *("tokens", "FLOPs", "time left", "state"),
)
_NUMBERS = {"fraction", "seeds", "steps", "pairs", "tokens", "FLOPs", "time left", *SPLITS}


def quantity(number: float) -> str:
    """Three digits and a unit: 999, 12.3k, 1.5M, 2.0G, 1.2e15."""
    if number >= 1e15:
        return f"{number:.1e}".replace("e+", "e")
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{number:,.0f}"


def plan(groups: Sequence[Group], looks: Mapping[str, Look], impossible: int = 0) -> str:
    """What the runs start from, those that differ in their seed alone a line, and the total.

    Args:
        groups: all runs that can be.
        looks: name -> what its folder says.
        impossible: how many more were asked for.
    """
    if not groups:
        return "none of the runs can be" if impossible else "nothing is left to do"
    starts = [_start(group) for group in groups]
    one_start = len(set(starts) - {""}) <= 1
    lines = [
        _plan_line(group, looks, "" if one_start else start)
        for group, start in zip(groups, starts, strict=True)
    ]
    work = [work for group in groups for work in group.work]
    seconds = sum(group.seconds for group in groups)
    rough = any(group.basis == ROUGH and group.seconds for group in groups)
    total = (
        "total",
        *("",) * 5,
        f"{len(work)} runs",
        f"{sum(w.steps for w in work):,}",
        "",
        quantity(sum(w.tokens for w in work)),
        quantity(sum(w.flops for w in work)),
        ("~" if rough else "") + duration(seconds),
        _states(looks[run.name].state for group in groups for run in group.runs),
    )
    text = columns([_PLAN_HEADINGS, *lines, total], _NUMBERS)
    above = f"every run starts from {max(starts)}" if one_start and any(starts) else ""
    return "\n".join(filter(None, (above, text, _basis(groups, impossible))))


def _start(group: Group) -> str:
    """Where the weights are from; "" where nothing is trained."""
    config = group.runs[0].config
    return (config.initial_checkpoint or "random weights") if config.streams else ""


def _plan_line(group: Group, looks: Mapping[str, Look], start: str) -> tuple[str, ...]:
    run = group.runs[0]
    pairs = {work.pairs for work in group.work}
    low, high = min(pairs), max(pairs)
    seconds = ("~" if group.basis == ROUGH else "") + duration(group.seconds)
    *shared, fraction = _identity(group)
    return (
        *shared,
        start,
        fraction,
        ",".join(str(run.config.seed) for run in group.runs) if run.config.streams else "",
        *(
            (
                f"{group.work[0].steps:,}",
                f"{low:,}" if low == high else f"{low:,}-{high:,}",
                quantity(sum(work.tokens for work in group.work)),
                quantity(sum(work.flops for work in group.work)),
            )
            if run.config.streams
            else ("",) * 4
        ),
        seconds if group.seconds else "",
        _states(looks[run.name].state for run in group.runs),
    )


def _identity(group: Group) -> tuple[str, ...]:
    run = group.runs[0]
    fraction = f"{run.config.data.fraction:.12g}" if run.config.streams else ""
    return (run.data, run.method, run.labels, run.model, fraction)


def _states(states: Iterable[State]) -> str:
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def _basis(groups: Sequence[Group], impossible: int) -> str:
    """How the times of the plan are known; "" where only what cannot be is left."""
    bases = {group.basis for group in groups if group.seconds}
    if not bases:
        return "" if impossible else "nothing is left to do"
    if ROUGH in bases:
        return (
            f"times are rough: FLOPs over {EFFICIENCY:.0%} of what a large matrix product reaches "
            f"here, and {START_SECONDS:.0f} s a run for its start; they improve as runs finish"
        )
    if bases == {BY_KIND}:
        return "times are those of finished runs of the same kind"
    return (
        "times are from this sweep's finished runs: of the same kind where there are some, else "
        "from the FLOP/s that they reached"
    )


def impossible(runs: Sequence[Impossible]) -> str:
    """Runs that cannot be, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        reasons.setdefault(run.reason, []).append(run.name)
    return "\n".join(
        f"  {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {why}"
        for why, names in reasons.items()
    )


def progress(groups: Sequence[Group], looks: Mapping[str, Look]) -> str:
    """A line a group with the states of its runs and their test accuracy, mean of those done."""
    splits = sorted({s for g in groups for r in g.runs for s, _ in looks[r.name].accuracy})
    lines = []
    for group in groups:
        found = [dict(looks[run.name].accuracy) for run in group.runs]
        means = []
        for split in splits:
            values = [accuracy[split] for accuracy in found if split in accuracy]
            means.append(f"{100 * sum(values) / len(values):.1f}" if values else "")
        states = _states(looks[run.name].state for run in group.runs)
        lines.append((*_identity(group), *means, states))
    return columns([(*_HEADINGS, "fraction", *splits, "state"), *lines], _NUMBERS)
