import shutil

import pytest
from made_runs import make_result, write_run

from stepdistill_jax import records
from stepdistill_jax.report.runs import read_runs
from stepdistill_jax.spec import InputError


def test_finds_runs_at_any_depth_and_once(tmp_path):
    write_run(tmp_path / "sweep/a", 0.5)
    write_run(tmp_path / "sweep/deep/b", 0.5, seed=1)
    (tmp_path / "sweep/started").mkdir()
    (tmp_path / "sweep/started/config.gin").write_text("")
    found = read_runs([tmp_path / "sweep", tmp_path / "sweep/a"])
    assert found.names == ["a", "deep/b"]
    assert found.empty == ("started",)
    assert len(found.lines) == 2


def test_names_do_not_depend_on_where_the_sweep_lies(tmp_path):
    write_run(tmp_path / "here/a", 0.5)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert read_runs([tmp_path / "here"]).names == read_runs([tmp_path / "there"]).names == ["a"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    write_run(tmp_path / "x/a", 0.5)
    write_run(tmp_path / "y/a", 0.5, seed=1)
    names = read_runs([tmp_path / "x", tmp_path / "y"]).names
    assert names == ["x/a", "y/a"]
    write_run(tmp_path / "deep/x/a", 0.5)
    names = read_runs([tmp_path / "x", tmp_path / "deep/x/a"]).names
    assert names == ["deep/x/a", f"{tmp_path.name}/x/a"]


def test_refuses_what_holds_no_run(tmp_path):
    with pytest.raises(InputError, match=r"nothing: no such folder"):
        read_runs([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no run in it or below"):
        read_runs([tmp_path / "empty"])
    (tmp_path / "empty/config.gin").write_text("")
    with pytest.raises(InputError, match=r"no results: 1 runs have started"):
        read_runs([tmp_path / "empty"])


def test_names_the_run_of_a_damaged_line(tmp_path):
    write_run(tmp_path / "a", 0.5)
    path = tmp_path / "a/results.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r"/a: results.jsonl:1: not a JSON object"):
        read_runs([tmp_path])
    records.write_jsonl(path, [{**vars(make_result()), "accuracy": 51.5}])
    with pytest.raises(InputError, match=r"a/results.jsonl:1: accuracy: got 51.5, expected"):
        read_runs([tmp_path])
