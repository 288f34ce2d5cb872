"""The extraction binary against an endpoint: kills, caps, workers, faults, keys, what is left."""

import json
import pathlib
import re

import pytest
import teacher_server
from absl.testing import flagsaver
from extract_cases import KEY, logged

from launch import extract
from launch.flags import Arguments
from stepdistill_jax.data import join
from stepdistill_jax.run import load
from stepdistill_jax.teacher import clients, store
from stepdistill_jax.teacher.requests import EndpointError

ROOT = pathlib.Path(__file__).parents[2]


def test_the_cap_stops_at_exactly_the_last_row_with_16_in_flight(run, server, place):
    # Long enough for 16 threads to have asked on a busy machine, before the first is answered.
    server.latency = 1.0
    # An answer is eleven words, as long as it may be: what is reserved is what is charged.
    cap = ("PRICE_INPUT=0.0", "PRICE_OUTPUT=1.0", "MAX_NEW_TOKENS=11", f"MAX_COST={37 * 11e-6:.6f}")
    code, stdout, _ = run(*cap)
    assert code == 4
    assert server.received == len(logged(place / "out")) == 37
    assert server.most_in_flight == 16
    assert "MAX_COST=0.000407 has no room for another request: 0.000407 is spent" in stdout
    assert "163 examples are left" in stdout
    assert run(*cap)[0] == 4
    assert server.received == 37


def test_the_real_bound_is_never_exceeded(run, server, place):
    prices = ("PRICE_INPUT=1.0", "PRICE_OUTPUT=2.0", "MAX_NEW_TOKENS=30")
    code, _, _ = run(*prices, "MAX_COST=0.02")
    summary = json.loads((place / "out" / "summary.json").read_text())["units"]["train"]
    read = sum(len(asked.text.split()) for asked in server.answered)
    assert code == 4
    assert summary["cost"] == pytest.approx((read + 2 * 11 * server.received) / 1e6)
    # No other request would have fitted: each reads some 695 words and may write 30.
    assert 0.02 - 0.0008 < summary["cost"] <= 0.02


def test_a_cap_below_one_request_sends_none_and_says_what_would_help(run, server):
    code, stdout, _ = run("PRICE_INPUT=1.0", "PRICE_OUTPUT=1.0", "MAX_COST=0.001")
    assert (code, server.received) == (4, 0)
    assert "0.000000 is spent, 200 examples are left; raise it" in stdout
    assert "or set TEACHER_TOKENIZER: without it a prompt first counts one token per byte" in stdout


def test_max_rows_is_exact(run, server, place):
    server.latency = 0.02
    code, stdout, stderr = run("MAX_ROWS=50")
    assert (code, server.received) == (4, 50)
    assert re.search(r"50/50 .*example/s, [\d,]+ tokens, 100\.0% parsed", stderr)
    assert "MAX_ROWS=50 is reached: 150 examples are left" in stdout
    assert run("MAX_ROWS=50")[0] == 4
    assert server.received == 50
    assert run("MAX_ROWS=200")[0] == 0
    assert server.received == 200


def test_workers_share_the_rows_and_merging_makes_what_training_reads(run, server, place):
    for worker in range(3):
        folder = f"machine{worker}"
        code, stdout, _ = run(folder=folder, worker=worker, workers=3)
        assert code == 0
        assert "when all are done: python -m launch.extract --merge" in stdout
        assert not (place / folder / "rationales_train.jsonl").exists()
    assert server.received == len(server.by_key) == 200
    folders = tuple(str(place / f"machine{worker}") for worker in range(3))
    into = f"EXTRACT_DIR={place / 'all'}"
    code, stdout, _ = run(into, positional=folders, files=(), merge=True)
    assert code == 0, stdout
    assert "200 lines on train" in stdout
    before = (place / "all" / "rows" / "train.jsonl").read_bytes()
    assert run(into, positional=folders, files=(), merge=True)[0] == 0
    assert (place / "all" / "rows" / "train.jsonl").read_bytes() == before
    assert server.received == 200
    # Training sees every row with the teacher's rationale and label.
    student = load.parse(
        ["demo.gin"],
        [
            "FRACTION=0.1",
            "LABELS=teacher",
            f"RATIONALES=file:{place / 'all' / 'rationales_train.jsonl'}",
        ],
    )
    # What is scored needs no rationales of its own.
    assert all(join.load_pairs(student.data, split)[0] for split in ("validation", "test"))
    pairs, _ = join.load_pairs(student.data, "train")
    assert len(pairs) == 200
    assert {pair.rationale for pair in pairs} == {"Most of them like it best."}
    # A conflict is refused, and says where.
    path = place / "machine1" / "rows" / "train-1-of-3.jsonl"
    text = path.read_text()
    path.write_text(text.replace("like it", "hate it", 1))
    code, _, _ = run(into, positional=folders, files=(), merge=True)
    assert re.search(r"all/rows/train\.jsonl:\d+ and .*machine1/rows/train-1-of-3\.jsonl:1: ", code)
    # As is another prompt, with what was merged before left as it is.
    hashes = {row["prompt_hash"] for row in logged(place / "all")}
    path.write_text(text.replace(hashes.pop(), "0" * 64, 1))
    code, _, _ = run(into, positional=folders, files=(), merge=True)
    assert re.search(r"machine1/rows/train-1-of-3\.jsonl:1: .* with prompt '000000000000'", code)
    assert (place / "all" / "rows" / "train.jsonl").read_bytes() == before
    path.write_text(text)
    # As are folders of different extractions.
    other = place / "machine2" / "config.gin"
    other.write_text(other.read_text().replace("TOP_P = 1.0", "TOP_P = 0.9"))
    code, _, _ = run(into, positional=folders, files=(), merge=True)
    assert re.search(r"machine2 holds another .*machine0, with TOP_P=0.9 .*1.0", code)
    assert "Leave the folder out" in code
    assert "to continue it" not in code


def units_of(folder):
    return json.loads((folder / "summary.json").read_text())["units"]


def added_inputs(place):
    lines = [{"id": str(i), "input": f"clover {i} goes into a pot . what ?"} for i in range(5)]
    (place / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"EXTRACT_INPUTS=file:{place / 'more.jsonl'}"


SCORED = "EXTRACT_SPLITS=('test', 'validation')"


def test_a_later_call_keeps_the_units_of_earlier_ones(run, server, place):
    prices = ("PRICE_INPUT=1.0", "PRICE_OUTPUT=1.0")
    run(SCORED, "MAX_ROWS=20")
    assert run(*prices, "MAX_ROWS=220")[0] == 0
    before = units_of(place / "out")
    assert [*before] == ["train", "validation", "test"]
    names = [f"{kind}_{unit}.jsonl" for kind in ("rationales", "worst") for unit in before]
    held = {name: (place / "out" / name).read_bytes() for name in names}
    (place / "out" / "rationales_test.jsonl").unlink()
    code, stdout, _ = run("EXTRACT_SPLITS=()", added_inputs(place))
    assert code == 0
    after = units_of(place / "out")
    assert [*after] == ["train", "validation", "test", "inputs"]
    assert {unit: after[unit]["answered"] for unit in before} == {
        unit: before[unit]["answered"] for unit in before
    }
    assert after["test"]["rows"] == before["test"]["rows"]
    assert held == {name: (place / "out" / name).read_bytes() for name in names}
    assert re.search(r"cost: unknown .* PRICE_INPUT and PRICE_OUTPUT", stdout)
    # Inputs whose file is not named any more are left as they were; fewer rows drop none.
    inputs = (place / "out" / "rationales_inputs.jsonl").read_bytes()
    assert run("FRACTION=0.05")[0] == 0
    last = units_of(place / "out")
    assert last["inputs"] == after["inputs"]
    assert (place / "out" / "rationales_inputs.jsonl").read_bytes() == inputs
    assert last["train"]["answered"] == 200
    assert (place / "out" / "rationales_train.jsonl").read_bytes() == held["rationales_train.jsonl"]


def test_merging_writes_every_unit_that_any_folder_was_asked_about(run, server, place):
    run("MAX_ROWS=10", folder="a")
    run("EXTRACT_SPLITS=('test',)", "MAX_ROWS=20", folder="b")
    run("EXTRACT_SPLITS=()", added_inputs(place), folder="b")
    folders = (str(place / "a"), str(place / "b"))
    into = f"EXTRACT_DIR={place / 'all'}"
    code, stdout, _ = run(into, "MAX_ROWS=25", positional=folders, files=(), merge=True)
    assert code == 4
    assert "10 lines on train, 20 lines on test, 5 lines on inputs" in stdout
    found = units_of(place / "all")
    assert {unit: numbers["answered"] for unit, numbers in found.items()} == {
        "train": 10,
        "test": 20,
        "inputs": 5,
    }
    for unit, count in (("train", 10), ("test", 20), ("inputs", 5)):
        lines = (place / "all" / f"rationales_{unit}.jsonl").read_text().splitlines()
        assert len(lines) == count


def test_merging_says_which_rows_and_workers_lack(run, server, place):
    assert run(worker=0, workers=2)[0] == 0
    answered = server.received
    code, stdout, _ = run(positional=(str(place / "out"),), files=(), merge=True)
    assert code == 4
    assert f"{200 - answered} of 200 examples are not done" in stdout
    assert "no folder has responses of worker 1 of 2" in stdout
    assert run(worker=1, workers=2)[0] == 0
    code, stdout, _ = run(positional=(str(place / "out"),), files=(), merge=True)
    assert (code, "not done" in stdout) == (0, False)


def test_hints_are_for_training_rows_alone_and_outlive_the_setting(run, server, place):
    server.answer = lambda asked: (
        f"Told so. So the answer is {asked.last.split('correct answer is ')[1].split('.')[0]}."
        if "correct answer is " in asked.last
        else "It may be. So the answer is red."
    )
    both = "EXTRACT_SPLITS=('train', 'test')"
    assert run(both, "HINT_WRONG=True")[0] == 0
    hinted = {row["purpose"] for row in logged(place / "out", "test")}
    assert hinted == {"answer"}
    path = place / "out" / "rationales_train.jsonl"
    before = path.read_bytes()
    assert before.count(b'"hinted": true') == len(logged(place / "out")) - 200 > 0
    assert run(both)[0] == 0
    assert path.read_bytes() == before


def test_workers_of_one_folder_are_merged_in_it(run, server, place, monkeypatch):
    monkeypatch.setenv("EXTRACT_WORKERS", "2")
    for worker in ("0", "1"):
        monkeypatch.setenv("EXTRACT_WORKER", worker)
        assert run()[0] == 0
    assert server.received == 200
    assert run(positional=(str(place / "out"),), files=(), merge=True)[0] == 0
    monkeypatch.delenv("EXTRACT_WORKER")
    monkeypatch.delenv("EXTRACT_WORKERS")
    assert run()[0] == 0
    assert server.received == 200
    monkeypatch.setenv("EXTRACT_WORKERS", "two")
    assert "EXTRACT_WORKERS: got 'two', expected a whole number" in run()[0]
    assert "worker 3 of 3: expected 0 to 2. Set --worker" in run(worker=3, workers=3)[0]


def test_another_folder_is_served_by_the_cache(run, server, place):
    cache = f"ANSWER_CACHE={place / 'answers'}"
    prices = ("PRICE_INPUT=1.0", "PRICE_OUTPUT=1.0")
    assert run(cache, *prices, folder="a")[0] == 0
    code, stdout, _ = run(cache, *prices, "MAX_COST=0.0", folder="b")
    assert (code, server.received) == (0, 200)
    assert re.search(r"train +200 +200 .* 0 +200 +0 +- +0\.0000", stdout)
    assert all(row["cached"] for row in logged(place / "b"))
    names = ("rationales_train.jsonl", "worst_train.jsonl")
    for name in names:
        assert (place / "a" / name).read_bytes() == (place / "b" / name).read_bytes()


def test_a_plan_sends_nothing_and_counts_what_is_left(run, server, place):
    prices = ("PRICE_INPUT=1.0", "PRICE_OUTPUT=2.0")
    code, stdout, _ = run(*prices, plan=True)
    assert code == 0
    assert server.received == 0
    assert "to ask: 200 of 200 examples, 200 requests (exact)" in stdout
    assert "assuming 4 bytes per token" in stdout
    assert not (place / "out").exists()
    run(*prices, "MAX_ROWS=40")
    _, stdout, _ = run(*prices, "MAX_COST=0.01", plan=True)
    assert "to ask: 160 of 200 examples, 160 requests (exact)" in stdout
    assert "(the mean of 40 responses so far)" in stdout
    summary = json.loads((place / "out" / "summary.json").read_text())["units"]["train"]
    (cost,) = re.findall(r"cost: about ([\d.]+)", stdout)
    assert float(cost) == pytest.approx(4 * summary["cost"], abs=1e-4)
    assert "left of MAX_COST may not suffice" in stdout
    # What was spent does not count twice: the rest fits MAX_COST, and not what is left of it.
    (most,) = re.findall(r"cost: about [\d.]+, at most ([\d.]+)", stdout)
    for cap, fits in ((float(most) + summary["cost"] / 2, "may not suffice"), (1.0, "suffices")):
        _, stdout, _ = run(*prices, f"MAX_COST={cap}", plan=True)
        left = f"{cap - summary['cost']:.4f}"
        assert f"the {left} left of MAX_COST {fits}" in stdout
    _, stdout, _ = run(*prices, "HINT_WRONG=True", plan=True)
    # A hint for the rows that are known to be wrong, and for all that are not answered yet.
    accuracy = json.loads((place / "out" / "summary.json").read_text())["units"]["train"]
    wrong = round(40 * (1 - accuracy["quality"]["accuracy"]["share"]))
    assert 0 < wrong < 40
    said = f"a hint for each wrong example: {wrong} known so far, at most {160 + wrong}\n"
    assert said in stdout
    assert server.received == 40


@pytest.mark.parametrize("counts", [True, False])
def test_a_plan_holds_what_the_hints_will_cost(counts, run, server, place):
    server.tokenizes = counts
    asked = ("MAX_ROWS=40", "PRICE_INPUT=1.0", "PRICE_OUTPUT=2.0", "HINT_WRONG=True")
    run("MAX_ROWS=40")
    spent = json.loads((place / "out" / "summary.json").read_text())["total"]
    _, stdout, stderr = run(*asked, plan=True)
    assert ("counting the tokens of up to 60 prompts at the endpoint" in stderr) == counts
    assert "to ask: 0 of 40 examples" in stdout
    wrong, most = map(
        int, re.search(r"wrong example: (\d+) known so far, at most (\d+)", stdout).groups()
    )
    assert wrong == most > 0
    about, at_most = map(
        float, re.search(r"about ([\d.]+), at most ([\d.]+)$", stdout, re.M).groups()
    )
    run(*asked)
    assert server.received == 40 + wrong
    total = json.loads((place / "out" / "summary.json").read_text())["total"]
    cost = (total["prompt_tokens"] - spent["prompt_tokens"]) / 1e6
    cost += 2 * (total["completion_tokens"] - spent["completion_tokens"]) / 1e6
    assert 0.8 * cost < about <= at_most
    assert cost <= at_most
    _, stdout, stderr = run(*asked, plan=True)
    assert "hint" not in stdout
    assert "cost: about 0.0000, at most 0.0000" in stdout


def test_a_plan_says_that_nothing_listens(run, server):
    code, stdout, stderr = run("TEACHER_URL=http://127.0.0.1:9/v1", plan=True)
    assert code == 0
    assert re.search(r"^warning: nothing answers at http://127\.0\.0\.1:9/v1 \(.*\)$", stderr, re.M)
    assert "assuming 4 bytes per token" in stdout


def test_a_name_that_is_not_listed_is_doubted_and_not_refused(run, server):
    server.models = ("teacher", "another")
    _, _, stderr = run("TEACHER_MODEL=teecher", plan=True)
    assert "has no model 'teecher'; did you mean 'teacher'? It has another, teacher" in stderr
    _, _, stderr = run(plan=True)
    assert stderr == ""


def test_the_prompt_is_shown_with_its_length(run, server):
    code, stdout, _ = run(show_prompt=True)
    assert code == 0
    assert "So the answer is" in stdout
    assert re.search(
        r"[\d,]+ bytes before the example \(no token count: TEACHER_TOKENIZER is empty and "
        r"the endpoint counts none\); \d+ exemplars from demo\.json",
        stdout,
    )
    server.tokenizes = True
    _, stdout, _ = run(show_prompt=True)
    # The server counts words; a line says what is not the prompt's own.
    counted = len(stdout.split("\n\n" + stdout.splitlines()[-1])[0].split())
    assert re.search(
        rf"\n{counted:,} tokens, [\d,]+ bytes before the example; \d+ exemplars", stdout
    )
    assert server.received == 0


def test_summary_and_prompt_keep_what_the_endpoint_counts_through_a_merge(run, server, place):
    server.tokenizes = True
    for worker in range(2):
        assert run("MAX_ROWS=4", worker=worker, workers=2)[0] == 4
    server.tokenizes = False
    out = place / "out"
    (before,) = {json.loads((out / "prompt.json").read_text())["tokens"]}
    assert before == len(json.loads((out / "prompt.json").read_text())["prefix"].split())
    run(positional=(str(out),), files=(), merge=True)
    assert json.loads((out / "summary.json").read_text())["prompt"]["tokens"] == before
    assert json.loads((out / "prompt.json").read_text())["tokens"] == before


# What happens to every third row -> rows without an answer, what the log says of them.
ROW_FAULTS = {
    "busy": (teacher_server.too_many("0"), None),
    "broken": (teacher_server.BROKEN, None),
    "dropped": (teacher_server.DROPPED, None),
    "malformed": (teacher_server.MALFORMED, None),
    "slow": (teacher_server.slow(0.4), None),
    "empty": (teacher_server.EMPTY, "empty completion"),
    "filtered": (teacher_server.FILTERED, "content filter"),
}


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_faults_of_single_requests(name, run, server, place):
    fault, reason = ROW_FAULTS[name]
    seen = set()

    def faults(asked):
        """The first time that a row is asked about, and every time where the fault stays."""
        is_chosen = asked.key.startswith(("0", "1", "2", "3"))
        is_new = asked.key not in seen
        seen.add(asked.key)
        return fault if is_chosen and (is_new or reason) else None

    server.faults = faults
    code, stdout, _ = run("MAX_ROWS=24", "RETRIES=3")
    assert code == 4
    assert "MAX_ROWS=24 is reached" in stdout
    rows = logged(place / "out")
    chosen = [row for row in rows if row["key"].startswith(("0", "1", "2", "3"))]
    assert len(rows) == 24
    assert chosen
    failed = [row for row in rows if "error" in row]
    assert failed == (chosen if reason else [])
    assert {row["error"] for row in failed} == ({reason} if reason else set())
    summary = json.loads((place / "out" / "summary.json").read_text())["units"]["train"]
    assert summary["errors"] == len(failed)
    outcomes = {"parsed": 24 - len(failed)} | ({reason: len(failed)} if reason else {})
    assert summary["quality"]["outcomes"] == outcomes
    lines = (place / "out" / "rationales_train.jsonl").read_text().splitlines()
    assert len(lines) == 24 - len(failed)
    received = server.received
    run("MAX_ROWS=24", "RETRIES=3")
    assert server.received == received


def test_a_wrong_model_ends_it_and_says_which_there_are(run, server, place):
    code, _, stderr = run("TEACHER_MODEL=teecher")
    assert code == 4
    assert "error: " in stderr
    assert re.search(r"has no model 'teecher'; did you mean 'teacher'\?.*TEACHER_MODEL", stderr)
    assert "200 examples are left" in stderr
    assert logged(place / "out") == []
    assert run()[0] == 0


def test_a_key_that_expires_ends_it_with_all_answers_saved(run, server, place, monkeypatch):
    expired = teacher_server.Fault(401, {"message": f"Expired key {KEY}", "code": "expired"})
    server.faults = lambda asked: expired if len(server.answered) >= 60 else None
    code, _, stderr = run()
    assert code == 4
    assert "rejects the key" in stderr
    assert "'OPENAI_API_KEY'" in stderr
    saved = len(logged(place / "out"))
    assert saved == len(server.answered) >= 60
    assert len((place / "out" / "rationales_train.jsonl").read_text().splitlines()) == saved
    server.faults = lambda asked: None
    code, stdout, _ = run()
    assert code == 0
    # Nothing is owed for what was refused.
    assert "in flight when" not in stdout
    assert "lost in flight" not in stdout
    assert max(server.answered_by_key.values()) == 1
    assert len(server.answered) == 200


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"TEACHER_KEY={KEY}", "TEACHER_KEY is not the name of an environment variable"),
        ("TEACHER_URL=http://me:secret@x/v1", "TEACHER_URL holds a user, a password"),
        ("EXTRACT_DIR=gs://bucket/x", "expected a folder on a disk"),
        ("EXTRACT_DIR=''", "EXTRACT_DIR is empty"),
        ("SWEEP_DIR='x'", "SWEEP_DIR: a setting of a sweep"),
        ("TEACHER_MODLE=1", "Did you mean TEACHER_MODEL?"),
    ],
)
def test_wrong_settings_are_named_and_credentials_not_repeated(run, override, message):
    code, _, _ = run(override)
    assert message in code
    assert KEY not in code
    assert "secret" not in code


def test_a_folder_of_another_teacher_is_refused(run, server, place):
    run("MAX_ROWS=5")
    server.models = ("teacher", "other")
    code, _, _ = run("MAX_ROWS=10", "TEACHER_MODEL=other", "TEMPERATURE=0.5")
    assert re.search(
        r"out holds an extraction with TEACHER_MODEL='teacher' \(now 'other'\), "
        r"TEMPERATURE=0\.0 \(now 0\.5\)\. Repeat the settings in its config\.gin",
        code,
    )
    assert server.received == 5
    # Pace, budget and address may change.
    assert run("MAX_ROWS=10", "CONCURRENCY=2", "TIMEOUT=9.0", "MAX_COST=None")[0] == 4
    assert server.received == 10


def test_prompts_that_are_too_long_are_refused_before_anything_is_sent(run, server):
    server.model_fields = {"max_model_len": 900}
    server.tokenizes = True
    code, _, _ = run()
    assert re.search(
        r"prompt of [\d,]+ tokens .* exceed the context of teacher, 900 tokens \(.*\), by \d+", code
    )
    assert server.received == 0


def test_an_endpoint_that_fails_before_anything_is_asked_is_no_wrong_input(
    run, server, monkeypatch
):
    def fails(text):
        raise EndpointError("http://x does not count tokens any more")

    server.model_fields = {"max_model_len": 900}
    monkeypatch.setattr(clients, "token_counter", lambda extract: fails)
    assert run() == (4, "", "error: http://x does not count tokens any more\n")
    assert server.received == 0


def test_offline_batches_go_the_same_way(run, server, place):
    batch = ("CLIENT=batch", "BATCH_POLL=0.05")
    server.batch_looks = 3
    code, stdout, _ = run(*batch, "MAX_ROWS=30")
    assert code == 4
    assert len(server.batches) == 1
    assert len(logged(place / "out")) == len(server.answered) == 30
    # An expired batch has answered every second row; the others are asked again at the next start.
    server.batch_ends = "expired"
    run(*batch, "MAX_ROWS=50")
    assert sum("error" in row for row in logged(place / "out")) == 10
    server.batch_ends = "completed"
    code, stdout, _ = run(*batch)
    assert code == 0
    assert "10 requests failed for now: they are sent again" in stdout
    assert len(server.answered) == 200
    assert len(store.latest(store.read_responses(place / "out", "train"))) == 200
    assert run()[0] == 0
    assert len(server.answered) == 200


def test_a_data_set_of_ones_own_without_labels_becomes_training_data(run, server, place):
    server.answer = lambda asked: (
        "I doubt it." if "7" in asked.last else "It is even. So the answer is yes."
    )
    rows = [{"number": f"is {number} even ?"} for number in range(1, 61)]
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exemplars = [
        {"number": "is 100 even ?", "label": "yes", "rationale": "It ends in a zero."},
        {"number": "is 101 even ?", "label": "no", "rationale": "It ends in a one."},
    ]
    (place / "prompt.json").write_text(json.dumps({"exemplars": exemplars}))
    own = (
        f"DATA_DIR={place}",
        "TEST_FILE=''",
        "INPUT_TEMPLATE={number}",
        "LABEL_COLUMN=''",
        "RATIONALE_COLUMN=''",
        "LABEL_SET=('yes', 'no')",
    )
    teacher = (
        f"EXTRACT_DIR={place / 'out'}",
        f"TEACHER_URL={server.url}",
        "TEACHER_MODEL=teacher",
        f"PROMPT_FILE={place / 'prompt.json'}",
    )
    with flagsaver.flagsaver():
        code = extract.main(Arguments(("extract/own_jsonl.gin",), (*own, *teacher), ()))
    assert code == 0
    found = json.loads((place / "out" / "summary.json").read_text())["units"]["train"]
    assert found["answered"] == found["rows"] == server.received == 54
    assert found["quality"]["accuracy"] is None
    student = load.parse(
        ["own_jsonl.gin"],
        [
            *own,
            "LABELS=teacher",
            f"RATIONALES=file:{place / 'out' / 'rationales_{split}.jsonl'}",
        ],
    )
    pairs, report = join.load_pairs(student.data, "train")
    without = sum("7" in asked.last for asked in server.answered)
    assert 0 < without == report.dropped["no teacher label: no output"]
    assert {(pair.label, pair.rationale) for pair in pairs} == {("yes", "It is even.")}


def test_inputs_of_no_split_become_added_training_data(run, server, place):
    lines = [{"id": str(i), "input": f"clover {i} goes into a pot . what ?"} for i in range(5)]
    (place / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, stdout, _ = run("EXTRACT_SPLITS=()", f"EXTRACT_INPUTS=file:{place / 'more.jsonl'}")
    assert code == 0
    assert "5 examples of demo (inputs)" in stdout
    assert len(logged(place / "out", "inputs")) == 5
    augment = f"AUGMENT=file:{place / 'out' / 'rationales_inputs.jsonl'}"
    student = load.parse(["demo.gin"], [augment, "FRACTION=1.0"])
    pairs, _ = join.load_pairs(student.data, "train")
    added = [pair for pair in pairs if pair.id.startswith("added-")]
    assert [pair.input for pair in added] == [line["input"] for line in lines]
    assert all(pair.rationale == "Most of them like it best." for pair in added)
