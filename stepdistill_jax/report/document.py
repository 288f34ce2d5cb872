"""What a report says, before it is HTML or Markdown."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence

NUMBER, TEXT, PAPER, MISSING = "number", "text", "paper", "missing"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        kind: `NUMBER` is ours, `PAPER` the paper's, `MISSING` says why there is none.
    """

    text: str
    kind: str = TEXT


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of entries; the first column names the row.

    Attributes:
        caption: above it.
        header: names of the columns.
        groups: for each column what it and its neighbours stand under, "" = nothing; () = no
            such line.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        widths = {len(self.header), *map(len, self.rows)} | ({len(self.groups)} - {0})
        assert len(widths) == 1, f"{self.caption}: {widths}"


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot with its words and numbers.

    Attributes:
        name: of its files, without the ending.
        caption: what it shows.
        alt: what a reader who does not see it should know.
        svg, png: the picture.
        table: its numbers.
    """

    name: str
    caption: str
    alt: str
    svg: str
    png: bytes
    table: Table


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Texts that somebody or something else wrote, for a look; shown folded where that is possible.

    Attributes:
        title: what they belong to.
        texts: (name, text), at least one.
    """

    title: str
    texts: tuple[tuple[str, str], ...]


Block = Paragraph | Bullets | Table | Figure | Excerpt


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page under one heading.

    Attributes:
        id: of the heading, for links.
    """

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole page.

    Attributes:
        lead: what it is about, in a few sentences.
        link: the only one that leads elsewhere: (text, address).
    """

    title: str
    lead: tuple[str, ...]
    link: tuple[str, str]
    sections: Sequence[Section]

    @property
    def figures(self) -> list[Figure]:
        """In order."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [block for block in blocks if isinstance(block, Figure)]


# Controls that have a use in plain text; joiners are part of some scripts' spelling.
_KEPT_CONTROLS = frozenset("\n\t\u200c\u200d")
_INVISIBLE = frozenset(("Cc", "Cf", "Cs"))


def visible(text: str) -> str:
    """With the code point in the place of characters that control how text is shown.

    Null, terminal escapes, marks that turn the direction of writing, halves of characters: a text
    with ``\\u202e`` has ``⟨U+202E⟩`` there.
    """
    return "".join(
        f"⟨U+{ord(character):04X}⟩"
        if character not in _KEPT_CONTROLS and unicodedata.category(character) in _INVISIBLE
        else character
        for character in text.replace("\r\n", "\n")
    )
