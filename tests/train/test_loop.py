import concurrent.futures
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_cases as cases

from stepdistill_jax.checkpoint import manager, restore
from stepdistill_jax.run.costs import CostMeter, read_costs
from stepdistill_jax.spec import EXAMPLE_INDEX, NON_FINITE_FILE, InputError
from stepdistill_jax.train import loop
from stepdistill_jax.train.clock import PHASES, Clock, Goodput
from stepdistill_jax.train.log import MetricLog, Throughput
from stepdistill_jax.train.state import TrainState
from stepdistill_jax.train.trace import StepTrace


class Counting:
    """Batches whose only content is their number; get_state and set_state as Grain's."""

    def __init__(self) -> None:
        self.next_batch = 0

    def __next__(self):
        self.next_batch += 1
        index = np.array([[2 * self.next_batch - 1, 2 * self.next_batch, 0]])
        ones = np.ones((1, 3), np.int32)
        return {"label_inputs_segment_ids": ones, EXAMPLE_INDEX: index}

    def get_state(self):
        return {"next": self.next_batch}

    def set_state(self, state):
        self.next_batch = state["next"]


def step_function(losses):
    """Adds the loss of each step to the one parameter, so that the state shows the history."""

    def step(state, batch):
        loss = jnp.float32(losses(int(state.step) + 1))
        params = {"w": state.params["w"] + loss}
        state = state.replace(step=state.step + 1, params=params)
        return state, {"loss": loss, "grad_norm": loss}

    return step


def fresh_state():
    return TrainState(step=jnp.int32(0), params={"w": jnp.zeros(2)}, opt_state={})


def train(folder, accuracies=None, losses=float, data="a", profile=(), **config):
    """Runs the loop; returns (outcome, evaluated steps)."""
    settings = {"train_steps": 10, "log_period": 1, "eval_period": 0, "checkpoint_period": 100}
    config = cases.run_config(model_dir=str(folder), **{**settings, **config})
    evaluated = []
    clock = Clock()
    identity = {"config": "", "training data": data}

    def evaluate(params, step):
        evaluated.append((step, float(params["w"][0])))
        return accuracies[step] if accuracies else 0.5

    with manager.manager(folder, keep=20) as checkpoints:
        batches = Counting()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh_state()
        )
        state, evals = loop.resume(checkpoints, batches, fresh_state, abstract, identity)
        log = MetricLog(folder, int(state.step), tensorboard=False)
        trainer = loop.Trainer(
            config=config,
            train_step=step_function(losses),
            batches=batches,
            place=lambda batch: batch,
            evaluate=evaluate,
            checkpoints=checkpoints,
            log=log,
            throughput=Throughput(0.0, 1, clock),
            costs=CostMeter(folder, int(state.step), train_pairs=7, flops_per_step=3.0, devices=2),
            clock=clock,
            goodput=Goodput(folder, clock, int(state.step), writes=True),
            trace=StepTrace(folder, profile, clock),
            example_ids=lambda index: [f"id{i}" for i in index],
            identity=identity,
        )
        try:
            return trainer.run(state, evals), evaluated
        finally:
            log.close()


def logged(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_evaluation_that_fails_costs_no_step_and_is_made_up_for(tmp_path):
    accuracies = {4: 0.5}
    with pytest.raises(KeyError, match="8"):
        train(tmp_path, accuracies, eval_period=4)
    assert restore.available_steps(tmp_path) == [4, 8]
    assert restore.best_step(tmp_path) == 4
    accuracies |= {8: 0.9, 10: 0.7}
    outcome, evaluated = train(tmp_path, accuracies, eval_period=4)
    assert evaluated == [(8, 36.0), (10, 55.0)]
    assert outcome.evals == ((4, 0.5), (8, 0.9), (10, 0.7))
    assert restore.available_steps(tmp_path) == [4, 8, 10]
    assert restore.best_step(tmp_path) == 8


def test_every_step_is_logged_and_the_last_is_scored_and_saved(tmp_path):
    outcome, evaluated = train(tmp_path)
    assert outcome == loop.Outcome(10, False, ((10, 0.5),))
    assert [(row["step"], row["loss"]) for row in logged(tmp_path)] == [
        (step, float(step)) for step in range(1, 11)
    ]
    assert evaluated == [(10, 55.0)]  # 1 + 2 + ... + 10: the parameters of that very step
    assert restore.available_steps(tmp_path) == [10]


def test_a_process_that_others_told_to_stop_survives_its_own_late_signal(tmp_path, monkeypatch):
    """JAX has the signal of several processes; here a handler stands for JAX's."""
    monkeypatch.setattr(loop.processes, "count", lambda: 2)
    monkeypatch.setattr(loop.processes, "meet", lambda: None)
    monkeypatch.setattr(
        loop.multihost_utils, "reached_preemption_sync_point", lambda step: step == 3
    )
    late, wait = [], manager.wait

    def wait_late(checkpoints):
        if signal.getsignal(signal.SIGTERM) == note:
            os.kill(os.getpid(), signal.SIGTERM)
        wait(checkpoints)

    def note(number, frame):
        late.append(number)

    monkeypatch.setattr(manager, "wait", wait_late)
    before = signal.signal(signal.SIGTERM, note)
    try:
        outcome, _ = train(tmp_path, train_steps=6)
        assert outcome == loop.Outcome(3, True, ())
        assert late
        assert signal.getsignal(signal.SIGTERM) == note
        # Where all steps are done nobody would hear it any more.
        train(tmp_path, train_steps=6)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert restore.available_steps(tmp_path) == [3, 6]


def test_jax_is_asked_of_each_step_once_and_in_order(tmp_path, monkeypatch):
    """It takes the last question for the step that a process is at; Orbax asks it of old ones."""
    asked = []
    monkeypatch.setattr(loop.processes, "count", lambda: 2)
    monkeypatch.setattr(loop.processes, "meet", lambda: None)
    monkeypatch.setattr(
        loop.multihost_utils, "reached_preemption_sync_point", lambda step: bool(asked.append(step))
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        train(tmp_path, checkpoint_period=1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == list(range(1, 11))


def test_evaluation_and_checkpoint_periods(tmp_path):
    _, evaluated = train(tmp_path, eval_period=4, checkpoint_period=3)
    assert [step for step, _ in evaluated] == [4, 8, 10]
    assert restore.available_steps(tmp_path) == [3, 4, 6, 8, 9, 10]


def test_a_second_run_continues_with_state_data_and_evaluations(tmp_path):
    train(tmp_path, train_steps=4)
    outcome, evaluated = train(tmp_path, train_steps=6)
    assert outcome.evals == ((4, 0.5), (6, 0.5))
    assert evaluated == [(6, 21.0)]
    assert [row["step"] for row in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_trains_no_further(tmp_path):
    train(tmp_path, train_steps=4)
    outcome, evaluated = train(tmp_path, train_steps=4)
    assert outcome == loop.Outcome(4, False, ((4, 0.5),))
    assert evaluated == []


def test_early_stop_after_evaluations_without_a_better_one(tmp_path):
    accuracies = {1: 0.1, 2: 0.3, 3: 0.3, 4: 0.2, 5: 0.9}
    outcome, _ = train(tmp_path, accuracies, eval_period=1, early_stop_evals=2)
    assert outcome.step == 4
    # The same command again stays stopped.
    outcome, evaluated = train(tmp_path, accuracies, eval_period=1, early_stop_evals=2)
    assert (outcome.step, evaluated) == (4, [])
    assert restore.best_step(tmp_path) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_with_its_examples_and_saves_nothing_bad(tmp_path, bad):
    with pytest.raises(loop.NonFiniteError, match=r"step 7: .*loss is (nan|inf)") as raised:
        train(tmp_path, losses=lambda s: bad if s == 7 else 1.0, checkpoint_period=5)
    assert "the last checkpoint is of step 5" in str(raised.value)
    report = json.loads((tmp_path / NON_FINITE_FILE).read_text())
    assert report["step"] == 7
    assert report["ids"] == ["id13", "id14"]
    assert restore.available_steps(tmp_path) == [5]


def test_a_non_finite_step_due_for_a_checkpoint_is_not_saved(tmp_path):
    with pytest.raises(loop.NonFiniteError, match="step 5"):
        train(tmp_path, losses=lambda s: float("nan") if s == 5 else 1.0, checkpoint_period=5)
    assert restore.available_steps(tmp_path) == []


def test_a_run_on_other_data_is_not_continued(tmp_path):
    train(tmp_path, train_steps=4)
    with pytest.raises(InputError, match="training data changed: the run had a, now b"):
        train(tmp_path, train_steps=6, data="b")


def test_what_the_steps_took_is_noted_where_they_are_saved_and_goes_on_after_a_resume(tmp_path):
    train(tmp_path, checkpoint_period=4)
    first = read_costs(tmp_path)
    assert [(cost.step, cost.train_flops) for cost in first.values()] == [
        (4, 12.0),
        (8, 24.0),
        (10, 30.0),
    ]
    assert {cost.train_pairs for cost in first.values()} == {7}
    train(tmp_path, train_steps=12, checkpoint_period=4)
    again = read_costs(tmp_path)
    assert list(again) == [4, 8, 10, 12]
    assert [again[step] for step in first] == list(first.values())
    seconds = [cost.device_seconds for cost in again.values()]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3]


def test_costs_of_steps_that_are_done_again_are_forgotten(tmp_path):
    meter = CostMeter(tmp_path, 0, train_pairs=1, flops_per_step=1.0, devices=1)
    for step in (1, 2, 3):
        meter.note(step, 10.0 * step)
    CostMeter(tmp_path, 1, train_pairs=1, flops_per_step=1.0, devices=2).note(5, 4.0)
    costs = read_costs(tmp_path)
    assert {step: cost.device_seconds for step, cost in costs.items()} == {1: 10.0, 5: 18.0}


def test_the_columns_of_time_and_the_account_add_up_to_the_wall_time(tmp_path):
    train(tmp_path, eval_period=4, checkpoint_period=3)
    rows = logged(tmp_path)
    split = {phase: sum(row[f"{phase}_seconds"] for row in rows) for phase in PHASES}
    account = json.loads((tmp_path / "goodput.json").read_text())
    spent = account["seconds"]
    for phase in ("start", "compile", "step", "data_wait"):
        assert 0 < split[phase] == pytest.approx(spent[phase], abs=0.01)
    assert 0 < split["checkpoint"] < spent["checkpoint"]  # the last one comes after the last line
    assert sum(spent.values()) == pytest.approx(account["until"] - account["since"], abs=0.01)
    assert account["goodput"] == pytest.approx(spent["step"] / sum(spent.values()), abs=1e-3)


@pytest.mark.parametrize("profile", [(), (1, 1)])
def test_the_wait_for_other_compilers_is_one_of_compiling(tmp_path, monkeypatch, profile):
    met = []
    monkeypatch.setattr(loop.processes, "meet", lambda: met.append(time.sleep(0.5)))
    train(tmp_path, profile=profile)
    assert len(met) == 1
    first, *others = logged(tmp_path)
    assert first["compile_seconds"] >= 0.5 > first["step_seconds"]
    assert {row["compile_seconds"] for row in others} == {0.0}


def test_a_wait_is_one_for_data_from_the_end_of_the_step_before():
    now = [0.0]
    clock = Clock(now=lambda: now[0])

    def wait(seconds, ended):
        """A wait in which the step before ended at the moment `ended`; None = it did not."""
        end = concurrent.futures.Future()
        if ended is not None:
            end.set_result(ended)
        now[0] += seconds
        loop._lap_wait(clock, loop._Step(1, {}, {}, end))
        spent = clock.window()
        return spent["step"], spent["data_wait"]

    assert wait(1.0, None) == (1.0, 0.0)
    assert wait(1.0, 1.75) == (0.75, 0.25)
    # It had ended before the wait began.
    assert wait(1.0, 1.5) == (0.0, 1.0)
    loop._lap_wait(clock, None)
    assert clock.seconds["data_wait"] == 1.25


def test_the_end_of_a_step_is_known_once_it_has_ended():
    before = time.perf_counter()
    end = loop._end_of({"loss": jnp.ones(3) + 1}, time.perf_counter)
    assert before < end.result(60) <= time.perf_counter()


@pytest.mark.parametrize(("chosen", "traced"), [((3, 5), [3, 4, 5]), ((7, 9), [7, 8])])
def test_chosen_steps_alone_are_traced_as_far_as_the_run_goes(tmp_path, chosen, traced):
    train(tmp_path, profile=chosen, train_steps=8)
    (file,) = (tmp_path / "profile").rglob("*.xplane.pb")
    steps = [
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert steps == traced
    assert sum(row["profile_seconds"] for row in logged(tmp_path)) > 0


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys):
    (tmp_path / "profile").write_text("in the way")
    outcome, _ = train(tmp_path, profile=(3, 4), train_steps=6)
    assert outcome.step == 6
    assert f"no trace in {tmp_path}/profile: " in capsys.readouterr().err
    (tmp_path / "profile").unlink()
    jax.profiler.stop_trace()  # JAX would else take the trace for one that goes on
