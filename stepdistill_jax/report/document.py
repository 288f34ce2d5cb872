"""The content of a report, before it becomes HTML or Markdown."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

NUMBER, TEXT, PAPER, MISSING = "number", "text", "paper", "missing"

_Value = TypeVar("_Value")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        kind: `NUMBER` is ours, `PAPER` the paper's, `MISSING` says why there is no number.
    """

    text: str
    kind: str = TEXT


def missing(reason: str) -> Entry:
    """The reason why there is no number."""
    return Entry(reason, MISSING)


def number(
    value: _Value | None, write: Callable[[_Value], str] = str, otherwise: str = "not known"
) -> Entry:
    """A number as `write` formats it; `otherwise` in place of None."""
    return missing(otherwise) if value is None else Entry(write(value), NUMBER)


# Column heading, or (group of columns, heading) -> text or entry.
Row = Mapping[Any, str | Entry]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with the same columns; the first column names the row."""

    caption: str
    rows: Sequence[Row]

    def __post_init__(self) -> None:
        assert len({tuple(row) for row in self.rows}) == 1, self.caption

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(group, heading) of each column; the group is "" if there is none."""
        return [("", key) if isinstance(key, str) else key for key in self.rows[0]]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(group, number of columns) from left to right; empty without groups."""
        groups = [group for group, _ in self.columns]
        return [(group, len([*same])) for group, same in itertools.groupby(groups) if any(groups)]

    @property
    def body(self) -> list[list[Entry]]:
        """The entries of every row."""
        return [
            [Entry(value) if isinstance(value, str) else value for value in row.values()]
            for row in self.rows
        ]


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Texts of an example or an annotation; HTML shows them folded.

    Attributes:
        texts: (name, text), at least one.
    """

    title: str
    texts: Sequence[tuple[str, str]]


Block = Paragraph | Bullets | Table | Excerpt


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot, its description and its numbers.

    Attributes:
        name: of its files, without the ending.
        alt: what it shows, for readers who cannot see it.
    """

    name: str
    caption: str
    alt: str
    svg: str
    png: bytes
    table: Table


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page under one heading; figures follow the blocks.

    Attributes:
        id: of the heading, for links.
    """

    id: str
    title: str
    blocks: Sequence[Block]
    figures: Sequence[Figure] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole page.

    Attributes:
        lead: a few sentences below the title.
        link: the only link to another site: (text, address).
    """

    title: str
    lead: Sequence[str]
    link: tuple[str, str]
    sections: Sequence[Section]
