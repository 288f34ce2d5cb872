"""Methods that were run with several settings, and which of them validation chose."""

from __future__ import annotations

from collections.abc import Sequence

from stepdistill_jax.report import formats
from stepdistill_jax.report.comparisons import ReportData
from stepdistill_jax.report.document import (
    Block,
    Bullets,
    Paragraph,
    Row,
    Section,
    Table,
    missing,
    number,
)
from stepdistill_jax.report.variants import Scores, Tried, Variant

_TEXT = (
    "Runs that differ in a setting besides the seeds are never averaged or drawn on one curve. For "
    "each method, the settings with the best mean accuracy on validation, at the largest fraction "
    "run, stand for it in all other tables. Only their accuracy on {splits} is shown: the choice "
    "has not seen it."
)


def section(data: ReportData) -> Section:
    """A row for every combination of settings, and methods that tried fewer than another."""
    scores = data.scores
    text = _TEXT.format(splits=" and ".join(sorted({*scores.splits.values()})))
    blocks: list[Block] = [
        Paragraph(text),
        Table("Every combination", [*map(_row, scores.tried)]),
    ]
    if uneven := _uneven(scores):
        blocks += [Paragraph("Who tries more settings finds a better one more easily:"), uneven]
    return Section("settings", "Settings tried", blocks)


def _row(one: Tried) -> Row:
    key = one.variant.key
    shown = formats.accuracy(one.variant) if one.chosen else missing("not chosen")
    return {
        "data and model": formats.data_and_model(key),
        "method": formats.method(key.recipe, with_added=False),
        "data": number(key.fraction, formats.fraction),
        "settings": settings(one),
        "seeds": number(len(one.variant.lines)),
        "validation": number(one.validation, formats.percent),
        "accuracy": shown,
    }


def settings(one: Tried) -> str:
    """``LEARNING_RATE=0.001, WEIGHT_DECAY=4.0``."""
    return ", ".join(f"{name}={value}" for name, value in one.settings.items())


def _uneven(scores: Scores) -> Bullets | None:
    """Methods that were compared with a baseline of fewer settings, or of more."""
    items = []
    for variant in scores.students:
        baseline = scores.baseline(variant.key)
        if baseline is None or baseline is variant:
            continue
        ours, theirs = (_count(scores.tried, side) for side in (variant, baseline))
        if ours != theirs:
            items.append(
                f"{formats.data_and_model(variant.key)}, {formats.fraction(variant.key.fraction)}: "
                f"{formats.method(variant.key.recipe, with_added=False)} tried {ours}, standard "
                f"finetuning {theirs}."
            )
    return Bullets(items) if items else None


def _count(tried: Sequence[Tried], variant: Variant) -> int:
    """Settings that a method was run with at one fraction."""
    return sum(one.variant.key == variant.key for one in tried) or 1
