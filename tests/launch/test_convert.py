"""``launch.convert`` on a run whose parameters are random and whose folder is a run's own."""

import contextlib
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import process_group
import pytest
from absl import flags
from absl.testing import flagsaver
from random_params import random_params

from launch import convert as binary
from launch.flags import Arguments
from stepdistill_jax import records
from stepdistill_jax.checkpoint import initial, manager, names, restore
from stepdistill_jax.checkpoint.restore import sharded_params
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.eval.runner import run_facts
from stepdistill_jax.export.checkpoints import listing, open_checkpoint
from stepdistill_jax.export.conversion import convert
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.run import load
from stepdistill_jax.run.results import Result, append_result
from stepdistill_jax.spec import EOS_ID, PAD_ID, InputError

ROOT = pathlib.Path(__file__).parents[2]
INPUTS = (
    "what do Anna , Bob , Carol , David and Emily drink ?",
    "so most like tea .",
    "what do Harry , Ian , Julia , Keith and Linda drink ?",
)
BEST, LATEST = 10, 20


def params_of(run, step):
    fresh = jax.device_get(random_params(run.model, step))
    # Larger than at the start of training, so that no two tokens tie.
    return jax.tree.map(lambda x: 3 * x, fresh)


def predict(run, params, text):
    vocabulary = load_vocabulary("demo")
    ids = [*vocabulary.encode(f"predict: {text}"), EOS_ID]
    inputs = np.asarray([ids + [PAD_ID] * (run.tokens.max_input_length - len(ids))], np.int32)
    segments = (inputs != PAD_ID).astype(np.int32)
    tokens = greedy(run.model, params, inputs, segments, run.eval.max_decode_length)
    return vocabulary.decode(np.asarray(tokens)[0])


def make_run(folder, *overrides):
    """A run of two steps, the first the better one."""
    run = load.parse(["demo.gin"], [f"MODEL_DIR='{folder}'", "MAX_DECODE_LENGTH=4", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(load.dump(run))
    with manager.manager(run.model_dir) as checkpoints:
        for step, accuracy in ((BEST, 0.75), (LATEST, 0.5)):
            state = {"params": params_of(run, step), "opt_state": {"count": np.zeros(())}}
            manager.save(checkpoints, step, state, {"evals": []}, {"config": ""}, accuracy)
        manager.wait(checkpoints)
    return run


def score(run):
    """Adds a result and predictions of the better step."""
    facts = vars(run_facts(run))
    scores = {"accuracy": 0.75, "stderr": 0.0217, "selected_on": "validation"}
    append_result(run.model_dir, Result(**facts, **scores, step=BEST, split="test", n=400))
    rows = [
        {"id": str(i), "input": text, "prediction": predict(run, params_of(run, BEST), text)}
        for i, text in enumerate(INPUTS)
    ]
    # transformers leaves unknown tokens out where we write ⁇.
    rows.sort(key=lambda row: "⁇" in row["prediction"])
    path = pathlib.Path(run.model_dir) / "eval" / "test" / str(BEST) / "predictions.jsonl"
    records.write_jsonl(path, rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = make_run(tmp_path_factory.mktemp("convert") / "run")
    score(made)
    return made


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "hf"
    convert(open_checkpoint(run.model_dir), "hf", str(out))
    return out


def assert_same(actual, expected):
    actual, expected = names.flat(actual), names.flat(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def sharded(run):
    return sharded_params(run.model, make_mesh(MeshConfig()))


@pytest.mark.parametrize("form", ["hf", "t5x", "t5x_scanned"])
def test_there_and_back_a_run_starts_from_the_same_parameters(run, exported, tmp_path, form):
    there = exported
    if form != "hf":
        there = tmp_path / "there"
        convert(open_checkpoint(run.model_dir), form, str(there))
    initial.check(str(there), run.model, "demo")
    assert_same(initial.initial_params(str(there), sharded(run)), params_of(run, BEST))
    back = tmp_path / "back"
    source = open_checkpoint(str(there), scan_layers=run.model.scan_layers)
    convert(source, "orbax", str(back))
    assert restore.available_steps(back) == [0 if form == "hf" else BEST]
    assert_same(initial.initial_params(str(back), sharded(run)), params_of(run, BEST))


def test_a_stacked_run_goes_out_layer_by_layer(tmp_path):
    stacked = make_run(tmp_path / "run", "SCAN_LAYERS=True")
    out = tmp_path / "t5x"
    convert(open_checkpoint(stacked.model_dir), "t5x", str(out))
    assert_same(initial.initial_params(str(out), sharded(stacked)), params_of(stacked, BEST))


@pytest.mark.parametrize(
    ("name", "overrides", "step"),
    [("", (), BEST), ("", ("EVAL_STEP=latest",), LATEST), (f"checkpoints/{LATEST}", (), LATEST)],
)
def test_the_step_is_chosen_as_in_eval(run, tmp_path, name, overrides, step):
    source = open_checkpoint(f"{run.model_dir}/{name}".rstrip("/"), overrides)
    assert source.step == step
    convert(source, "orbax", str(tmp_path / "out"))
    actual = restore.restore_params(tmp_path / "out", step, sharded(run))
    assert_same(actual, params_of(run, step))


def test_the_exported_folder_says_what_transformers_needs(exported, run):
    files = {path.name for path in exported.iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == run.eval.max_decode_length == 4
    saved = json.loads((exported / "config.json").read_text())
    assert (saved["tie_word_embeddings"], saved["feed_forward_proj"]) == (False, "gated-gelu")


def test_the_card_says_method_data_scores_and_prompt(exported):
    card = (exported / "README.md").read_text()
    for line in (
        "| data | demo, 0.5 of its training examples |",
        "| rationales trained on | teacher |",
        "| test | 75.00% | 2.17% | 400 | the step was chosen on validation |",
        "Put `predict: ` (with the space) before the input",
        "With the prefix `explain: ` the student writes a rationale",
    ):
        assert line in card


def test_the_cards_code_prints_what_our_evaluation_predicted(exported, run, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed (extra 'test')")
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(exported)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})  # noqa: S102 - what a reader of the card does
    rows = (pathlib.Path(run.model_dir) / f"eval/test/{BEST}/predictions.jsonl").read_text()
    answer = json.loads(rows.splitlines()[0])["prediction"]
    assert len(answer.split()) > 1
    assert printed.getvalue() == f"{answer}\n"


@pytest.mark.parametrize("form", ["run", "hf", "t5x_scanned"])
def test_a_listing_names_every_array(run, exported, tmp_path, form):
    place = {"run": run.model_dir, "hf": str(exported)}.get(form)
    if place is None:
        place = str(tmp_path / "out")
        convert(open_checkpoint(run.model_dir), form, place)
    text = listing(open_checkpoint(place, listing=True))
    expected = {
        "run": ["(Orbax), step 10 of [10, 20]", "decoder/layers_0/mlp/wi_0/kernel  ", " 64x128 "],
        "hf": ["Hugging Face", "decoder.block.0.layer.2.DenseReluDense.wi_0.weight  ", " 128x64 "],
        "t5x_scanned": ["T5X, scanned", "encoder/encoder/mlp/wi_0/kernel  ", " 64x3x128 "],
    }
    for part in [*expected[form], "model: demo", "float32", "the model has 263,104 parameters"]:
        assert part in text, text


def parsed(*arguments, **values):
    """`binary.main` on flags that are set to `values`."""
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**values):
        binary.main(Arguments(positional=arguments))


def test_what_to_do_must_be_said_in_full(run):
    with pytest.raises(InputError, match="wrong number of checkpoints: got 0, expected 1"):
        parsed()
    with pytest.raises(InputError, match="--to needs --out too"):
        parsed(run.model_dir, to="hf")
    with pytest.raises(InputError, match="--to=zip: expected one of orbax, hf, t5x, t5x_scanned"):
        parsed(run.model_dir, to="zip", out="x")
    with pytest.raises(InputError, match=r"--gin_file=demo\.gin"):
        binary.main(Arguments(("demo.gin",), positional=(run.model_dir,)))
    with pytest.raises(InputError, match="EVAL_STEP='all': a conversion takes one step"):
        open_checkpoint(run.model_dir, ("EVAL_STEP=all",))


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty\. Name a new folder"):
        parsed(run.model_dir, to="t5x", out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in this folder: expected checkpoints/STEP"):
        open_checkpoint(str(tmp_path))


def test_only_a_run_knows_its_vocabulary(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.model_dir, folder)
    (folder / "config.gin").unlink()
    source = open_checkpoint(str(folder))
    with pytest.raises(InputError, match=r"needs the vocabulary that the run\'s config\.gin"):
        convert(source, "hf", str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_damaged_run_leaves_nothing_half_made(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.model_dir, folder)
    for part in ("d", "ocdbt.process_0/d"):
        for path in (folder / "checkpoints" / str(BEST) / "state" / part).iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"checkpoints/10: .*Copy the checkpoint again"):
        parsed(str(folder), to="t5x", out=str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_config_of_another_model_is_told(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.model_dir, folder)
    changed = load.parse([str(folder / "config.gin")], ["MLP_DIM=96"])
    (folder / "config.gin").write_text(load.dump(changed))
    with pytest.raises(InputError, match=r"the checkpoint is of another model: .*128"):
        open_checkpoint(str(folder))


def test_as_a_user_runs_it(run, tmp_path):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "launch.convert", *map(str, arguments)],
            cwd=ROOT,
            env=process_group.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    out = tmp_path / "t5x"
    done = command(run.model_dir, "--to=t5x", f"--out={out}", "--gin.EVAL_STEP=20")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert "checkpoint_20: T5X's native form" in done.stdout
    (out / "checkpoint_20" / "checkpoint").write_bytes(b"")
    done = command(out)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    assert "truncated or damaged index of a T5X checkpoint" in done.stderr


def test_every_parameter_is_counted_once(run):
    leaves = jax.tree.leaves(abstract_params(run.model))
    assert open_checkpoint(run.model_dir).parameter_count == sum(x.size for x in leaves)
