import dataclasses

import pytest

from launch import eval as eval_binary
from launch.flags import Arguments
from stepdistill_jax.run import load
from stepdistill_jax.spec import InputError


@pytest.fixture
def trained(tmp_path):
    """The folder of a run of demo.gin, as far as its configuration goes."""
    folder = tmp_path / "run"
    folder.mkdir()
    run = load.parse(["demo.gin"], [f"MODEL_DIR='{folder}'", "SEED=3"])
    (folder / "config.gin").write_text(load.dump(run))
    return str(folder)


def test_the_weights_that_a_run_was_trained_from_may_be_gone(store, tmp_path):
    settings = [f"MODEL_DIR='{tmp_path}'", "INITIAL_CHECKPOINT='gs://gone/x'"]
    (tmp_path / "config.gin").write_text(load.dump(load.parse(["demo.gin"], settings)))
    (run,) = eval_binary.runs(Arguments(positional=(str(tmp_path),)))
    assert run.initial_checkpoint == "gs://gone/x"


def test_folders_bring_their_own_configuration(trained):
    (run,) = eval_binary.runs(
        Arguments(positional=(trained,), overrides=("EVAL_MODE=choices", "EVAL_STEP=all"))
    )
    assert (run.model_dir, run.seed) == (trained, 3)
    assert (run.eval.mode, run.eval.step) == ("choices", "all")


def test_a_gin_file_may_say_how_to_score(trained):
    overrides = (f"MODEL_DIR='{trained}'", "SEED=3", "MAX_DECODE_LENGTH=9", "MESH_FSDP=1")
    (run,) = eval_binary.runs(Arguments(("demo.gin",), overrides))
    assert run == dataclasses.replace(
        load.read(trained),
        eval=dataclasses.replace(run.eval, max_decode_length=9),
        mesh=dataclasses.replace(run.mesh, fsdp=1),
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(("ALPHA=0.1",), r"holds another run: ALPHA 0\.5, now 0\.1"), (("SEED=4",), "SEED 3, now 4")],
)
def test_another_run_is_not_scored_under_this_ones_name(trained, overrides, message):
    with pytest.raises(InputError, match=message):
        eval_binary.runs(Arguments(positional=(trained,), overrides=overrides))


def test_what_to_score_is_named_once(trained):
    with pytest.raises(InputError, match=r"both --gin_file=demo\.gin and folders"):
        eval_binary.runs(Arguments(("demo.gin",), positional=(trained,)))
    with pytest.raises(InputError, match="nothing to score"):
        eval_binary.runs(Arguments())
