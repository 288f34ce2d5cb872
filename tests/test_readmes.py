"""The READMEs: every link leads somewhere, and the table of exit codes is complete."""

import pathlib
import re

import pytest

from stepdistill_jax import spec

ROOT = pathlib.Path(__file__).parents[1]
READMES = [
    ROOT / "README.md",
    *(p for f in ("gin", "launch", "stepdistill_jax") for p in (ROOT / f).rglob("README.md")),
]


def anchors(path):
    """The anchors that GitHub gives the headings of a file."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(readme):
    for link in re.findall(r"\]\(([^)]+)\)", readme.read_text()):
        name, _, anchor = link.partition("#")
        if name.startswith("https://"):
            continue
        target = readme.parent / name if name else readme
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_table_of_exit_codes_is_complete():
    codes = {value for name, value in vars(spec).items() if name.startswith("EXIT_")}
    table = (ROOT / "README.md").read_text().partition("| exit code |")[2].partition("\n\n")[0]
    assert set(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE))) == {0, *codes}
