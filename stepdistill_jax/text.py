"""Texts for people: aligned columns, durations and sizes."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterable, Sequence

GIB = 2**30
_MIB = 2**20
# Also their full-width forms.
_FORMULA = tuple("=+-@＝＋－＠\t\r")


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
