"""What a run says and refuses before its first step."""

import json

import pytest

from stepdistill_jax.checkpoint import manager
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.run import load
from stepdistill_jax.run.folder import claim
from stepdistill_jax.spec import InputError
from stepdistill_jax.train import build
from stepdistill_jax.train.build import make_parts, make_trainer
from stepdistill_jax.train.clock import Clock


def run(folder, *overrides):
    return load.parse(["demo.gin"], [f"MODEL_DIR={str(folder)!r}", *overrides])


def test_a_run_says_what_it_starts_from_and_that_it_compiles(caches, tmp_path, capsys):
    folder = tmp_path / "run"
    made = run(folder, f"CACHE_DIR={str(caches)!r}", "FRACTION=0.05")
    mesh = make_mesh(made.mesh)
    evaluator = Evaluator(made, mesh)
    text = claim(made)

    def said(saved):
        with manager.manager(made.model_dir, keep=1) as checkpoints:
            trainer, state, _ = make_trainer(
                made, mesh, make_parts(made, mesh), evaluator, checkpoints, text, Clock()
            )
            trainer._save(state, saved, [], None)
            manager.wait(checkpoints)
            trainer.log.close()
        return capsys.readouterr().out.splitlines()

    first, again = said(3), said(4)
    assert "; from random parameters" in first[-2]
    assert first[-1].startswith("compiling the train step")
    assert "; continued from step 3" in again[-2]


def test_a_run_says_which_checkpoint_it_starts_from(tmp_path):
    made = run(tmp_path, "INITIAL_CHECKPOINT=runs/old")
    assert build._origin(made, None) == "from the parameters of runs/old"


def test_a_finished_run_cannot_be_lengthened_and_says_how_to_go_on_from_it(tmp_path):
    claim(run(tmp_path, "TRAIN_STEPS=200"))
    (tmp_path / "checkpoints" / "200").mkdir(parents=True)
    (tmp_path / "checkpoints" / "200" / "_CHECKPOINT_METADATA").write_text("{}")
    longer = run(tmp_path, "TRAIN_STEPS=300")
    with pytest.raises(InputError, match=r"TRAIN_STEPS=200 \(now 300\)\. .* to continue it\.$"):
        claim(longer)
    (tmp_path / "finished.json").write_text(json.dumps({"step": 200}))
    with pytest.raises(
        InputError,
        match=rf"with INITIAL_CHECKPOINT='{tmp_path}' to start .* cannot be lengthened\.$",
    ):
        claim(longer)


def test_bad_training_rows_are_refused_before_other_splits_are_read(tmp_path):
    for split in ("train", "validation"):
        rows = [{"q": f"{split} {i}", "a": "no", "why": "so"} for i in range(9)]
        if split == "train":
            rows[-1] = {"q": "train 9"}
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
    settings = [
        *(f"TRAIN_FILE='{tmp_path}/train.jsonl'", f"VALIDATION_FILE='{tmp_path}/validation.jsonl'"),
        *("TEST_FILE=''", "INPUT_TEMPLATE='{q}'", "LABEL_COLUMN=a", "RATIONALE_COLUMN=why"),
        *("LABEL_SET=()", "VOCABULARY=bytes", "INITIAL_CHECKPOINT=None", "WARMUP_STEPS=0"),
        *("EVAL_SPLITS=('validation',)", f"CACHE_DIR='{tmp_path}/cache'", "TRAIN_STEPS=2"),
        f"MODEL_DIR='{tmp_path}/run'",
    ]
    made = load.parse(["own_jsonl.gin", "models/tiny.gin"], settings)
    with pytest.raises(InputError, match=r"train\.jsonl:9: no column 'a', got 'q'"):
        build.train(made, Clock())
    assert not list((tmp_path / "cache").rglob("*validation*"))
    # Nor was a checkpoint folder opened.
    assert not (tmp_path / "run" / "checkpoints").exists()
