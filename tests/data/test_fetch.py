"""Fetch and unpack against a real HTTP server on 127.0.0.1 that misbehaves on demand."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import pathlib
import re
import subprocess
import threading
import zipfile

import pytest

from stepdistill_jax.data import fetch as fetch_lib
from stepdistill_jax.data.fetch import GIT_BLOB, SHA256, Download, digest, fetch, unpack
from stepdistill_jax.spec import InputError

CONTENT = bytes(range(256)) * 4000  # about 1 MB


@dataclasses.dataclass
class Site:
    """What the server holds and how it behaves."""

    content: bytes = CONTENT
    ranges: bool = True
    drop_after: int | None = None  # bytes of one answer after which the connection is cut
    drops: int = 0  # how many answers are cut so
    status: int = 200
    starts: list[int] = dataclasses.field(default_factory=list)  # first byte asked for, each time
    url: str = ""

    def download(self, content: bytes | None = None) -> Download:
        sum_ = hashlib.sha256(self.content if content is None else content).hexdigest()
        return Download(self.url, "a/file.bin", SHA256, sum_, ("a",))


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, site, *args):
        self.site = site
        super().__init__(*args)

    def do_GET(self):
        site = self.site
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(requested[1]) if requested else 0
        site.starts.append(start)
        if site.status != 200:
            self.send_error(site.status)
            return
        if not site.ranges:
            requested, start = None, 0
        if requested and start >= len(site.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = site.content[start:]
        self.send_response(206 if requested else 200)
        self.send_header("Content-Length", str(len(body)))
        if requested:
            size = len(site.content)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if site.drops > 0:
            site.drops -= 1
            self.wfile.write(body[: site.drop_after])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *unused):
        pass


@pytest.fixture
def site():
    site = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, site))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/file.bin"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def test_git_blob_id_is_what_git_prints(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    printed = subprocess.run(
        ["git", "hash-object", "--no-filters", file], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert digest(file, GIT_BLOB) == printed


def test_fetch_whole_file(site, tmp_path):
    seen = []
    target = fetch(site.download(), tmp_path, progress=lambda *call: seen.append(call))
    assert target == tmp_path / "a" / "file.bin"
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_fetch_keeps_what_is_right(site, tmp_path):
    fetch(site.download(), tmp_path)
    fetch(site.download(), tmp_path)
    assert site.starts == [0]


def test_dropped_connection_continues_where_it_broke(site, tmp_path):
    site.drops, site.drop_after = 2, 300_000
    target = fetch(site.download(), tmp_path, pause=0.0)
    assert target.read_bytes() == CONTENT
    assert site.starts == [0, 300_000, 600_000]


def test_next_run_continues_the_part_of_the_last(site, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.bin.part").write_bytes(CONTENT[:123_456])
    assert fetch(site.download(), tmp_path).read_bytes() == CONTENT
    assert site.starts == [123_456]


def test_whole_part_needs_no_further_byte(site, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.bin.part").write_bytes(CONTENT)
    assert fetch(site.download(), tmp_path).read_bytes() == CONTENT
    assert site.starts == [len(CONTENT)]


@pytest.mark.parametrize("part", [b"x" * 1000, CONTENT + b"more"])
def test_damaged_part_is_thrown_away_and_fetched_anew(site, tmp_path, part):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.bin.part").write_bytes(part)
    assert fetch(site.download(), tmp_path).read_bytes() == CONTENT
    assert site.starts == [len(part), 0]


def test_server_without_ranges_starts_over(site, tmp_path):
    site.ranges, site.drops, site.drop_after = False, 1, 300_000
    assert fetch(site.download(), tmp_path, pause=0.0).read_bytes() == CONTENT


def test_server_that_always_breaks_at_one_place_ends(site, tmp_path):
    site.ranges, site.drops, site.drop_after = False, 10**6, 300_000
    with pytest.raises(InputError, match="connection closed after 300000 of 1024000 bytes"):
        fetch(site.download(), tmp_path, attempts=3, pause=0.0)
    assert len(site.starts) == 4  # the first brought new bytes
    assert (tmp_path / "a" / "file.bin.part").stat().st_size == 300_000


def test_passing_server_error_is_tried_again_a_refusal_is_not(site, tmp_path):
    site.status = 503
    with pytest.raises(InputError, match="503"):
        fetch(site.download(), tmp_path, attempts=3, pause=0.0)
    assert len(site.starts) == 3
    site.starts.clear()
    site.status = 404
    with pytest.raises(InputError, match="404"):
        fetch(site.download(), tmp_path, attempts=3, pause=0.0)
    assert len(site.starts) == 1


def test_wrong_bytes_name_both_sums_and_leave_nothing(site, tmp_path):
    item = site.download(b"what was promised")
    result = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(InputError, match=f"wrong sha256: got {result}, expected {item.digest}"):
        fetch(item, tmp_path)
    assert list((tmp_path / "a").iterdir()) == []


def test_wrong_file_in_place_is_not_overwritten(site, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.bin").write_bytes(b"mine")
    with pytest.raises(
        InputError, match=r"file\.bin: wrong sha256: got \w+, expected \w+\. Delete"
    ):
        fetch(site.download(), tmp_path)
    assert (tmp_path / "a" / "file.bin").read_bytes() == b"mine"
    assert site.starts == []


def test_no_network_says_where_to_place_the_file(tmp_path):
    item = Download("http://127.0.0.1:1/file.bin", "a/file.bin", SHA256, "0" * 64, ("a",))
    with pytest.raises(InputError) as caught:
        fetch(item, tmp_path, attempts=2, pause=0.0)
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1:1/file.bin: download failed ([Errno 111]")
    assert f"Save the file as {tmp_path / 'a' / 'file.bin'} and run again, or set" in message


def test_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "a").write_text("a file where a folder must be")
    with pytest.raises(InputError, match="cannot be read or written"):
        fetch(site.download(), tmp_path)


def archive_of(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return path


def test_unpack_takes_the_folders_asked_for(tmp_path):
    archive = archive_of(
        tmp_path / "z.zip",
        {
            "datasets/": b"",
            "datasets/cqa/cqa_train.json": b"1",
            "datasets/cqa/llm/train_CoT_0.json": b"2",
            "datasets/cqa/.DS_Store": b"3",
            "datasets/esnli/esnli_test.json": b"4",
            "__MACOSX/datasets/cqa/._cqa_train.json": b"5",
        },
    )
    written = unpack(archive, tmp_path / "data", ["cqa"], {})
    assert written == ["cqa/cqa_train.json", "cqa/llm/train_CoT_0.json"]
    files = {p.relative_to(tmp_path / "data").as_posix() for p in tmp_path.rglob("data/**/*.*")}
    assert files == set(written)
    assert unpack(archive, tmp_path / "data", ["cqa"], {}) == []


@pytest.mark.parametrize(
    "name", ["datasets/cqa/../../../evil", "/cqa/evil", "cqa/..\\evil", "C:/cqa/evil"]
)
def test_unpack_refuses_a_member_outside_and_writes_nothing(tmp_path, name):
    archive = archive_of(tmp_path / "z.zip", {"cqa/good.json": b"1", name: b"2"})
    with pytest.raises(InputError, match=re.escape(repr(name)) + " could land outside the folder"):
        unpack(archive, tmp_path / "data", ["cqa"], {})
    assert not (tmp_path / "data").exists()


def test_unpack_refuses_a_link(tmp_path):
    link = zipfile.ZipInfo("cqa/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as target:
        target.writestr(link, "/etc")
    with pytest.raises(InputError, match="could land outside"):
        unpack(tmp_path / "z.zip", tmp_path / "data", ["cqa"], {})


def test_unpack_leaves_a_file_that_differs(tmp_path):
    archive = archive_of(tmp_path / "z.zip", {"cqa/a.json": b"1", "cqa/b.json": b"2"})
    (tmp_path / "data" / "cqa").mkdir(parents=True)
    (tmp_path / "data" / "cqa" / "b.json").write_bytes(b"3")
    with pytest.raises(InputError, match=r"b\.json: differs from the file in z\.zip\. Delete"):
        unpack(archive, tmp_path / "data", ["cqa"], {})
    assert [p.name for p in (tmp_path / "data" / "cqa").iterdir()] == ["b.json"]


def test_unpack_verifies_the_table_and_leaves_no_wrong_file(tmp_path):
    archive = archive_of(tmp_path / "z.zip", {"cqa/a.json": b"1"})
    wrong, right = hashlib.sha256(b"2").hexdigest(), hashlib.sha256(b"1").hexdigest()
    with pytest.raises(InputError, match=f"got {right}, expected {wrong}"):
        unpack(archive, tmp_path / "data", ["cqa"], {"cqa/a.json": wrong})
    assert list((tmp_path / "data" / "cqa").iterdir()) == []
    assert unpack(archive, tmp_path / "data", ["cqa"], {"cqa/a.json": right}) == ["cqa/a.json"]


def test_unpack_names_a_damaged_archive(tmp_path):
    archive = archive_of(tmp_path / "z.zip", {"cqa/a.json": bytes(1000)})
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-30])
    with pytest.raises(InputError, match=r"z\.zip: damaged archive"):
        unpack(archive, tmp_path / "data", ["cqa"], {})
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as target:
        target.writestr("cqa/a.json", b"content")
    archive.write_bytes(stored.getvalue().replace(b"content", b"cOntent"))
    with pytest.raises(InputError, match=r"damaged archive \(Bad CRC-32"):
        unpack(archive, tmp_path / "data", ["cqa"], {})
    assert list((tmp_path / "data" / "cqa").iterdir()) == []


def test_answers_that_end_early_are_counted_in_bytes_not_in_chunks(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_lib, "_CHUNK", 1000)
    site.drops, site.drop_after = 1, 1_500
    assert fetch(site.download(), tmp_path, pause=0.0).read_bytes() == CONTENT
    assert site.starts == [0, 1_500]
