"""Texts for people: aligned columns, durations and sizes."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Container, Iterable, Sequence

GIB = 2**30
_MIB = 2**20
# Also their full-width forms.
_FORMULA = tuple("=+-@＝＋－＠\t\r")
# Control characters with a use in plain text; joiners are part of the spelling of some scripts.
_KEPT_CONTROLS = frozenset("\n\t\u200c\u200d")
_INVISIBLE = frozenset(("Cc", "Cf", "Cs"))
# Characters with a meaning in Markdown, the backslash first.
_MARKS = "\\|*_`<&[]~$"


def columns(rows: Sequence[Sequence[str]], right: Container[str] = ()) -> str:
    """Rows of a table in aligned columns; a column whose body is empty is left out.

    Args:
        rows: the headings, then the body.
        right: headings of the columns that align right, as numbers do; the others align left.
    """
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}

    def cell(row: Sequence[str], i: int) -> str:
        return row[i].rjust(widths[i]) if rows[0][i] in right else row[i].ljust(widths[i])

    return "\n".join("  ".join(cell(row, i) for i in kept).rstrip() for row in rows)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, see OWASP's "CSV
    injection".
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(
            [
                f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in _FORMULA else cell
                for cell in row
            ]
        )
    return text.getvalue()


def duration(seconds: float) -> str:
    """Seconds with a fitting unit: 45 s, 12 min, 3.4 h, 2.1 days."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 3 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def data_size(count: float) -> str:
    """Bytes with a fitting unit: 512.0 MiB, 3.2 GiB."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / _MIB:,.1f} MiB"


def visible(text: str) -> str:
    """Replaces characters that control how text is shown by their code points.

    These are null, terminal escapes, marks of writing direction and lone surrogates: ``\\u202e``
    becomes ``⟨U+202E⟩``.
    """
    return "".join(
        f"⟨U+{ord(character):04X}⟩"
        if character not in _KEPT_CONTROLS and unicodedata.category(character) in _INVISIBLE
        else character
        for character in text.replace("\r\n", "\n")
    )


def markdown(text: str) -> str:
    """A text on one line with its Markdown and HTML escaped; an address in it becomes no link."""
    line = " ".join(visible(text).split())
    for mark in _MARKS:
        line = line.replace(mark, f"\\{mark}")
    line = line.replace("://", "\\://").replace("www.", "www\\.")
    # What would begin a heading, list or quotation.
    return re.sub(r"^(\d*)([#>]|[-+=.)](?=[-= ]|$))", r"\1\\\2", line)


def markdown_code(text: str) -> str:
    """A text as Markdown's inline code: no character in it ends the code."""
    text = visible(text).replace("\n", "⟨U+000A⟩")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text or text[:1] == text[-1:] == " " else ""
    return f"{fence}{space}{text}{space}{fence}"
