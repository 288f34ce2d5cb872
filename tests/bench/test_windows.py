import os
import threading
import time

import numpy as np
import pytest

from stepdistill_jax.bench import windows
from stepdistill_jax.bench.windows import (
    EvenSample,
    TrainLoop,
    one_core,
    pipeline_window,
    steps_for,
)


def batch():
    """Two rows: one of two pairs, one of a single pair."""
    return {
        "example_index": np.array([[3, 1, 0, 0], [2, 0, 0, 0]]),
        "label_inputs_segment_ids": np.array([[1, 1, 2, 0], [1, 1, 1, 0]]),
        "label_targets_segment_ids": np.array([[1, 2], [1, 0]]),
        "label_inputs": np.zeros((2, 4), int),
    }


def batches(wait=0.0):
    while True:
        time.sleep(wait)
        yield batch()


def test_train_window_counts_what_the_batches_hold():
    loop = TrainLoop(batches(), place=lambda b: b, step=lambda b: {}, shards=3, flops=7.0)
    amounts = loop.window(2).amounts
    assert amounts["steps"] == 2
    # Of all three processes; fill is a share and so the same for all.
    assert (amounts["pairs"], amounts["tokens"]) == (2 * 3 * 3, 2 * 9 * 3)
    assert amounts["flops"] == 14.0
    assert amounts["fill label_inputs"] == 6 / 8
    assert amounts["fill label_targets"] == 3 / 4


def test_train_window_tells_its_three_parts_apart():
    def step(placed):
        time.sleep(0.03)
        return {}

    def place(host):
        time.sleep(0.02)
        return host

    window = TrainLoop(batches(wait=0.01), place, step, shards=1, flops=1.0).window(4)
    parts = [window.amounts[name] for name in ("wait", "place", "step")]
    assert sum(parts) == pytest.approx(window.seconds)
    for part, minimum in zip(parts, (0.04, 0.08, 0.12), strict=True):
        assert part >= minimum
    # Sleeps overrun on a busy machine, by little beside the next part.
    assert parts[0] < parts[1] < parts[2]


def test_train_window_ends_with_its_last_step(monkeypatch):
    happened = []
    monkeypatch.setattr(windows.jax, "device_get", lambda n: happened.append(f"read {n}"))
    numbers = iter(range(9))

    def step(placed):
        number = next(numbers)
        happened.append(f"dispatch {number}")
        return number

    TrainLoop(batches(), lambda host: host, step, shards=1, flops=1.0).window(3)
    # As in training, the device is at step n + 1 while step n is read.
    assert happened == ["dispatch 0", "dispatch 1", "read 0", "dispatch 2", "read 1", "read 2"]


def test_steps_of_a_window_last_two_seconds():
    assert steps_for(0.25) == 8
    assert steps_for(60.0) == 2


def test_pipeline_window_counts_pairs_and_cpu():
    window = pipeline_window(batches(wait=0.005), seconds=0.1)
    assert window.seconds >= 0.1
    assert window.amounts["pairs"] % 3 == 0
    # Waiting takes no CPU.
    assert 0 < window.amounts["cpu"] < window.seconds
    assert window.amounts["pairs"] <= 3 * (window.seconds / 0.005 + 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")
def test_one_core_holds_this_thread_and_lets_go():
    before = os.sched_getaffinity(0)
    seen = []
    with one_core() as pinned:
        assert pinned
        assert os.sched_getaffinity(0) == {min(before)}
        inside = threading.Thread(target=lambda: seen.append(len(os.sched_getaffinity(0))))
        inside.start()
        inside.join()
    assert seen == [1]
    assert os.sched_getaffinity(0) == before


class Cache:
    lengths = {"label_inputs": np.arange(100, 111)}  # noqa: RUF012

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return {"label_inputs": np.arange(self.lengths["label_inputs"][index])}

    def example(self, index):
        return {"id": str(index)}


def test_sample_is_spread_over_the_whole_cache():
    sample = EvenSample(Cache(), 3)
    assert [sample.example(i)["id"] for i in range(len(sample))] == ["0", "5", "10"]
    assert sample.lengths["label_inputs"].tolist() == [100, 105, 110]
    assert len(sample[1]["label_inputs"]) == 105


def test_sample_of_more_than_there_is_holds_all_once():
    sample = EvenSample(Cache(), 50)
    assert [sample.example(i)["id"] for i in range(len(sample))] == [str(i) for i in range(11)]
