"""Texts of the data in Markdown, read by a CommonMark parser."""

import html
import re

import markdown_it
import pytest

from stepdistill_jax.text import markdown, markdown_code

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "*a* _b_ ~~c~~ `d`",
    "[a](javascript:x) ![b](c)",
    "# a",
    "> a",
    "- a",
    "+ a",
    "12. a",
    "12) a",
    "===",
    "---",
    "&lt;b&gt; &amp;",
    "\\*a\\* \\",
    "https://a.b www.a.b",
    "-3.5",
]


@pytest.mark.parametrize("text", [*HOSTILE, "a `b` ``c``", "`", " a "])
def test_a_text_of_the_data_is_shown_as_it_is(text):
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    # As a paragraph, and as the cell of a table.
    if text in HOSTILE:
        assert parser.render(markdown(text)) == f"<p>{_escaped(text)}</p>\n"
    for made, shown in (
        (markdown(text), _escaped(" ".join(text.split()))),
        (markdown_code(text).replace("|", "\\|"), f"<code>{_escaped(text)}</code>"),
    ):
        table = parser.render(f"| a | b |\n| --- | --- |\n| {made} | x |")
        assert re.findall("<td>(.*?)</td>", table) == [shown, "x"]


def _escaped(text):
    return html.escape(text, quote=False).replace('"', "&quot;")


def test_numbers_stay_readable():
    assert [markdown(text) for text in ("98.03 ± 0.13 (3)", "+7.10", "-1.3", "= 5")] == [
        "98.03 ± 0.13 (3)",
        "+7.10",
        "-1.3",
        "\\= 5",
    ]


def test_lines_and_controls_end_nothing():
    assert markdown("a\n# b") == "a # b"
    assert markdown_code("a\n\u202eb") == "`a⟨U+000A⟩⟨U+202E⟩b`"
