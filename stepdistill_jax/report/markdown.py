"""A report as Markdown: tables that read as text, figures as links to their files."""

from __future__ import annotations

from stepdistill_jax.report.document import (
    MISSING,
    PAPER,
    Block,
    Bullets,
    Entry,
    Excerpt,
    Figure,
    Paragraph,
    Report,
    Table,
)
from stepdistill_jax.text import markdown


def render(report: Report, figures: str) -> str:
    """The whole file; `figures` is the folder of the figures' files, relative to it."""
    text, address = report.link
    parts = [
        f"# {markdown(report.title)}",
        *map(markdown, report.lead),
        f"[{markdown(text)}]({address})",
    ]
    for section in report.sections:
        parts.append(f"## {markdown(section.title)}")
        parts += map(_block, section.blocks)
        parts += [_figure(figure, figures) for figure in section.figures]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return markdown(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {markdown(item)}" for item in block.items)
    if isinstance(block, Excerpt):
        return _table(Table(block.title, [{"": name, "text": text} for name, text in block.texts]))
    return _table(block)


def _figure(figure: Figure, folder: str) -> str:
    picture = f"![{markdown(figure.alt)}]({folder}/{figure.name}.png)"
    svg = f"[SVG]({folder}/{figure.name}.svg)"
    return f"**{markdown(figure.caption)}**\n\n{picture}\n\n{svg}\n\n{_table(figure.table)}"


def _table(table: Table) -> str:
    headings = [f"{group}, {name}" if group else name for group, name in table.columns]
    lines = [
        _line([markdown(heading) for heading in headings]),
        _line(["---"] * len(headings)),
        *(_line([_entry(entry) for entry in row]) for row in table.body),
    ]
    return f"**{markdown(table.caption)}**\n\n" + "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _entry(entry: Entry) -> str:
    text = markdown(entry.text)
    if entry.kind == PAPER:
        return f"*{text}* (paper)"
    return f"({text})" if entry.kind == MISSING else text
