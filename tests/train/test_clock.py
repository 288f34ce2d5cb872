import json

import pytest

from stepdistill_jax.spec import FINISHED_FILE, GOODPUT_FILE
from stepdistill_jax.train import clock


class Time:
    """A wall clock and a monotonic one, moved by hand."""

    def __init__(self, wall):
        self.wall, self.monotonic = wall, 5.0

    def clock(self):
        return clock.Clock(lambda: self.monotonic, lambda: self.wall)

    def spend(self, timer, **seconds):
        for phase, amount in seconds.items():
            self.wall += amount
            self.monotonic += amount
            timer.lap(phase)


def account(folder):
    return json.loads((folder / GOODPUT_FILE).read_text())


def test_every_second_is_in_one_phase():
    time = Time(1000.0)
    timer = time.clock()
    time.spend(timer, start=3.0, data_wait=1.0, step=2.0)
    first = timer.window()
    time.spend(timer, step=4.0, checkpoint=0.5)
    second = timer.window()
    assert {p: s for p, s in first.items() if s} == {"start": 3.0, "data_wait": 1.0, "step": 2.0}
    assert {p: s for p, s in second.items() if s} == {"step": 4.0, "checkpoint": 0.5}
    assert timer.sum() == time.wall - timer.started == 10.5
    assert timer.sum(clock.TRAINING) == 7.0


def test_steps_lost_with_a_kill_and_the_time_stopped_are_no_goodput(tmp_path):
    time = Time(1000.0)
    timer = time.clock()
    first = clock.Goodput(tmp_path, timer, 0, writes=True)
    time.spend(timer, start=5.0, compile=10.0, step=40.0, checkpoint=5.0)
    first.note(100, saved=True)
    time.spend(timer, step=20.0)
    first.note(150)
    time.wall += 4.0  # killed, with 4 s that were never noted
    time.wall += 26.0  # nobody there

    timer = time.clock()
    second = clock.Goodput(tmp_path, timer, 100, writes=True)
    time.spend(timer, start=5.0, compile=5.0, step=60.0, evaluation=10.0, checkpoint=10.0)
    second.note(200, saved=True)
    found = account(tmp_path)
    assert found["seconds"] == {
        "start": 10.0,
        "compile": 15.0,
        "step": 100.0,
        "data_wait": 0.0,
        "checkpoint": 15.0,
        "evaluation": 10.0,
        "profile": 0.0,
        "lost": 20.0,
        "stopped": 30.0,
    }
    assert sum(found["seconds"].values()) == found["until"] - found["since"] == 200.0
    assert found["goodput"] == 0.5
    assert clock.describe(tmp_path) == (
        "goodput 50.0% of 200 s over 2 starts: start 5.0%, compile 7.5%, data wait 0.0%, "
        "checkpoint 7.5%, evaluation 5.0%, profile 0.0%, lost 10.0%, stopped 15.0%"
    )


def test_a_run_killed_before_its_first_checkpoint_has_lost_all_its_steps(tmp_path):
    time = Time(0.0)
    timer = time.clock()
    time.spend(timer, step=30.0)
    clock.Goodput(tmp_path, timer, 0, writes=True).note(7)
    again = clock.Goodput(tmp_path, time.clock(), 0, writes=True)
    assert (again.seconds()["step"], again.seconds()["lost"]) == (0.0, 30.0)


def test_a_run_taken_back_to_an_earlier_checkpoint_has_lost_the_steps_since(tmp_path):
    time = Time(0.0)
    timer = time.clock()
    first = clock.Goodput(tmp_path, timer, 0, writes=True)
    for step in (100, 200, 300):
        time.spend(timer, step=10.0)
        first.note(step, saved=True)
    second = clock.Goodput(tmp_path, time.clock(), 100, writes=True)
    assert (second.seconds()["step"], second.seconds()["lost"]) == (10.0, 20.0)
    second.note(110)
    assert list(account(tmp_path)["saved"]) == ["0", "100"]


def test_a_finished_account_is_closed_and_only_one_process_keeps_it(tmp_path):
    time = Time(0.0)
    timer = time.clock()
    clock.Goodput(tmp_path, timer, 0, writes=False).note(5, saved=True)
    assert clock.describe(tmp_path) == ""
    time.spend(timer, step=10.0)
    clock.Goodput(tmp_path, timer, 0, writes=True).note(5, saved=True)
    (tmp_path / FINISHED_FILE).write_text("{}")
    before = account(tmp_path)
    time.wall += 3600.0
    clock.Goodput(tmp_path, time.clock(), 5, writes=True).note(5, saved=True)
    assert account(tmp_path) == before
    assert clock.describe(tmp_path).startswith("goodput 100.0% of 10 s: start 0.0%")


def test_steps_logged_often_are_not_noted_as_often(tmp_path):
    time = Time(0.0)
    timer = time.clock()
    goodput = clock.Goodput(tmp_path, timer, 0, writes=True)
    noted = []
    for step in range(1, 8):
        time.spend(timer, step=3.0)
        goodput.note(step)
        noted.append(account(tmp_path)["step"])
    assert noted == [1, 1, 1, 1, 5, 5, 5]
    assert pytest.approx(account(tmp_path)["until"]) == 15.0
