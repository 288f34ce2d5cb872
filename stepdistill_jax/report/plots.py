"""Figures, drawn with matplotlib."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Okabe and Ito's colours, distinguishable without colour vision; two of them are too pale.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# These lists and the colours have different lengths, so a style recurs only after hundreds.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = (
    "-",
    "-",
    (0, (6, 2)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1.5)),
    (0, (1, 1.5)),
)
_LEVEL_DASHES: tuple[Any, ...] = (":", (0, (8, 3)), (0, (3, 2)))
# Minimum range of a vertical axis in percentage points.
MINIMUM_SPAN = 10.0
# Of text and axes; a page replaces it by the colour of its text.
_INK = "#1a1a1a"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stepdistill",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


# x, y and the standard error of y or None.
Point = tuple[float, float, float | None]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line through points.

    Attributes:
        label: in the legend; "" = not in the legend.
        style: number of the colour, marker and dashes.
        joined: draw the line.
        marked: draw the points.
    """

    label: str
    points: Sequence[Point]
    style: int
    joined: bool = True
    marked: bool = True


@dataclasses.dataclass(frozen=True)
class Band:
    """The interval of a curve.

    Attributes:
        points: (x, low, high), ascending.
        style: of its curve.
    """

    points: Sequence[tuple[float, float, float]]
    style: int


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure in two formats; the SVG keeps its texts as text."""

    svg: str
    png: bytes


def panel(
    curves: Sequence[Curve],
    levels: Mapping[str, float],
    x_label: str,
    y_label: str,
    ticks: Mapping[float, str],
    bands: Sequence[Band] = (),
) -> Picture:
    """Draws curves over a logarithmic axis in the width of a phone; equal input, equal bytes.

    Args:
        curves: at least one.
        levels: name -> height of a horizontal line.
        ticks: position on the horizontal axis -> its text.
        bands: drawn below the curves.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(4.8, 3.4 + 0.22 * (sum(bool(c.label) for c in curves) + len(levels))),
            layout="constrained",
        )
        axis = figure.subplots()
        for number, (label, height) in enumerate(levels.items()):
            dashes = _LEVEL_DASHES[number % len(_LEVEL_DASHES)]
            axis.axhline(height, color=_INK, linewidth=1.1, linestyle=dashes, label=label)
        for band in bands:
            x, low, high = zip(*band.points, strict=True)
            color = COLORS[band.style % len(COLORS)]
            axis.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
        for curve in curves:
            _curve(axis, curve)
        axis.set_xscale("log")
        axis.set_xticks([*ticks], [*ticks.values()])
        axis.minorticks_off()
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.margins(x=0.06, y=0.08)
        _widen(axis)
        axis.grid(axis="y", alpha=0.25, color=_INK)
        # Levels are drawn first to lie below, and named last.
        handles, labels = axis.get_legend_handles_labels()
        order = [*range(len(levels), len(labels)), *range(len(levels))]
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside lower left",
            frameon=False,
            fontsize=10,
            handlelength=3.2,
        )
        svg, png = io.StringIO(), io.BytesIO()
        nameless = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", facecolor="white", metadata=nameless)
        figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Picture(svg.getvalue(), png.getvalue())


def _widen(axis: Any) -> None:
    """Gives the vertical axis `MINIMUM_SPAN`, so that one example more is not seen as a trend."""
    low, high = axis.get_ylim()
    missing = max(0.0, MINIMUM_SPAN - (high - low)) / 2
    axis.set_ylim(low - missing, high + missing)


def describe(
    curves: Sequence[Curve], levels: Mapping[str, float], place: Callable[[float], str]
) -> str:
    """A panel in words, for readers who cannot see it; `place` formats a horizontal position."""
    texts = []
    for curve in curves:
        points = ", ".join(f"{y:.1f} at {place(x)}" for x, y, _ in sorted(curve.points))
        texts.append(f"{curve.label}: {points}.")
    return " ".join([*texts, *(f"{name}: {height:.1f}." for name, height in levels.items())])


def _curve(axis: Any, curve: Curve) -> None:
    x, y, errors = zip(*sorted(curve.points, key=lambda point: point[0]), strict=True)
    axis.errorbar(
        x,
        y,
        yerr=[error or 0.0 for error in errors],
        label=curve.label or None,
        color=COLORS[curve.style % len(COLORS)],
        marker=_MARKERS[curve.style % len(_MARKERS)] if curve.marked else "",
        linestyle=_DASHES[curve.style % len(_DASHES)] if curve.joined else "",
        linewidth=1.8,
        markersize=6.5,
        capsize=3 if curve.marked else 0,
    )


def inline(svg: str, prefix: str) -> str:
    """An SVG file's text for use inside a page, in the colours of the page.

    Args:
        svg: as `panel` drew it.
        prefix: makes its ids unique in the page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A style element would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    return svg.replace(_INK, "currentColor").replace("fill: #ffffff", "fill: none").strip()
