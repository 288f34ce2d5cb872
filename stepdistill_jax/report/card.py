"""A report as one HTML file that needs nothing else: style and figures inside, no script."""

from __future__ import annotations

import html
import importlib.resources
import itertools

from stepdistill_jax.report import plots
from stepdistill_jax.report.document import (
    Block,
    Bullets,
    Excerpt,
    Figure,
    Paragraph,
    Report,
    Section,
    Table,
    visible,
)

# Longer tables are folded.
_LONG = 40


def render(report: Report) -> str:
    """The whole page."""
    style = importlib.resources.files(__package__).joinpath("card.css").read_text("utf-8")
    text, address = report.link
    contents = "".join(
        f'<li><a href="#{section.id}">{_text(section.title)}</a></li>'
        for section in report.sections
    )
    lead = "".join(f"<p>{_text(sentence)}</p>" for sentence in report.lead)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{_text(report.title)}</title>",
            f"<style>{style}</style></head>",
            "<body>",
            f"<header><h1>{_text(report.title)}</h1>{lead}"
            f'<p><a href="{html.escape(address)}">{_text(text)}</a></p></header>',
            f'<nav aria-label="Contents"><h2>Contents</h2><ol>{contents}</ol></nav>',
            "<main>",
            *map(_section, report.sections),
            "</main>",
            "</body></html>",
            "",
        ]
    )


def _section(section: Section) -> str:
    blocks: list[str] = []
    runs = itertools.groupby(section.blocks, lambda block: isinstance(block, Figure))
    for is_figures, group in runs:
        shown = "\n".join(map(_block, group))
        blocks.append(f'<div class="figures">\n{shown}\n</div>' if is_figures else shown)
    return (
        f'<section aria-labelledby="{section.id}">\n'
        f'<h2 id="{section.id}">{_text(section.title)}</h2>\n' + "\n".join(blocks) + "\n</section>"
    )


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Figure):
        return _figure(block)
    if isinstance(block, Excerpt):
        return _excerpt(block)
    table, caption = _table(block), _text(block.caption)
    if len(block.rows) > _LONG:
        rows = f"{len(block.rows)} rows"
        return f"<details><summary>{caption} ({rows})</summary>\n{table}\n</details>"
    return f"<h3>{caption}</h3>\n{table}"


def _figure(figure: Figure) -> str:
    drawing = plots.inline(figure.svg, figure.name)
    label = html.escape(visible(figure.alt))
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return (
        f"<figure>\n<figcaption>{_text(figure.caption)}</figcaption>\n{drawing}\n"
        f"<details><summary>Numbers</summary>\n{_table(figure.table)}\n</details>\n</figure>"
    )


def _excerpt(excerpt: Excerpt) -> str:
    texts = "".join(
        f'<dt>{_text(name)}</dt><dd dir="auto">{_text(text)}</dd>' for name, text in excerpt.texts
    )
    return (
        f'<details class="excerpt"><summary>{_text(excerpt.title)}</summary>\n'
        f"<dl>{texts}</dl></details>"
    )


def _table(table: Table) -> str:
    head = ""
    if table.groups:
        spans = [(name, len([*same])) for name, same in itertools.groupby(table.groups)]
        cells = (
            f'<th scope="colgroup" colspan="{width}">{_text(name)}</th>' if name else "<td></td>"
            for name, width in spans
        )
        head = f"<tr>{''.join(cells)}</tr>"
    kinds = ["paper" if name == "paper" else "" for name in table.header]
    names = "".join(
        f'<th scope="col" class="{kind}">{_text(name)}</th>'
        for name, kind in zip(table.header, kinds, strict=True)
    )
    rows = []
    for first, *others in table.rows:
        cells = (f'<td class="{entry.kind}">{_text(entry.text)}</td>' for entry in others)
        rows.append(f'<tr><th scope="row">{_text(first.text)}</th>{"".join(cells)}</tr>')
    label = html.escape(visible(table.caption))
    # A box that is scrolled by itself must be reachable by keyboard.
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{label}">'
        f"<table>\n<thead>{head}<tr>{names}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n"
        "</tbody></table></div>"
    )


def _text(text: str) -> str:
    return html.escape(visible(text), quote=False)
