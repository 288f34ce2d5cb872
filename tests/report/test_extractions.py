import json

import pytest
from made_extraction import write_extraction

from stepdistill_jax.report.extractions import read_extractions
from stepdistill_jax.spec import InputError


def change(folder, path, value):
    """Sets one value of a summary; the path's keys are parted by dots."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    inner = summary
    *outer, last = path.split(".")
    for key in outer:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    file.write_text(json.dumps(summary))


def test_reads_what_was_written(tmp_path):
    write_extraction(tmp_path / "first")
    (found,) = read_extractions([tmp_path / "first"])
    assert (found.name, found.dataset, found.model) == ("first", "cqa", "small-teacher")
    assert found.prompt.tokens == 812
    split = found.splits["train"]
    assert (split.rows, split.answered) == (10, 8)
    assert split.quality.accuracy.share == 5 / 8
    assert split.quality.rationales.human.rows == 6
    assert found.price == pytest.approx(0.02)
    # Six of eight rows have a label.
    assert found.label_price == pytest.approx(0.02 * 8 / 6)
    # Worst first: what could not be read, then the wrong label.
    assert [suspect.id for suspect in found.worst["train"]] == ["6", "7", "5"]


def test_what_is_not_there_is_not_known(tmp_path):
    write_extraction(tmp_path / "first", cost=None)
    for path in ("prompt", "units.train.seconds", "units.train.quality"):
        change(tmp_path / "first", path, None)
    (tmp_path / "first/worst_train.jsonl").unlink()
    (found,) = read_extractions([tmp_path / "first"])
    assert found.price is None
    assert found.label_price is None
    assert found.prompt.hash is None
    assert found.splits["train"].seconds is None
    assert found.worst["train"] == []
    change(tmp_path / "first", "units", None)
    assert read_extractions([tmp_path / "first"])[0].splits == {}


def test_a_row_costs_what_it_would_without_the_cache(tmp_path):
    write_extraction(tmp_path / "first")
    # 4 of 8 requests paid 0.16 in all.
    change(tmp_path / "first", "units.train.requests", 4)
    change(tmp_path / "first", "units.train.cached", 4)
    assert read_extractions([tmp_path / "first"])[0].price == pytest.approx(0.04)
    change(tmp_path / "first", "units.train.requests", 0)
    assert read_extractions([tmp_path / "first"])[0].price is None


def test_a_summary_that_is_no_object_is_named(tmp_path):
    write_extraction(tmp_path / "first")
    (tmp_path / "first" / "summary.json").write_text("[]")
    with pytest.raises(InputError, match=r"summary\.json: got \[\], expected an object\.$"):
        read_extractions([tmp_path / "first"])


def test_names_do_not_depend_on_the_place_and_folders_count_once(tmp_path):
    for name in ("a/x", "b/x", "b/y"):
        write_extraction(tmp_path / name)
    folders = [tmp_path / name for name in ("a/x", "b/x", "b/y", "b/../b/y")]
    assert [found.name for found in read_extractions(folders)] == ["a/x", "b/x", "y"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("units.train.rows", "ten", r"units\.train\.rows: got 'ten', expected a valid integer"),
        ("units.train.rows", True, r"units\.train\.rows: got True, expected a valid integer"),
        ("units.train.cost", [1], r"units\.train\.cost: got \[1\], expected a valid number"),
        (
            "units.train.cost",
            float("nan"),
            r"units\.train\.cost: got nan, expected a finite number",
        ),
        ("model", 3, r"summary\.json: model: got 3, expected a valid string"),
        ("dataset", None, r"summary\.json: no dataset\. Run launch\.extract again"),
        ("units", [], r"summary\.json: units: got \[\], expected an object"),
        ("units.train", 1, r"units\.train: got 1, expected an object"),
        ("units.train.quality.usable", None, r"units\.train\.quality: no usable\. Run"),
        (
            "units.train.quality.outcomes.parsed",
            "x",
            r"quality\.outcomes\.parsed: got 'x', expected a valid integer",
        ),
        (
            "units.train.quality.accuracy.share",
            "x",
            r"quality\.accuracy\.share: got 'x', expected a valid number",
        ),
    ],
)
def test_wrong_types_are_named(tmp_path, path, value, message):
    write_extraction(tmp_path / "first")
    change(tmp_path / "first", path, value)
    with pytest.raises(InputError, match=message):
        read_extractions([tmp_path / "first"])


def test_the_name_of_a_split_is_no_path(tmp_path):
    write_extraction(tmp_path / "first")
    change(tmp_path / "first", "units.x", {})
    text = (tmp_path / "first/summary.json").read_text().replace('"x"', '"../../x"')
    (tmp_path / "first/summary.json").write_text(text)
    with pytest.raises(InputError, match=r"units: got the name '\.\./\.\./x'"):
        read_extractions([tmp_path / "first"])


def test_damaged_files_are_named_with_their_line(tmp_path):
    with pytest.raises(InputError, match=r"no summary\.json in it\. Name the EXTRACT_DIR"):
        read_extractions([tmp_path])
    write_extraction(tmp_path / "first")
    worst = tmp_path / "first/worst_train.jsonl"
    lines = worst.read_text().splitlines()
    broken = {**json.loads(lines[1]), "reasons": "wrong"}
    worst.write_text("\n".join([lines[0], json.dumps(broken)]) + "\n")
    with pytest.raises(
        InputError,
        match=r"first: worst_train\.jsonl:2: reasons: got 'wrong', expected a valid array",
    ):
        read_extractions([tmp_path / "first"])
    (tmp_path / "first/summary.json").write_text('{"dataset":\n "cqa",,}')
    with pytest.raises(InputError, match=r"first/summary\.json:2: not JSON \(.* at column 8\)"):
        read_extractions([tmp_path / "first"])
