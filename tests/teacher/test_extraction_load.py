"""What an extraction file says, and which program's file is whose."""

import pytest

from stepdistill_jax.run import load as run_load
from stepdistill_jax.spec import InputError
from stepdistill_jax.sweep import matrix
from stepdistill_jax.teacher import load


def test_shipped_extraction_files_name_run_files_of_their_own_name():
    folder = run_load.gin_folder() / "extract"
    names = sorted(path.name for path in folder.glob("*.gin"))
    assert names == [
        *("anli.gin", "cqa.gin", "demo.gin", "esnli.gin", "own_jsonl.gin", "svamp.gin"),
    ]
    for name in names:
        extraction = load.parse([f"extract/{name}"], ["TEACHER_MODEL='m'"])
        assert extraction.run == run_load.parse([name])


def test_a_dump_reads_back_as_the_same_extraction(tmp_path):
    first = load.parse(
        ["extract/svamp.gin"],
        ["TEACHER_MODEL='m'", "PRICE_INPUT=0.15", "EXTRACT_SPLITS=('train','test')"],
    )
    (tmp_path / "config.gin").write_text(load.dump(first))
    assert load.parse([tmp_path / "config.gin"]) == first
    moved = load.read(tmp_path)
    assert moved.extract.extract_dir == str(tmp_path)
    assert load.difference(first, moved) == {}


def test_every_field_is_set_by_a_documented_macro():
    assert {*load.FIXED_MACROS} <= {*load.macros(), *run_load.macros()}
    assert not {*load.macros()} & {*run_load.macros()}
    for name, macro in load.macros().items():
        assert name.lower() == macro.field
        assert macro.doc.endswith(".")


def test_training_says_which_program_an_extraction_file_is_for():
    with pytest.raises(InputError, match=r"cqa\.gin:\d+: EXTRACT_DIR: .*python -m launch\.extract"):
        run_load.parse(["extract/cqa.gin"])
    with pytest.raises(InputError, match=r"^--gin\.TEACHER_MODEL: a setting of an extraction\."):
        run_load.parse(["demo.gin"], ["TEACHER_MODEL='m'"])


def test_help_lists_what_an_extraction_sets():
    text = load.help_text()
    for name in load.macros():
        assert f"--gin.{name}=" in text
    assert "extract/cqa.gin" in text


def test_a_sweep_says_which_program_an_extraction_file_is_for():
    with pytest.raises(InputError, match=r"cqa\.gin:\d+: EXTRACT_DIR: .*python -m launch\.extract"):
        matrix.read(["extract/cqa.gin"])
    with pytest.raises(InputError, match=r"demo\.gin:\d+: SWEEP_DIR: .*python -m launch\.sweep"):
        load.parse(["sweeps/demo.gin"])


def test_a_file_may_include_one_of_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = (run_load.gin_folder() / "extract" / "demo.gin").read_text()
    (tmp_path / "demo.gin").write_text(shipped + "TRAIN_STEPS = 70\nTEACHER_MODEL = 'm'\n")
    found = load.parse(["demo.gin"])
    assert (found.run.data.dataset, found.run.train_steps) == ("demo", 70)
    # A run file beside it is nearer than the shipped one.
    (tmp_path / "cqa.gin").write_text("DATASET = 'svamp'\n")
    (tmp_path / "teacher.gin").write_text('include "cqa.gin"\nEXTRACT_DIR = "x"\n')
    found = load.parse(["teacher.gin"], ["TEACHER_MODEL='m'"])
    assert found.run.data.dataset == "svamp"


def test_wrong_values_are_named_with_their_place(tmp_path):
    (tmp_path / "a.gin").write_text('include "extract/demo.gin"\nTEMPERATURE = -1\n')
    with pytest.raises(InputError, match=r"a\.gin:2: TEMPERATURE: got -1\.0, expected at least 0"):
        load.parse([tmp_path / "a.gin"], ["TEACHER_MODEL='m'"])
    with pytest.raises(InputError, match="EXTRACT_INPUTS: got 'svamp', expected"):
        load.parse(["extract/demo.gin"], ["TEACHER_MODEL='m'", "EXTRACT_INPUTS=svamp"])
