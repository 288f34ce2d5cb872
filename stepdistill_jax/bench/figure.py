"""The figure of a comparison of trainers: a line for every run at every step."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.report.plots import COLORS


def draw(
    path: epath.PathLike,
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    below: Mapping[str, Sequence[float]] | None = None,
    limit: float | None = None,
) -> None:
    """Draws panels side by side, each with a line for every run of every trainer.

    Args:
        path: a PNG file.
        panels: label of the vertical axis -> trainer -> its runs, each one value a step. The
            first trainer's lines are wide and pale to stay visible below the others.
        below: the same labels -> relative difference at each step, for a row below on a log scale.
        limit: a horizontal line in that row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 6.4 if below else 3.8), layout="constrained")
    axes = figure.subplots(2 if below else 1, len(panels), squeeze=False, sharex=True)
    for column, (label, trainers) in enumerate(panels.items()):
        _lines(axes[0][column], label, trainers)
        if below:
            _differences(axes[1][column], below[label], limit)
        axes[-1][column].set_xlabel("step")
    axes[0][0].legend(frameon=False)
    figure.suptitle(title)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    records.write_atomic(path, drawn.getvalue())


def _lines(axis: Any, label: str, trainers: Mapping[str, Sequence[Sequence[float]]]) -> None:
    styles = ({"linewidth": 4, "alpha": 0.45}, {"linewidth": 1.1}, {"linewidth": 1.1})
    for (name, runs), color, style in zip(trainers.items(), COLORS, styles, strict=False):
        for number, values in enumerate(runs):
            steps = range(1, len(values) + 1)
            axis.plot(steps, values, color=color, label=None if number else name, **style)
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)


def _differences(axis: Any, values: Sequence[float], limit: float | None) -> None:
    # A log scale cannot show a difference of 0.
    shown = [value or float("nan") for value in values]
    axis.plot(range(1, len(values) + 1), shown, ".", color=COLORS[2], markersize=4)
    if limit is not None:
        axis.axhline(limit, color="0.3", linestyle="--", linewidth=1)
    axis.set_yscale("log")
    axis.set_ylabel("relative difference")
    axis.grid(alpha=0.25)
