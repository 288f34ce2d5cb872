import pytest

from stepdistill_jax.eval import follow
from stepdistill_jax.eval.follow import steps_to_score
from stepdistill_jax.run.eval_config import EvalConfig
from stepdistill_jax.spec import FINISHED_FILE, NON_FINITE_FILE, InputError


@pytest.fixture
def run(monkeypatch):
    """What lies in a run's checkpoint folder: steps, and the best of them."""
    state = {"steps": [], "best": None}
    monkeypatch.setattr(follow, "available_steps", lambda folder: list(state["steps"]))
    monkeypatch.setattr(follow, "best_step", lambda folder: state["best"])
    return state


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("latest", [(30, "none")]),
        ("best", [(20, "validation")]),
        ("all", [(10, "none"), (20, "none"), (30, "none")]),
        (10, [(10, "none")]),
    ],
)
def test_steps_by_name(tmp_path, run, name, expected):
    run.update(steps=[10, 20, 30], best=20)
    assert list(steps_to_score(tmp_path, EvalConfig(step=name))) == expected


@pytest.mark.parametrize("name", ["best", 15, "all"])
def test_no_such_step(tmp_path, run, name):
    run.update(steps=[] if name == "all" else [10, 20])
    with pytest.raises(InputError, match=f"no checkpoint for EVAL_STEP={name!r}, there are steps"):
        list(steps_to_score(tmp_path, EvalConfig(step=name)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all", [10, 20, 30, 40]),
        ("latest", [10, 30, 40]),
        ("best", [30]),
        (30, [30]),
    ],
)
def test_watching_goes_on_to_the_end_of_training(tmp_path, run, name, expected):
    looks = iter(
        [
            {"steps": [10], "best": 10},
            {"steps": [10, 20, 30], "best": 20},
            # The last checkpoint and the word that all is done come between two looks.
            {"steps": [10, 20, 30, 40], "best": 30},
        ]
    )
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        run.update(next(looks))
        if len(slept) == 3:
            (tmp_path / FINISHED_FILE).write_text("{}")

    config = EvalConfig(step=name, watch=True, watch_period=2.5)
    assert [step for step, _ in steps_to_score(tmp_path, config, sleep)] == expected
    assert slept == [2.5] * 3


def test_watching_ends_where_training_stopped_on_a_loss_that_is_not_finite(tmp_path, run):
    run.update(steps=[10])

    def sleep(seconds):
        (tmp_path / NON_FINITE_FILE).touch()

    assert list(steps_to_score(tmp_path, EvalConfig(step="all", watch=True), sleep)) == [
        (10, "none")
    ]
