"""A report as one self-contained HTML file: style and figures inside, no script."""

from __future__ import annotations

import importlib.resources
from typing import Any

import jinja2
import markupsafe

from stepdistill_jax.report import plots
from stepdistill_jax.report.document import Figure, Report
from stepdistill_jax.text import visible


def render(report: Report) -> str:
    """The whole page; every text is escaped and made visible."""
    folder = importlib.resources.files(__package__)
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    environment.globals["drawing"] = _drawing
    template = environment.from_string(folder.joinpath("page.html").read_text("utf-8"))
    style = markupsafe.Markup(folder.joinpath("page.css").read_text("utf-8"))
    return template.render(report=report, style=style).lstrip()


def _visible(value: Any) -> Any:
    return value if isinstance(value, markupsafe.Markup) else visible(str(value))


def _drawing(figure: Figure) -> markupsafe.Markup:
    label = markupsafe.escape(visible(figure.alt))
    drawing = plots.inline(figure.svg, figure.name)
    return markupsafe.Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))
