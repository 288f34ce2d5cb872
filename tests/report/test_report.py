import csv
import html.parser
import pathlib
import shutil
import xml.etree.ElementTree as ET

import pytest
from made_runs import make_result, write_run
from matplotlib import image

from stepdistill_jax.report import html_page, markdown, paper, plots
from stepdistill_jax.report.document import Paragraph, Report, Section, Table
from stepdistill_jax.report.report import write_report
from stepdistill_jax.text import csv_text

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "report.md"
STEP_BY_STEP = {"method": "step_by_step", "rationales": "teacher"}


def write_small(folder):
    """CQA, two methods, two fractions, two seeds, and a teacher; a run each of other kinds."""
    for seed in (0, 1):
        costs = {"train_pairs": 100, "train_flops": 2e12, "serving_flops": 1e8}
        write_run(folder / f"s{seed}", 0.6 + 0.01 * seed, seed=seed, device_seconds=8.0, **costs)
        for fraction, accuracy in ((0.5, 0.55), (1.0, 0.7)):
            facts = {"seed": seed, "fraction": fraction, **STEP_BY_STEP, **costs}
            write_run(folder / f"d{fraction}-{seed}", accuracy - 0.01 * seed, **facts)
    write_run(
        folder / "teacher", 0.65, method="teacher", labels="none", model="teacher", step=0,
        selected_on="none", parameters=None, serving_flops=1e14,
    )  # fmt: skip
    write_run(folder / "big", 0.8, model="small", parameters=60_000_000, predictions=False)
    earlier = make_result(labels="teacher", step=50, accuracy=0.52, selected_on="none")
    write_run(folder / "paper", 0.5, labels="teacher", more=(earlier,))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_small(folder / "runs")
    write_report([folder / "runs"], folder / "out")
    return folder


class Page(html.parser.HTMLParser):
    """What a browser would fetch, run or jump to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.ids, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.references.append((tag, value))
            if name == "id":
                self.ids.append(value)
            assert not name.startswith("on"), (tag, name)


def test_page_needs_nothing_but_itself(written):
    text = (written / "out/index.html").read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & {*page.tags}
    outside = [(tag, ref) for tag, ref in page.references if not ref.startswith("#")]
    assert outside == [("a", paper.LINK)]
    assert "@import" not in text
    assert text.count("url(") == text.count("url(#")


def test_links_of_the_page_lead_somewhere_and_ids_are_unique(written):
    page = Page((written / "out/index.html").read_text())
    assert len(page.ids) == len({*page.ids})
    inside = {ref[1:] for _, ref in page.references if ref.startswith("#")}
    assert inside <= {*page.ids}
    assert page.tags.count("h1") == page.tags.count("main") == 1


def test_figures_say_in_words_what_they_show(written):
    text = (written / "out/index.html").read_text()
    assert text.count('<svg role="img" aria-label=') == text.count("<figure>") == 2
    assert "step-by-step: 54.5 at 50%, 69.5 at 100%." in text
    # The SVG's texts are texts.
    assert "fraction of the training data</text>" in text


def test_report_md_is_the_golden_one(written):
    """To update: delete tests/golden/report.md, run this test, and read the difference."""
    found = (written / "out/report.md").read_text()
    if not GOLDEN.exists():
        GOLDEN.write_text(found)
        pytest.fail(f"{GOLDEN} was missing and has been written; read it")
    assert found == GOLDEN.read_text()


def test_same_results_give_the_same_bytes(written, tmp_path):
    # In another order, at another place.
    shutil.copytree(written / "runs", tmp_path / "elsewhere")
    write_report([tmp_path / "elsewhere"], tmp_path / "out")
    files = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*"))
    assert len(files) == 3 + 2 * 2
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (written / "out" / name).read_bytes()


def test_missing_cells_say_so(written):
    text = (written / "out/report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| step-by-step, GPT-NeoX"))
    # e-SNLI, ANLI, CQA, SVAMP: ours, the paper's.
    assert row.split(" | ")[1:] == [
        "(not run)", "*89.12* (paper)", "(not run)", "*48.15* (paper)",
        "(not run)", "*63.25* (paper)", "(not run)", "*63.00* (paper) |",
    ]  # fmt: skip
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert not [line for line in table if "|  |" in line or "nan" in line.lower()]


def test_costs_and_the_teachers(written):
    lines = (written / "out/report.md").read_text().splitlines()
    costs = [line for line in lines if "| 1/1,000,000 |" in line]
    assert len(costs) == 3
    assert "2.00e12 | 8.00 | 1.00e8" in costs[0]
    assert "(not known) | 1.00e8" in costs[1]
    above = next(line for line in lines if line.startswith("| CQA | step-by-step, gold labels | r"))
    assert "65.00 | tiny, 215K | 100% | 69.50 ± 0.50 (2)" in above
    assert above.endswith("*11B* (paper) |")


def test_a_report_without_a_selected_step_names_the_run(tmp_path):
    write_run(tmp_path / "runs/a", 0.5, selected_on="none")
    written = write_report([tmp_path / "runs"], tmp_path / "out")
    assert written.without_number == ("a",)
    assert "No student has a step that was selected" in (tmp_path / "out/report.md").read_text()


def test_results_csv_holds_every_line(written):
    with (written / "out/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 + 1 + 1 + 2
    assert {row["run"] for row in rows} >= {"s0", "teacher", "paper"}
    assert {row["selected_on"] for row in rows if row["run"] == "s0"} == {"validation"}


def test_cells_of_a_csv_are_no_formulas(tmp_path):
    facts = {"model": '=HYPERLINK("https://example.org")', "seed": 3}
    write_run(tmp_path / "runs" / "@run", 0.5, **facts)
    write_report([tmp_path / "runs"], tmp_path / "out")
    with (tmp_path / "out/results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["run"], row["model"]) == ("'@run", f"'{facts['model']}")
    # Numbers stay numbers.
    assert csv_text([[-0.5, "-0.5", " +1", "a=b"]]) == "-0.5,'-0.5,' +1,a=b\n"


def test_text_of_runs_is_no_markup():
    table = Table("a|b <i>", [{"x": "<script>", "y": "a|b_c"}])
    section = Section("s", "t", (table, Paragraph("<b>")))
    report = Report("title", (), ("link", "https://example.org"), [section])
    assert not {"script", "b", "i"} & {*Page(html_page.render(report)).tags}
    assert r"| \<script> | a\|b\_c |" in markdown.render(report, "figures")


def test_panel_draws_the_same_bytes_and_what_it_is_given(tmp_path):
    curve = plots.Curve("one", [(1.0, 70.0, 2.0), (0.5, 60.0, None)], 1)
    first, second = (
        plots.panel([curve], {"level": 50.0}, "x", "y", {0.5: "half", 1.0: "all"}) for _ in range(2)
    )
    assert first == second
    texts = {node.text for node in ET.fromstring(first.svg).iter() if node.tag.endswith("}text")}
    assert {"one", "level", "x", "y", "half", "all"} <= texts
    (tmp_path / "panel.png").write_bytes(first.png)
    assert image.imread(tmp_path / "panel.png").shape[1] == 4.8 * 160
