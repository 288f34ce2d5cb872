"""Files of the hub, from a server on 127.0.0.1 that answers as the hub does."""

from __future__ import annotations

import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest

ROOT = pathlib.Path(__file__).parents[1]


class Hub(http.server.BaseHTTPRequestHandler):
    """Has the repository ``me/model`` with one file, ``second.json``."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        if not self.path.startswith("/me/model/"):
            self.fail("RepoNotFound")
        elif not self.path.endswith("/second.json"):
            self.fail("EntryNotFound")
        else:
            self.send_response(200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "2")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"{}")

    def fail(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *unused):
        pass


@pytest.fixture(scope="module")
def endpoint():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def find(endpoint, home, *names):
    """What `hub.find` returns or raises in a new process: the library reads its settings once."""
    program = f"""
from stepdistill_jax import hub
for name in {names}:
    try:
        print(hub.find("INITIAL_CHECKPOINT", *name, "set it").read_text())
    except ValueError as error:
        print(error)
"""
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_the_first_file_that_there_is_and_what_is_missing(endpoint, tmp_path):
    both = ("first.json", "second.json")
    answers = find(
        endpoint, tmp_path, ("me/model", both), ("me/model", both[:1]), ("me/modle", both)
    )
    assert answers == [
        "{}",
        "INITIAL_CHECKPOINT='hf:me/model': the repository has no first.json. Name a repository "
        "that has one.",
        f"INITIAL_CHECKPOINT='hf:me/modle': {endpoint} has no such repository that you can read. "
        "Correct the name, or run `hf auth login` for a private one.",
    ]
    nowhere = find("http://127.0.0.1:9", tmp_path, ("me/model", both), ("me/model", both[:1]))
    assert nowhere[0] == "{}"  # from the cache
    assert nowhere[1].startswith(
        f"INITIAL_CHECKPOINT='hf:me/model': first.json is not in {tmp_path}/hub and cannot be "
        "downloaded (ConnectError: "
    )
    assert nowhere[1].endswith(
        "Run `hf download me/model --local-dir FOLDER` where there is a network, copy FOLDER here "
        "and set it."
    )
