"""What the tests of the extraction binary share."""

import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
KEY = "sk-test-0123456789abcdef0123456789abcdef"
DRINKS = ("tea", "coffee", "cocoa")


def drink(asked):
    """Eleven words, and a drink that depends on the question."""
    return f"Most of them like it best. So the answer is {DRINKS[len(asked.last) % 3]}."


def settings(place, server, *more, folder="out"):
    """200 rows of the demo, kept off the cache of answers unless asked."""
    return (
        f"EXTRACT_DIR={place / folder}",
        f"TEACHER_URL={server.url}",
        "TEACHER_MODEL=teacher",
        "FRACTION=0.1",
        "RETRIES=1",
        "ANSWER_CACHE=none",
        *more,
    )


def command(given, *flags):
    overrides = [f"--gin.{text}" for text in given]
    return [
        *(sys.executable, "-m", "launch.extract", "--gin_file=extract/demo.gin"),
        *(*overrides, *flags),
    ]


def logged(folder, unit="train"):
    """The log's answers, read by hand."""
    path = folder / "rows" / f"{unit}.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.01)
