import dataclasses

import pytest

from launch import report
from launch.flags import Arguments
from stepdistill_jax import records
from stepdistill_jax.eval.results import RESULTS_FILE, VALIDATION, Result
from stepdistill_jax.spec import InputError


def write_run(folder):
    result = Result(
        "demo", "standard", "gold", "none", 1.0, 0, "demo", 10, "test", 100, 0.5, 0.05, VALIDATION
    )
    records.write_jsonl(folder / RESULTS_FILE, [dataclasses.asdict(result)])


def test_writes_a_report_and_says_where(tmp_path, capsys):
    write_run(tmp_path / "sweep/a")
    (tmp_path / "sweep/b").mkdir()
    (tmp_path / "sweep/b/config.gin").write_text("")
    out = tmp_path / "report"
    report.main(Arguments(positional=(str(tmp_path / "sweep"),)), str(out))
    printed = capsys.readouterr().out
    assert "3 files from 1 runs" in printed
    assert "1 runs are in no table: b" in printed
    assert f"open {out / 'index.html'}" in printed
    assert {p.name for p in out.iterdir()} == {"index.html", "report.md", "results.csv"}


@pytest.mark.parametrize(
    ("arguments", "out", "message"),
    [
        (Arguments(), "out", r"no runs are named: python -m launch.report MODEL_DIRS"),
        (Arguments(gin_files=("demo.gin",)), "out", r"demo.gin: a report reads results alone"),
        (Arguments(positional=("a",)), "", r"--out is empty"),
    ],
)
def test_says_what_is_wrong_with_the_command(arguments, out, message):
    with pytest.raises(InputError, match=message):
        report.main(arguments, out)
