import json

import numpy as np
import pytest
from etils import epath

from stepdistill_jax.spec import EXAMPLE_INDEX
from stepdistill_jax.train import log
from stepdistill_jax.train.clock import Clock


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_resuming_drops_later_lines_and_a_torn_last_one(tmp_path):
    first = log.MetricLog(tmp_path, 0, tensorboard=False)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step), "mfu": None})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    second = log.MetricLog(tmp_path, 2, tensorboard=False)
    second.write(3, {"loss": 30.0, "mfu": None})
    second.close()
    assert lines(tmp_path) == [
        {"step": 1, "loss": 1.0, "mfu": None},
        {"step": 2, "loss": 2.0, "mfu": None},
        {"step": 3, "loss": 30.0, "mfu": None},
    ]


def test_on_a_store_resuming_finds_every_line_up_to_the_checkpoint(store, gs_folder):
    first = log.MetricLog(gs_folder, 0, tensorboard=False)
    for step in (1, 2, 3, 4):
        if step == 4:
            first.flush()  # as before a checkpoint of step 3
        first.write(step, {"loss": float(step)})
    # Killed here: the line of step 4 was never sent.
    second = log.MetricLog(gs_folder, 2, tensorboard=False)
    second.write(3, {"loss": 30.0})
    second.close()
    assert lines(epath.Path(gs_folder)) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 30.0},
    ]


def test_a_fresh_run_in_a_folder_with_old_metrics_starts_them_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    log.MetricLog(tmp_path, 0, tensorboard=False).close()
    assert lines(tmp_path) == []


def test_tensorboard_scalars_can_be_read_back(tmp_path):
    pytest.importorskip("tensorflow", reason="TENSORBOARD=True needs TensorFlow")
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    writer = log.MetricLog(tmp_path, 0, tensorboard=True)
    writer.write(7, {"loss": 0.5, "mfu": None})
    writer.close()
    events = event_accumulator.EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={event_accumulator.TENSORS: 0}
    )
    events.Reload()
    (event,) = events.Tensors("loss")
    assert event.step == 7
    assert tensor_util.make_ndarray(event.tensor_proto) == 0.5
    assert "mfu" not in events.Tags()["tensors"]


def test_throughput_counts_pairs_tokens_and_fill_over_the_seconds_of_training():
    time = iter([3.0, 10.0, 11.0, 14.0, 16.0, 16.5])
    clock = Clock(lambda: next(time))
    meter = log.Throughput(1e9, 2, clock)
    batch = {
        "label_inputs": np.ones((2, 4), np.int32),
        "label_inputs_segment_ids": np.array([[1, 1, 2, 2], [1, 1, 0, 0]]),
        "label_targets_segment_ids": np.array([[1, 2], [1, 0]]),
        EXAMPLE_INDEX: np.array([[5, 9, 0, 0], [3, 0, 0, 0]]),
    }
    meter.add(batch)
    for phase in ("compile", "data_wait", "step", "evaluation", "checkpoint"):
        clock.lap(phase)
    assert meter.read() == {
        "pairs_per_second": 3 / 4,
        "tokens_per_second": 9 / 4,
        "fill": 9 / 12,
        "data_wait": 1 / 4,
        # No public peak for a CPU: no figure rather than a made-up one.
        "mfu": None,
        "start_seconds": 0.0,
        "compile_seconds": 7.0,
        "step_seconds": 3.0,
        "data_wait_seconds": 1.0,
        "checkpoint_seconds": 0.5,
        "evaluation_seconds": 2.0,
        "profile_seconds": 0.0,
        # Nor does a CPU tell its memory.
        "hbm_in_use": None,
        "hbm_peak": None,
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (4, 6.0),  # of two processes, or of four of which two feed the same rows
        (3, 4.5),  # the last row of the other is empty
        (2, 3.0),  # the other feeds the same rows
    ],
)
def test_throughput_is_that_of_the_whole_batch(rows, expected):
    meter = log.Throughput(1e9, rows, clock := Clock(iter([0.0, 1.0, 1.0]).__next__))
    index = np.array([[5, 9], [3, 0], [0, 0]])
    segments = np.ones((3, 4), np.int32) * (index[:, :1] > 0)
    meter.add({EXAMPLE_INDEX: index, "label_inputs_segment_ids": segments})
    clock.lap("step")
    found = meter.read()
    assert found["pairs_per_second"] == expected
    assert found["tokens_per_second"] == 8 * rows / 2


def test_device_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, now, peak):
            self.memory_stats = lambda: {"bytes_in_use": now, "peak_bytes_in_use": peak}

    monkeypatch.setattr(log.jax, "local_devices", lambda: [Device(3, 9), Device(5, 7)])
    assert log.device_memory() == {"hbm_in_use": 5, "hbm_peak": 9}


def test_inventory_lists_every_parameter_and_counts_them(tmp_path):
    params = {"a": {"kernel": np.zeros((3, 4))}, "b": np.zeros(5)}
    assert log.write_inventory(tmp_path, params) == 17
    text = (tmp_path / "parameters.txt").read_text()
    assert "a/kernel" in text
    assert "Total: 17" in text
