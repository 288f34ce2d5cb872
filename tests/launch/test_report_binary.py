import dataclasses
import json

import pytest

from launch import report
from launch.flags import Arguments
from stepdistill_jax import records
from stepdistill_jax.run.results import VALIDATION, Result
from stepdistill_jax.spec import RESULTS_FILE, InputError


def write_run(folder, **changes):
    result = Result(
        "demo", "standard", "gold", "none", 1.0, 0, "demo", 10, "test", 100, 0.5, 0.05, VALIDATION
    )
    result = dataclasses.replace(result, **changes)
    records.write_jsonl(folder / RESULTS_FILE, [dataclasses.asdict(result)])


def test_writes_a_report_and_says_where(tmp_path, capsys):
    write_run(tmp_path / "sweep/a")
    (tmp_path / "sweep/b").mkdir()
    (tmp_path / "sweep/b/config.gin").write_text("")
    out = tmp_path / "report"
    report.main(Arguments(positional=(str(tmp_path / "sweep"),)), str(out))
    printed = capsys.readouterr().out
    assert "3 files from 1 run\n" in printed
    assert "in no table: 1 run: b" in printed
    assert f"open {out / 'index.html'}" in printed
    assert {p.name for p in out.iterdir()} == {"index.html", "report.md", "results.csv"}


def test_an_extraction_needs_no_runs_and_prices_the_curve(tmp_path, capsys):
    unit = {"answered": 4, "requests": 4, "cost": 1.0}
    made = {"dataset": "cqa", "model": "m", "units": {"train": unit}}
    (tmp_path / "extract").mkdir()
    (tmp_path / "extract/summary.json").write_text(json.dumps(made))
    out = tmp_path / "report"
    report.main(Arguments(), str(out), [str(tmp_path / "extract")])
    assert "3 files from 0 runs" in capsys.readouterr().out
    for place, (pairs, accuracy) in enumerate({1000: 0.5, 2000: 0.6, 4000: 0.67}.items()):
        write_run(
            tmp_path / f"runs/{pairs}", dataset="cqa", method="step_by_step", rationales="teacher",
            fraction=2.0 ** (place - 2), accuracy=accuracy, train_pairs=pairs,
        )  # fmt: skip
    runs = Arguments(positional=(str(tmp_path / "runs"),))
    report.main(runs, str(out), [str(tmp_path / "extract")])
    # 1,000 times the 0.25 that a row cost.
    assert "the next 1,000 annotations for 250 bring" in capsys.readouterr().out
    report.main(runs, str(out), [str(tmp_path / "extract")], 0.02)
    assert "the next 1,000 annotations for 20.0 bring" in capsys.readouterr().out
    report.main(runs, str(out))
    assert "the next 1,000 annotations bring" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extractions", "cost", "message"),
    [
        ([""], None, r"--extraction: is empty. Name the folder"),
        (["nothing"], None, r"nothing: no summary\.json in it"),
        (["nothing"], -1.0, r"--annotation_cost: got -1\.0, expected a number"),
        (["nothing"], float("nan"), r"--annotation_cost: got nan, expected a number"),
    ],
)
def test_says_what_is_wrong_with_an_extraction(tmp_path, monkeypatch, extractions, cost, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        report.main(Arguments(), "out", extractions, cost)


@pytest.mark.parametrize(
    ("arguments", "out", "message"),
    [
        (Arguments(), "out", r"no runs: python -m launch.report MODEL_DIRS"),
        (Arguments(gin_files=("demo.gin",)), "out", r"demo.gin: a report has no settings"),
        (Arguments(positional=("a",)), "", r"--out: is empty"),
    ],
)
def test_says_what_is_wrong_with_the_command(arguments, out, message):
    with pytest.raises(InputError, match=message):
        report.main(arguments, out)
