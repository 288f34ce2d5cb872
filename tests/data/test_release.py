"""The release's table against the real files, and the download of what is lacking."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import http.server
import re
import shutil
import threading
import time
import zipfile

import pytest

from stepdistill_jax.data import release
from stepdistill_jax.data.fetch import GIT_BLOB, SHA256, Download, digest
from stepdistill_jax.data.release import DIFFERS, MISSING, RIGHT, UNVERIFIED, check, download
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


@pytest.fixture
def placed(small, monkeypatch, tmp_path):
    """A DATA_DIR with both downloads of `small`, of which no server has either."""
    data = tmp_path / "data"
    (data / "b").mkdir(parents=True)
    with zipfile.ZipFile(data / "all.zip", "w") as target:
        target.writestr("datasets/a/one.json", "one.json")
        target.writestr("datasets/a/llm/two.json", "two.json")
    (data / "b" / "three.xml").write_text("three.xml")
    offer(monkeypatch, data, "http://127.0.0.1:1")
    return data


def offer(monkeypatch, data, site):
    """Makes `site` the place from which the files of `placed` are downloaded."""
    archive, plain = digest(data / "all.zip", GIT_BLOB), digest(data / "b" / "three.xml", SHA256)
    items = (
        Download(f"{site}/all.zip", "all.zip", GIT_BLOB, archive, ("a",)),
        Download(f"{site}/b/three.xml", "b/three.xml", SHA256, plain, ("b",)),
    )
    monkeypatch.setattr(release, "DOWNLOADS", items)


@pytest.fixture
def site(placed, monkeypatch):
    """A server of the files of `placed`; the paths that it was asked for."""
    paths = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            super().do_GET()

        def log_message(self, *unused):
            pass

    handler = functools.partial(Handler, directory=placed)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        offer(monkeypatch, placed, f"http://127.0.0.1:{server.server_address[1]}")
        yield paths
        server.shutdown()
        thread.join()


def test_table_is_true_of_the_public_files(shared):
    checks = check(shared / "data", release.FILES)
    assert not [c for c in checks if c.state in (DIFFERS, UNVERIFIED)]
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
    assert states == {"a/one.json": DIFFERS, "a/llm/two.json": UNVERIFIED, "b/three.xml": MISSING}
    (tmp_path / "a" / "one.json").write_text("one.json")
    assert check(tmp_path, ["a"])[0].state == RIGHT


def test_files_placed_by_hand_are_verified_and_unpacked(placed):
    assert download(placed, ["a", "b"]) == ["a/llm/two.json", "a/one.json"]
    assert {c.state for c in check(placed, ["a", "b"])} == {RIGHT, UNVERIFIED}


def test_nothing_is_fetched_where_nothing_is_lacking(placed):
    download(placed, ["a", "b"])
    (placed / "all.zip").unlink()
    assert download(placed, ["a", "b"]) == []


def test_wrong_archive_placed_by_hand_is_refused(placed):
    expected = release.DOWNLOADS[0].digest
    (placed / "all.zip").write_bytes(b"something else")
    with pytest.raises(
        InputError, match=rf"all\.zip: wrong git blob id: got \w+, expected {expected}\. Delete"
    ):
        download(placed, ["a"])
    assert not (placed / "a").exists()


def test_a_file_that_is_not_the_releases_is_left_alone(placed):
    (placed / "a").mkdir()
    (placed / "a" / "one.json").write_text("mine")
    actual = hashlib.sha256(b"mine").hexdigest()
    with pytest.raises(InputError, match=rf"a/one\.json: got {actual}, expected \w+\. Delete or"):
        download(placed, ["a"])
    assert (placed / "a" / "one.json").read_text() == "mine"


def test_without_data_dir_the_release_is_downloaded_into_the_cache_once(
    site, monkeypatch, tmp_path
):
    monkeypatch.setenv("STEPDISTILL_CACHE_DIR", str(tmp_path / "cache"))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: release.cached(["a", "b"]), range(4)))
    assert folders == [tmp_path / "cache" / "release"] * 4
    assert sorted(site) == ["/all.zip", "/b/three.xml"]
    assert {c.state for c in check(folders[0], ["a", "b"])} == {RIGHT, UNVERIFIED}
    assert not list(folders[0].rglob("*.part"))


def test_without_data_dir_and_network_the_archive_may_be_placed_by_hand(
    placed, monkeypatch, tmp_path
):
    monkeypatch.setenv("STEPDISTILL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    target = tmp_path / "cache" / "release" / "all.zip"
    with pytest.raises(InputError, match=rf"Save the file as {target} and run again, or set DATA_"):
        release.cached(["a"])
    shutil.copy(placed / "all.zip", target)
    assert (release.cached(["a"]) / "a" / "one.json").read_text() == "one.json"


def test_bucket_is_refused():
    with pytest.raises(InputError, match="gs://bucket/data: not a local folder"):
        download("gs://bucket/data", ["cqa"])


def test_real_asdiv_from_its_own_table(shared, tmp_path):
    (tmp_path / "asdiv").mkdir()
    shutil.copy(shared / "data" / "asdiv" / "ASDiv.xml", tmp_path / "asdiv")
    assert download(tmp_path, ["asdiv"]) == []
