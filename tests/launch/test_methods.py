"""The demo's splits as each method's run opens them, and the evaluator that goes with it."""

import numpy as np
import pytest

from stepdistill_jax.data.packing import row_shape
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.eval.runner import Evaluator, Prediction
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.run import load
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.spec import EOS_ID, InputError

VOCABULARY = load_vocabulary("demo")


def run(caches, method, *overrides):
    files = ["demo.gin", f"methods/{method}.gin"]
    return load.parse(files, [f"CACHE_DIR={str(caches)!r}", "FRACTION=0.05", *overrides])


@pytest.mark.parametrize(
    ("method", "inputs", "targets"),
    [
        # Prefix 1, question 13, rationale 17, marker 3, label 1, and EOS after each part.
        ("standard", 15, {"label": 2}),
        ("step_by_step", 15, {"label": 2, "rationale": 18}),
        ("single_task", 15, {"label": 22}),
        ("rationale_as_input", 33, {"label": 2}),
        ("pinto", 33, {"label": 2, "counterfactual": 2}),
    ],
)
def test_rows_of_the_demo_are_as_long_as_the_method_needs(caches, method, inputs, targets):
    made = run(caches, method)
    shape = row_shape(open_split(made, "train").lengths, made.pipeline, made.streams)
    assert (shape.inputs, shape.targets) == (inputs, targets)


@pytest.mark.parametrize("labels", ["gold", "teacher"])
def test_a_single_task_student_may_write_what_its_targets_hold(caches, labels):
    made = run(caches, "single_task", f"LABELS={labels}")
    evaluator = Evaluator(made, make_mesh(made.mesh))
    view = open_split(made, "test")
    longest = int(np.max(view.lengths["label_targets"]))
    assert evaluator._length(view) == 28 >= longest == 22
    row = view.example(0)
    prediction = evaluator._read(0, row["label_targets"])
    assert prediction.output == f"{row['rationale']} so it is {row['gold']}"
    assert (prediction.text, prediction.parsed, prediction.ended) == (row["gold"], True, True)


def test_a_reader_is_scored_with_the_teachers_rationale(caches):
    view = open_split(run(caches, "pinto"), "test")
    row = view.example(3)
    assert row["read"] == f"{row['input']}</s>{row['rationale']}"
    text = f"predict: {row['read']}"
    assert row["label_inputs"].tolist() == [*VOCABULARY.encode(text), EOS_ID]


def test_a_readers_predictions_are_about_the_same_inputs_as_all_others(caches):
    lines = []
    for method in ("pinto", "standard"):
        made = run(caches, method)
        evaluator = Evaluator(made, make_mesh(made.mesh))
        row = open_split(made, "test").example(3)
        lines.append(evaluator._line(row, Prediction(3, "red", True, 2)))
    reader, other = lines
    assert reader.pop("read").startswith(f"{other['input']}</s>")
    assert reader == other


def test_a_marker_that_the_demo_cannot_write_stops_the_run(caches):
    made = run(caches, "single_task", "ANSWER_MARKER=therefore")
    with pytest.raises(InputError, match=r"ANSWER_MARKER='therefore': .* VOCABULARY"):
        Evaluator(made, make_mesh(made.mesh))
