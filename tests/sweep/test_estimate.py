import dataclasses
import functools
import types

import numpy as np
import pytest

from stepdistill_jax.data.packing import PipelineConfig
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.sweep import estimate, matrix, tables, workload
from stepdistill_jax.sweep.estimate import BY_FLOPS, BY_KIND, ROUGH, FinishedRun, estimate_time
from stepdistill_jax.sweep.run_status import RunStatus, State
from stepdistill_jax.sweep.workload import Workload
from stepdistill_jax.text import duration


@pytest.fixture
def runs(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text(
        'include "parts/sweep.gin"\nSWEEP_DIR = "x"\nSWEEP_RUN_FILES = "demo.gin"\n'
        "SWEEP_FRACTIONS = (0.5, 1.0)\nSWEEP_SEEDS = (0, 1)\n"
    )
    return {run.name: run for run in matrix.read([path]).runs}


def test_workload_is_that_of_the_batches(runs):
    config = runs["demo-step_by_step-gold-demo-f1-s0"].config
    config = dataclasses.replace(config, pipeline=PipelineConfig(batch_size=32, pack=False))
    lengths = {
        "label_inputs": np.array([10, 14]),
        "label_targets": np.array([2, 2]),
        "rationale_inputs": np.array([11, 15]),
        "rationale_targets": np.array([20, 24]),
    }

    class Pairs(types.SimpleNamespace):
        def __len__(self):
            return 2

    found = workload.train_workload(config, Pairs(lengths=lengths))
    # 800 steps of 32 pairs, of 12 + 2 + 13 + 22 tokens in the mean.
    assert (found.steps, found.pairs, found.tokens) == (800, 2, 800 * 32 * 49)
    # Unpacked rows are as long as the longest.
    step = train_flops(config.model, 32, 15, {"label": 2, "rationale": 24})
    assert found.flops == 800 * step


def test_time_is_learnt_from_runs_as_they_finish(runs):
    standard = [run for run in runs.values() if run.method == "standard"]
    stepwise = next(run for run in runs.values() if run.method == "step_by_step")
    small, large = Workload(100, 50, 1e3, 6e9), Workload(100, 50, 3e3, 18e9)
    start = estimate.START_SECONDS
    estimator = functools.partial(estimate_time, product_rate=1e9)
    assert estimator(stepwise, large) == estimate.Estimate(start + 18 / estimate.EFFICIENCY, ROUGH)
    # 6e9 FLOPs in 3 s beyond the start: 2e9 a second.
    estimator = functools.partial(
        estimate_time, product_rate=1e9, finished=[FinishedRun(standard[0], small, start + 3)]
    )
    assert estimator(stepwise, large) == estimate.Estimate(start + 9, BY_FLOPS)
    assert estimator(stepwise, large, saved=50) == estimate.Estimate(start + 4.5, BY_FLOPS)
    # The share of the data and the seed do not matter.
    for run in standard:
        assert estimator(run, small) == estimate.Estimate(start + 3, BY_KIND)
    longer = dataclasses.replace(standard[0].config, train_steps=3000)
    other = dataclasses.replace(standard[0], config=longer)
    assert estimator(other, large).basis == BY_FLOPS


def test_nothing_to_train_costs_a_start(runs):
    run = next(iter(runs.values()))
    estimator = functools.partial(
        estimate_time, product_rate=1e9, finished=[FinishedRun(run, workload.NO_TRAINING, 5.0)]
    )
    other = dataclasses.replace(run, method="other")
    assert estimator(other, workload.NO_TRAINING).seconds == estimate.START_SECONDS


def test_the_plan(runs):
    workloads = {name: Workload(1500, 2000, 1.5e6, 2e12) for name in runs}
    statuses = {name: RunStatus(State.WAITING) for name in runs}
    left = {name: estimate.Estimate(60.0, ROUGH) for name in runs}
    first = next(iter(runs))
    statuses[first] = RunStatus(State.DONE, accuracy=(("test", 0.5),))
    del left[first]
    text = tables.plan(estimate.by_variant(runs.values(), workloads, left), statuses)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines.pop(0) == "every run starts from random weights"
    assert lines[0] == (
        "data method labels model fraction seeds steps pairs tokens FLOPs time left state"
    )
    assert lines[1] == (
        "demo standard gold demo 0.5 0,1 1,500 2,000 3.0M 4.0T ~60 s 1 done, 1 waiting"
    )
    assert lines[-2] == "total 8 runs 12,000 12.0M 16.0T ~7 min 1 done, 7 waiting"
    assert lines[-1].startswith("times are rough: 30% of this device's rate")
    shown = tables.progress(
        estimate.by_variant(runs.values(), workloads, left), statuses
    ).splitlines()
    assert " ".join(shown[1].split()) == "demo standard gold demo 0.5 50.0 1 done, 1 waiting"


def test_the_plan_says_what_each_run_starts_from(runs):
    workloads = {name: Workload(1500, 2000, 1.5e6, 2e12) for name in runs}
    statuses = {name: RunStatus(State.WAITING) for name in runs}
    left = {name: estimate.Estimate(60.0, ROUGH) for name in runs}
    mixed = [
        dataclasses.replace(
            run, config=dataclasses.replace(run.config, initial_checkpoint="hf:google/t5-v1_1-base")
        )
        if run.method == "standard"
        else run
        for run in runs.values()
    ]
    text = tables.plan(estimate.by_variant(mixed, workloads, left), statuses)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("data method labels model start fraction seeds")
    assert lines[1].startswith("demo standard gold demo hf:google/t5-v1_1-base 0.5 0,1 1,500")
    assert lines[3].startswith("demo step_by_step gold demo random weights 0.5 0,1 1,500")


def test_nothing_is_left_to_do_is_not_said_of_what_cannot_be(runs):
    workloads = {name: Workload(1500, 2000, 1.5e6, 2e12) for name in runs}
    statuses = {name: RunStatus(State.DONE) for name in runs}
    groups = estimate.by_variant(runs.values(), workloads, {})
    assert tables.plan(groups, statuses).endswith("nothing is left to do")
    assert "nothing is left" not in tables.plan(groups, statuses, impossible=1)
    assert tables.plan([], {}, impossible=8) == "all runs are impossible"


def test_reasons_are_told_once():
    found = [matrix.ImpossibleRun(f"run-{i}", "no vocabulary") for i in range(5)]
    assert tables.impossible(found) == "  run-0, run-1, run-2 and 2 more: no vocabulary"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7, "7 s"), (119, "119 s"), (120, "2 min"), (7200, "120 min"), (14400, "4.0 h"),
     (200000, "2.3 days")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9999, "9,999"), (12345, "12.3k"), (1.5e6, "1.5M"), (2e9, "2.0G"), (3e13, "30.0T"),
     (4.56e17, "4.6e17")],
)  # fmt: skip
def test_quantities(number, text):
    assert tables.quantity(number) == text


def test_the_best_settings_of_a_grid_are_those_with_the_best_mean_on_validation(tmp_path):
    path = tmp_path / "sweep.gin"
    path.write_text(
        'SWEEP_DIR = "x"\nSWEEP_RUN_FILES = "demo.gin"\nSWEEP_SEEDS = (0, 1)\n'
        'SWEEP_GRID = {"ALPHA": (0.3, 0.5, 0.7)}\n'
    )
    runs = matrix.read([path]).runs
    # By method and ALPHA: (validation, test) of both seeds.
    scores = {
        ("standard", 0.3): ((0.5, 0.9), (0.7, 0.9)),
        ("standard", 0.5): ((0.9, 0.4), (0.5, 0.6)),
        ("standard", 0.7): ((0.6, 1.0), (0.7, 1.0)),
        ("step_by_step", 0.3): ((0.2, 0.3), (0.2, 0.5)),
        ("step_by_step", 0.5): ((0.1, 0.9), (0.1, 0.9)),
    }
    statuses = {}
    for run in runs:
        of_method = scores.get((run.method, run.config.objective.alpha))
        if of_method is None:
            statuses[run.name] = RunStatus(State.FAILED)
            continue
        validation, test = of_method[run.config.seed]
        statuses[run.name] = RunStatus(
            State.DONE, accuracy=(("test", test),), validation=validation
        )
    workloads = {run.name: Workload(800, 2000, 1e6, 1e12) for run in runs}
    text = tables.best(estimate.by_variant(runs, workloads, {}), statuses)
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "best settings of each method on validation",
        "data method labels model fraction settings tried validation test",
        "demo standard gold demo 1 alpha=0.5 3 70.0 50.0",
        "demo step_by_step gold demo 1 alpha=0.3 2 20.0 40.0",
    ]


def test_a_sweep_without_a_grid_has_no_best_settings(runs):
    workloads = {name: Workload(1500, 2000, 1.5e6, 2e12) for name in runs}
    statuses = {name: RunStatus(State.DONE, validation=0.5) for name in runs}
    assert tables.best(estimate.by_variant(runs.values(), workloads, {}), statuses) == ""
