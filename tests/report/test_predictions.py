import numpy as np
import pytest
from etils import epath
from made_runs import write_run

from stepdistill_jax.data.sources import Options, demo
from stepdistill_jax.report.predictions import NO_PREDICTIONS, Predictions
from stepdistill_jax.report.runs import read_runs
from stepdistill_jax.report.trivial_baseline import trivial_baseline
from stepdistill_jax.spec import InputError


def test_trivial_baseline_is_the_most_frequent_label():
    found = trivial_baseline(["a b", "b c", "c d", "d a"], ["x", "x", "x", "y"])
    assert found.accuracy == 0.75
    assert found.rule == "always 'x'"


def test_trivial_baseline_knows_a_word_that_gives_a_label_away():
    # iron -> black (3 of 3), else red (3 of 5).
    inputs = ["iron pot"] * 3 + ["glass pot", "wooden pot", "glass pot", "stone pot", "glass pot"]
    targets = ["black"] * 3 + ["red"] * 3 + ["blue"] * 2
    found = trivial_baseline(inputs, targets)
    assert found.accuracy == 6 / 8
    assert found.rule == "'black' if the input has 'iron', else 'red'"


@pytest.mark.parametrize("seed", [0, 11])
def test_no_trivial_baseline_solves_the_demo(seed):
    rows = demo.load(epath.Path("unused"), "test", Options(seed=seed))
    found = trivial_baseline([row.input for row in rows], [row.label for row in rows])
    assert 1 / 3 < found.accuracy < 0.4


def test_trivial_baseline_of_listed_choices_is_the_most_frequent_position():
    text = "what flies?\nAnswer Choices:\n(a) {}\n(b) {}\n(c) {}"
    inputs = [text.format(*"pqr"), text.format(*"stu"), text.format(*"vwx")]
    found = trivial_baseline(inputs, ["q", "t", "x"])
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.rule == "always choice (b)"


def test_reads_what_a_run_said_and_tells_worlds_apart(tmp_path):
    write_run(tmp_path / "a", 0.6, seed=1)
    write_run(tmp_path / "b", 0.7, seed=2)
    write_run(tmp_path / "c", 0.7, seed=2, data_seed=5, dataset="demo")
    read = Predictions()
    a, b, c = (read.of(line) for line in read_runs([tmp_path]).lines)
    assert a.correct.mean() == 0.6
    np.testing.assert_array_equal(a.examples, b.examples)
    # The same ids, other rows.
    assert not set(c.examples) & set(a.examples)


def test_says_what_is_missing_or_does_not_add_up(tmp_path):
    write_run(tmp_path / "none", 0.6, predictions=False)
    write_run(tmp_path / "other", 0.6)
    path = tmp_path / "other/eval/test/100/predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:100]))
    none, other = read_runs([tmp_path]).lines
    read = Predictions()
    assert read.of(none) == NO_PREDICTIONS
    assert read.trivial_baseline(none) is None
    assert "of 100, the result 0.6000 of 200" in read.of(other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x"', r"run/eval/test/100: predictions.jsonl:1: not a JSON object"),
        ('{"id": "x", "input": "y"}', r"predictions.jsonl:1: no target, correct\. Delete"),
    ],
)
def test_damaged_predictions_are_named(tmp_path, line, message):
    write_run(tmp_path / "run", 0.6)
    (tmp_path / "run/eval/test/100/predictions.jsonl").write_text(line + "\n")
    (found,) = read_runs([tmp_path]).lines
    with pytest.raises(InputError, match=message):
        Predictions().of(found)
