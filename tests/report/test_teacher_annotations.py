import csv
import html.parser
import json
import pathlib
import re

import pytest
from made_extraction import make_rows, write_extraction

from stepdistill_jax.records import Annotation, Example, ParseFailure
from stepdistill_jax.report.report import write_report
from stepdistill_jax.report.teacher_annotations import SHOWN_CHARACTERS
from stepdistill_jax.teacher.vote import Annotated
from stepdistill_jax.text import visible

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "annotations.md"

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</dd></dl></details><iframe src=https://evil.example></iframe>",
    "[click](javascript:alert(1)) ![x](https://evil.example/x.png) <https://evil.example>",
    "see https://evil.example and www.evil.example",
    "a | b || c |\n| --- | --- |\n| d |",
    "# heading\n\n- item\n\n```\ncode",
    "`a` **b** __c__ ~~d~~ $e$ \\| \\",
    "x" * 5000,
    "abc \u202egnp.exe\u202c \u2066 \u200f",
    "null \x00 bell \x07 escape \x1b[31m delete \x7f return \r carriage",
    "&lt;script&gt; &amp; &#60;b&#62;",
    "-->]]></style></textarea>",
    "line\u2028separator\u2029paragraph\x85next",
)


class Page(html.parser.HTMLParser):
    """Every element with its attributes, and the texts of the excerpts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.inside = set(), set(), [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.inside = tag == "dd"
        if self.inside:
            self.texts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


def hostile_rows():
    rows = []
    for number, text in enumerate(HOSTILE):
        example = Example(f"{number} {text}"[:60], f"input {text}", text, None, ())
        outcome = Annotation(example.id, text, text[:80])
        failure = ParseFailure(example.id, text[:80], text, text)
        rows.append(Annotated(example, outcome, 2, 1, False, failure))
        rows.append(Annotated(example, failure, 1, 0, False, failure))
    return rows


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Reports of one line of hostile texts after another; a split shows at most ten examples."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = hostile_rows()
    pages = []
    for start in range(0, len(rows), 8):
        name = f"e{start}"
        write_extraction(folder / name, rows[start : start + 8], raw=lambda row: row * 20)
        write_report([], folder / "out" / name, [folder / name])
        pages.append(folder / "out" / name)
    return pages


def test_hostile_texts_are_no_elements(hostile, tmp_path):
    write_extraction(tmp_path / "plain")
    write_report([], tmp_path / "out", [tmp_path / "plain"])
    expected = Page((tmp_path / "out/index.html").read_text())
    shown = ""
    for out in hostile:
        text = (out / "index.html").read_text()
        found = Page(text)
        assert found.tags == expected.tags
        assert found.attributes == expected.attributes
        # Nothing that the browser obeys without showing it.
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f]", text)
        shown += "".join(found.texts)
    # And yet they are there to be read.
    for text in ("<script>alert(1)</script>", "onerror=alert(1)>", "⟨U+202E⟩gnp.exe", "⟨U+0000⟩"):
        assert text in shown


def test_hostile_texts_leave_markdown_tables_whole(hostile):
    for out in hostile:
        lines = (out / "report.md").read_text().splitlines()
        width = None
        for line in lines:
            # Cells end at a mark that is not escaped: one after an even number of backslashes.
            cells = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) if line.startswith("|") else None
            assert width is None or cells in (width, None), line
            width = cells
        rest = [line for line in lines if line and not line.startswith("|")]
        # No text of a teacher begins a line of its own.
        assert all(re.match(r"# Dist|## What|\*\*|\[Dist|[A-Z0-9]", line) for line in rest)
        text = "\n".join(lines)
        assert not re.search(r"(?<!\\)<(?!/?$)", text)
        assert not re.search(r"(?<!\\)://", text.replace("https://arxiv.org", ""))
        assert not re.search(r"\bwww\.", text)
        # The one link is the paper's.
        assert len(re.findall(r"(?<!\\)\]\(", text)) == 1


def test_an_excerpt_of_a_hinted_row_says_which_words_the_gold_label_helped_with(tmp_path):
    example = Example("7", "Where do cooks cook?", "kitchen", None, ("kitchen", "garden"))
    first = Annotation("7", "Outside.", "garden")
    told = Annotation("7", "kitchen " * 9, "kitchen")
    write_extraction(tmp_path / "e", [Annotated(example, told, 1, 1, True, first)])
    text = build_text(tmp_path)
    assert "its label, before the hint" in text
    assert "rationale, given the gold label" in text
    write_extraction(tmp_path / "e", [Annotated(example, told, 1, 1, False, told)])
    text = build_text(tmp_path)
    assert "its label" in text
    assert "given the gold label" not in text


def build_text(folder):
    write_report([], folder / "out", [folder / "e"])
    return (folder / "out" / "report.md").read_text()


def test_long_texts_are_cut_and_say_so(hostile):
    text = "".join((out / "index.html").read_text() for out in hostile)
    assert "x" * (SHOWN_CHARACTERS + 1) not in text
    assert "… (5,000 characters)" in text


def test_visible_by_hand():
    assert visible("a\r\nb\tc\rd") == "a\nb\tc⟨U+000D⟩d"
    assert visible("\ud800 \U000e0041") == "⟨U+D800⟩ ⟨U+E0041⟩"
    # Joiners spell Persian words and families of emoji.
    assert visible("می\u200cخواهم 👩\u200d🔬 é") == "می\u200cخواهم 👩\u200d🔬 é"


def test_section_is_the_golden_one(tmp_path):
    """To update: delete tests/golden/annotations.md, run this test, and read the difference."""
    write_extraction(tmp_path / "first", raw=lambda row: f"raw text of {row}")
    write_report([], tmp_path / "out", [tmp_path / "first"])
    found = (tmp_path / "out/report.md").read_text()
    if not GOLDEN.exists():
        GOLDEN.write_text(found)
        pytest.fail(f"{GOLDEN} was missing and has been written; read it")
    assert found == GOLDEN.read_text()


def test_extraction_alone_makes_a_report(tmp_path):
    write_extraction(tmp_path / "first")
    written = write_report([], tmp_path / "out", [tmp_path / "first"])
    assert {*written.files} == {"index.html", "report.md", "annotations.csv"}
    assert written.lines == ("first, train: 8 examples, yield 75.0%, accuracy 62.5%",)
    with (tmp_path / "out/annotations.csv").open() as file:
        values = {row["name"]: row["value"] for row in csv.DictReader(file)}
    assert values["quality.accuracy.share"] == "0.625"
    assert values["quality.outcomes.no answer marker"] == "2"
    assert values["cost"] == "0.16"


def test_what_was_lost_in_flight_is_a_line_of_its_own(tmp_path):
    write_extraction(tmp_path / "x")
    path = tmp_path / "x" / "summary.json"
    lost = {"requests": 2, "prompt_tokens": 1100, "completion_tokens": 59, "cost": 0.25}
    path.write_text(json.dumps({**json.loads(path.read_text()), "lost": lost}))
    write_report([], tmp_path / "out", [tmp_path / "x"])
    text = (tmp_path / "out/report.md").read_text()
    (line,) = (line for line in text.splitlines() if "lost in flight |" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "x, lost in flight"
    assert cells[1] == "2"
    assert (cells[3].replace(",", ""), cells[4]) == ("1100", "59")
    assert cells[5].startswith("0.25")


def test_several_extractions_and_units_without_gold(tmp_path):
    bare = [
        Annotated(Example(str(n), "in", None), row.outcome, 1, 1, False, row.outcome)
        for n, row in enumerate(make_rows())
    ]
    write_extraction(tmp_path / "a")
    write_extraction(tmp_path / "b", bare, unit="inputs", cost=None)
    written = write_report([], tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert written.lines[1] == "b, inputs: 8 examples, yield 75.0%"
    text = (tmp_path / "out/report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| b, inputs | CQA"))
    assert "(no gold labels)" in row


def test_an_extraction_without_an_answer_says_so(tmp_path):
    (tmp_path / "summary.json").write_text('{"dataset": "cqa", "model": "m"}')
    write_report([], tmp_path / "out", [tmp_path])
    assert "No example is annotated yet." in (tmp_path / "out/report.md").read_text()
