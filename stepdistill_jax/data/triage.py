"""Rationale triage: which rationales are worth training on (TRIAGE), and the others' weights.

Every filter judges one example by its own texts. Which examples FRACTION takes does not depend on
it, and a control with shuffled rationales deals out exactly the rationales that pass.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from stepdistill_jax.data import audit
from stepdistill_jax.data.metrics import correct

# The label beside the rationale is not the gold one, or is missing.
WRONG = "wrong"
# The rationale contains neither a letter nor a digit.
EMPTY = "empty"
# The rationale contains the label that is trained on (`audit.states`).
STATES_LABEL = "states_label"
FILTERS = (WRONG, EMPTY, STATES_LABEL)

# Increase it whenever the same texts would be judged differently: part of a data fingerprint.
VERSION = 1

_PREFIX = "triage: "
_JUDGED, _KEPT = f"{_PREFIX}looked at", f"{_PREFIX}pass all"
_NO_GOLD = f"{_PREFIX}no gold label to be {WRONG} by"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The triage of one example.

    Attributes:
        judged: there was something to judge.
        reasons: the filters that it does not pass.
        label_weight, rationale_weight: factors on the example's targets; 0 drops one.
    """

    judged: bool = False
    reasons: tuple[str, ...] = ()
    label_weight: float = 1.0
    rationale_weight: float = 1.0


def name(filters: tuple[str, ...], weight: float) -> str:
    """A triage in one word, such as ``wrong+states_label:0.5``; "" for none."""
    return f"{'+'.join(filters)}:{weight:g}" if filters else ""


def caught(
    filters: tuple[str, ...],
    metric: str,
    *,
    rationale: str | None,
    teacher_label: str | None,
    gold: str | None,
    target: str | None,
) -> tuple[str, ...]:
    """Those of `filters` that an example does not pass, in their order.

    Args:
        filters: of `FILTERS`.
        metric: a key of `metrics.METRICS`.
        rationale: None passes all filters except `WRONG`.
        teacher_label: of the rationale's writer; None or "" is not the gold one.
        gold: None, in unlabelled data, passes `WRONG`.
        target: the label that is trained on.
    """
    fails = {
        WRONG: gold is not None and not (teacher_label and correct(metric, teacher_label, gold)),
        EMPTY: rationale is not None and not any(map(str.isalnum, rationale)),
        STATES_LABEL: audit.states(rationale or "", target or "", metric),
    }
    return tuple(name for name in filters if fails[name])


class Tally:
    """Counts what a triage did to the training examples."""

    def __init__(self, filters: tuple[str, ...]) -> None:
        self._filters = filters
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, verdict: Verdict, gold: str | None) -> None:
        """Counts one example's verdict."""
        if not verdict.judged:
            return
        self._counts[_JUDGED] += 1
        self._counts[_KEPT] += not verdict.reasons
        self._counts[_NO_GOLD] += WRONG in self._filters and gold is None
        self._counts.update(_PREFIX + reason for reason in verdict.reasons)

    def counts(self) -> dict[str, int]:
        """Examples judged, those that pass, and those that each filter catches."""
        if not self._filters:
            return {}
        names = (_JUDGED, _KEPT, *(_PREFIX + name for name in self._filters))
        counts = {name: self._counts[name] for name in names}
        return counts | ({_NO_GOLD: self._counts[_NO_GOLD]} if self._counts[_NO_GOLD] else {})


def split_counts(report: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """A join's counts without those of `Tally`, and those of `Tally` alone."""
    tally = {name: count for name, count in report.items() if name.startswith(_PREFIX)}
    return {name: count for name, count in report.items() if name not in tally}, tally


def yields(counts: Mapping[str, int]) -> dict[str, str]:
    """Lines of a table: the examples that pass each filter alone, and all of them.

    Args:
        counts: of `Tally.counts`; empty gives no lines.
    """
    if not counts:
        return {}
    judged = counts[_JUDGED]

    def share(kept: int) -> str:
        return f"{kept:,} ({100 * kept / judged:.1f}%)" if judged else "0"

    lines = {_JUDGED: f"{judged:,}"}
    for name in FILTERS:
        if (key := _PREFIX + name) in counts:
            lines[f"{_PREFIX}pass {name!r}"] = share(judged - counts[key])
    if _NO_GOLD in counts:
        lines[_NO_GOLD] = f"{counts[_NO_GOLD]:,}"
    return lines | {_KEPT: share(counts[_KEPT])}
