"""The release's table against the real files, and the download of what is lacking."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile

import pytest

from stepdistill_jax.data import release
from stepdistill_jax.data.fetch import GIT_BLOB, SHA256, Download, digest
from stepdistill_jax.data.release import DIFFERS, MISSING, NO_SUM, RIGHT, check, download
from stepdistill_jax.spec import InputError


@pytest.fixture
def small(monkeypatch):
    """A release of two folders, of two files and one; each file's content is its name."""
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one.json", "three.xml")}
    files = {
        "a": {"one.json": sums["one.json"], "llm/two.json": None},
        "b": {"three.xml": sums["three.xml"]},
    }
    monkeypatch.setattr(release, "FILES", files)


def placed(tmp_path):
    """A DATA_DIR where both downloads of `small` were placed by hand, and their table."""
    data = tmp_path / "data"
    (data / "b").mkdir(parents=True)
    with zipfile.ZipFile(data / "all.zip", "w") as target:
        target.writestr("datasets/a/one.json", "one.json")
        target.writestr("datasets/a/llm/two.json", "two.json")
    (data / "b" / "three.xml").write_text("three.xml")
    archive, plain = digest(data / "all.zip", GIT_BLOB), digest(data / "b" / "three.xml", SHA256)
    nowhere = "http://127.0.0.1:1/file"
    return data, (
        Download(nowhere, "all.zip", GIT_BLOB, archive, ("a",)),
        Download(nowhere, "b/three.xml", SHA256, plain, ("b",)),
    )


def test_table_is_true_of_the_public_files(shared):
    checks = check(shared / "data", release.FILES)
    assert not [c for c in checks if c.state in (DIFFERS, NO_SUM)]
    missing = [c.path for c in checks if c.state == MISSING]
    assert missing == [c.path for c in checks if c.expected is None]
    train = [path for path in missing if "/llm/" not in path]
    assert train == ["esnli/esnli_train.json", "anli1/anli1_train.json"]
    there = {
        path.relative_to(shared / "data").as_posix()
        for path in (shared / "data").glob("*/**/*")
        if path.is_file()
    }
    assert there == {c.path for c in checks if c.state == RIGHT}


def test_downloads_are_pinned_and_fill_every_folder_once():
    assert sorted(f for item in release.DOWNLOADS for f in item.folders) == sorted(release.FILES)
    for item in release.DOWNLOADS:
        assert re.search(r"/[0-9a-f]{40}/", item.url)
        assert re.fullmatch(
            {GIT_BLOB: "[0-9a-f]{40}", SHA256: "[0-9a-f]{64}"}[item.algorithm], item.digest
        )


def test_check_tells_the_four_states(small, tmp_path):
    (tmp_path / "a" / "llm").mkdir(parents=True)
    (tmp_path / "a" / "one.json").write_text("changed")
    (tmp_path / "a" / "llm" / "two.json").write_text("anything")
    states = {c.path: c.state for c in check(tmp_path, ["a", "b"])}
    assert states == {"a/one.json": DIFFERS, "a/llm/two.json": NO_SUM, "b/three.xml": MISSING}
    (tmp_path / "a" / "one.json").write_text("one.json")
    assert check(tmp_path, ["a"])[0].state == RIGHT


def test_files_placed_by_hand_are_verified_and_unpacked(small, tmp_path):
    data, items = placed(tmp_path)
    assert download(data, ["a", "b"], items) == ["a/llm/two.json", "a/one.json"]
    assert {c.state for c in check(data, ["a", "b"])} == {RIGHT, NO_SUM}


def test_nothing_is_fetched_where_nothing_is_lacking(small, tmp_path):
    data, items = placed(tmp_path)
    download(data, ["a", "b"], items)
    (data / "all.zip").unlink()
    assert download(data, ["a", "b"], items) == []


def test_wrong_archive_placed_by_hand_is_refused(small, tmp_path):
    data, items = placed(tmp_path)
    (data / "all.zip").write_bytes(b"something else")
    with pytest.raises(
        InputError, match=rf"all\.zip: expected git blob id {items[0].digest}, found"
    ):
        download(data, ["a"], items)
    assert not (data / "a").exists()


def test_a_file_that_is_not_the_releases_is_left_alone(small, tmp_path):
    data, items = placed(tmp_path)
    (data / "a").mkdir()
    (data / "a" / "one.json").write_text("mine")
    found = hashlib.sha256(b"mine").hexdigest()
    with pytest.raises(InputError, match=rf"a/one\.json: expected \w+, found {found}"):
        download(data, ["a"], items)
    assert (data / "a" / "one.json").read_text() == "mine"


def test_bucket_is_refused():
    with pytest.raises(InputError, match="gs://bucket/data: not a local folder"):
        download("gs://bucket/data", ["cqa"])


def test_real_asdiv_from_its_own_table(shared, tmp_path):
    (tmp_path / "asdiv").mkdir()
    shutil.copy(shared / "data" / "asdiv" / "ASDiv.xml", tmp_path / "asdiv")
    assert download(tmp_path, ["asdiv"]) == []
