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
    visible,
)


def render(report: Report, figures: str) -> str:
    """The whole file.

    Args:
        report: what to say.
        figures: folder of the figures' files, as seen from this one.
    """
    text, address = report.link
    parts = [f"# {_plain(report.title)}", *map(_plain, report.lead), f"[{_plain(text)}]({address})"]
    for section in report.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_block(block, figures) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_plain(item)}" for item in block.items)
    if isinstance(block, Figure):
        picture = f"![{_plain(block.alt)}]({figures}/{block.name}.png)"
        files = f"[SVG]({figures}/{block.name}.svg)"
        return f"**{_plain(block.caption)}**\n\n{picture}\n\n{files}\n\n{_table(block.table)}"
    if isinstance(block, Excerpt):
        rows = tuple((Entry(name), Entry(text)) for name, text in block.texts)
        return _table(Table(block.title, ("", "text"), rows))
    return _table(block)


def _table(table: Table) -> str:
    groups = table.groups or ("",) * len(table.header)
    header = [
        f"{group}, {name}" if group else name
        for group, name in zip(groups, table.header, strict=True)
    ]
    lines = [
        _line([_plain(name) for name in header]),
        _line(["---"] * len(header)),
        *(_line([_entry(entry) for entry in row]) for row in table.rows),
    ]
    return f"**{_plain(table.caption)}**\n\n" + "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _entry(entry: Entry) -> str:
    text = _plain(entry.text)
    if entry.kind == PAPER:
        return f"*{text}* (paper)"
    return f"({text})" if entry.kind == MISSING else text


def _plain(text: str) -> str:
    """Without what Markdown would take for its own; an address in it is no link."""
    text = visible(text)
    for mark in ("\\", "|", "*", "_", "`", "<", "[", "]", "~", "$"):
        text = text.replace(mark, f"\\{mark}")
    text = text.replace("://", "\\://").replace("www.", "www\\.")
    return " ".join(text.split())
