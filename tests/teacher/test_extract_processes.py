"""The extraction as a process: killed, stopped, batches left behind, what it prints and imports."""

import collections
import json
import os
import re
import signal
import subprocess
import sys
import time

import teacher_server
from extract_cases import KEY, ROOT, command, logged, settings, wait_for


def test_killed_three_times_it_asks_nothing_twice_and_loses_no_row(place, server):
    server.latency = 0.1
    out = place / "out"
    given = settings(place, server)
    safe = collections.Counter()
    for kill in range(1, 4):
        process = subprocess.Popen(
            command(given), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda kill=kill: len(logged(out)) >= 45 * kill)
        process.kill()
        process.communicate()
        # What the folder holds now had better not be asked again.
        asked = server.by_key
        safe = collections.Counter({row["key"]: asked[row["key"]] for row in logged(out)})
        assert len(safe) >= 45 * kill
        # Its own requests in flight arrive nowhere any more.
        time.sleep(0.3)
    last = subprocess.run(command(given), cwd=ROOT, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    rows = logged(out)
    assert len(rows) == len({row["id"] for row in rows}) == 200
    at_end = server.by_key
    assert {key: at_end[key] for key in safe} == safe
    # Only what was in flight at a kill is asked again: 16 at most, three times.
    again = sum(at_end.values()) - 200
    assert 0 < again <= 3 * 16
    match = re.search(r"up to (\d+) requests were in flight when earlier calls were", last.stdout)
    assert match is not None
    # Those of earlier kills that were answered since are not said again.
    lost = re.search(r"(\d+) requests lost in flight, counted at their worst case", last.stdout)
    assert lost is not None
    assert 0 < int(match[1]) <= 16
    assert again <= int(lost[1]) <= 3 * 16
    assert len((out / "rationales_train.jsonl").read_text().splitlines()) == 200
    # The bar, the summary and the table count the same tokens.
    summary = json.loads((out / "summary.json").read_text())
    tokens = summary["total"]["prompt_tokens"] + summary["total"]["completion_tokens"]
    assert f", {tokens:,} tokens" in last.stderr
    assert f"{200 + int(lost[1]):,} requests paid for in total: {tokens:,} tokens" in last.stdout
    units = summary["units"]["train"]
    assert (
        units["prompt_tokens"] + summary["lost"]["prompt_tokens"]
        == (summary["total"]["prompt_tokens"])
    )
    idle = subprocess.run(command(given), cwd=ROOT, capture_output=True, text=True, check=False)
    assert "in flight when earlier calls" not in idle.stdout


def test_sigterm_waits_for_what_is_in_flight_and_the_same_command_continues(place, server):
    server.latency = 0.3
    given = settings(place, server)
    process = subprocess.Popen(
        command(given), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(logged(place / "out")) >= 20)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "waiting up to 60 s for requests in flight" in stderr
    assert "run the same command again to continue" in stderr
    assert server.received == len(server.answered) == len(logged(place / "out"))
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert summary["units"]["train"]["answered"] == server.received
    server.latency = 0.0
    done = subprocess.run(command(given), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert server.received == 200
    assert "in flight when earlier" not in done.stdout


def test_the_key_is_written_and_printed_nowhere(place, server):
    echo = teacher_server.Fault(400, {"message": f"Bearer {KEY} said no", "code": None})
    server.faults = lambda asked: echo if asked.key.startswith("a") else None
    cache = f"ANSWER_CACHE={place / 'answers'}"
    given = settings(place, server, cache, "MAX_ROWS=40")
    environment = {**os.environ, "OPENAI_LOG": "debug"}
    good = subprocess.run(
        command(given, "--verbosity=1"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = subprocess.run(
        command(given, "--gin.MAX_ROWS=60"),
        cwd=ROOT,
        env=environment | {"OPENAI_API_KEY": KEY + "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (good.returncode, wrong.returncode) == (4, 4), good.stderr + wrong.stderr
    said = good.stdout + good.stderr + wrong.stdout + wrong.stderr
    assert "rejects the key" in said
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 40
    for text in [said, *(path.read_bytes().decode() for path in files)]:
        assert KEY not in text
        assert KEY[3:20] not in text
    assert any("error" in row for row in logged(place / "out"))


def test_a_batch_that_waits_is_taken_up_by_the_next_process(place, server):
    server.batch_looks = 10**6
    given = settings(place, server, "CLIENT=batch", "BATCH_POLL=0.05", "MAX_ROWS=30")
    process = subprocess.Popen(
        command(given), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: server.batches)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    server.batch_looks = 1
    done = subprocess.run(command(given), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "30 requests are in submitted batches" in done.stdout
    assert len(server.batches) == 1
    assert len(server.answered) == len(logged(place / "out")) == 30


def test_no_array_library_is_set_up_and_tensorflow_not_imported(place, server):
    code = (
        "import sys; from launch import extract; from launch.flags import run_with_arguments\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    run_with_arguments(extract.main)\n"
        "finally:\n    from jax._src import xla_bridge\n"
        "    print('LOADED', sorted({'tensorflow', 'seqio', 'torch'} & set(sys.modules)),"
        " xla_bridge._backends)\n"
    )
    given = settings(place, server, "MAX_ROWS=2")
    arguments = command(given)[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, "extract", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "LOADED [] {}" in done.stdout, done.stderr
