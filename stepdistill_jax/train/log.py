"""Logs of a run: metrics.jsonl, TensorBoard, and the parameter inventory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.parallel import processes
from stepdistill_jax.parallel.chips import PEAK_FLOPS
from stepdistill_jax.spec import EXAMPLE_INDEX, METRICS_FILE, PARAMETERS_FILE, TENSORBOARD_FOLDER
from stepdistill_jax.train.clock import Clock


def write_inventory(model_dir: epath.PathLike, params: Any) -> int:
    """Writes every parameter's name, shape and count to ``parameters.txt``; returns the total."""
    if processes.is_lead():
        records.write_atomic(
            epath.Path(model_dir) / PARAMETERS_FILE,
            parameter_overview.get_parameter_overview(params, include_stats=False) + "\n",
        )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


class MetricLog:
    """Appends one line a logged step to ``metrics.jsonl``, and scalars to TensorBoard.

    Opening drops the lines of steps after `resume_step`, since the run writes them again. With
    several processes, only the lead writes.
    """

    def __init__(self, model_dir: epath.PathLike, resume_step: int, *, tensorboard: bool) -> None:
        self._file = self._writer = None
        if not processes.is_lead():
            return
        folder = epath.Path(model_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        kept = _lines_up_to(path.read_text(), resume_step) if path.exists() else []
        self._file = records.LineWriter(path, kept)
        if tensorboard:
            # Imported only for TENSORBOARD: clu's writer imports TensorFlow, which takes seconds.
            from clu import metric_writers

            self._writer = metric_writers.SummaryWriter(str(folder / TENSORBOARD_FOLDER))

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes one line ``{"step": step, **values}``; a None is written as null."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            scalars = {name: value for name, value in values.items() if value is not None}
            self._writer.write_scalars(step, scalars)

    def flush(self) -> None:
        """Writes buffered lines to disk, before a checkpoint after which they are not rewritten."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def _lines_up_to(text: str, step: int) -> list[str]:
    """The complete lines of steps 1 to `step`; a killed run may have left a torn last one."""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in lines if json.loads(line)["step"] <= step]


def device_memory() -> dict[str, int | None]:
    """Bytes in use now and at the peak, each the maximum over local devices; None on CPUs."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    keys = {"hbm_in_use": "bytes_in_use", "hbm_peak": "peak_bytes_in_use"}
    if None in stats:
        return dict.fromkeys(keys)
    return {name: max(s.get(key, 0) for s in stats if s) for name, key in keys.items()}


class Throughput:
    """Rates of pairs and tokens, and times by phase, since the last `read`, over all processes.

    Args:
        flops_per_step: model FLOPs of one optimizer step, forward and backward.
        rows: of a batch, over all processes.
    """

    def __init__(self, flops_per_step: float, rows: int, clock: Clock) -> None:
        device = jax.devices()[0]
        peak = PEAK_FLOPS.get(device.device_kind)
        self._peak = None if peak is None else peak * jax.device_count()
        self._flops_per_step = flops_per_step
        self._batch_rows = rows
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._steps = self._rows = self._pairs = self._tokens = self._slots = 0

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts one local batch."""
        self._steps += 1
        # Rows that only pad a batch to a multiple of the processes hold no pair.
        self._rows += int(np.count_nonzero(batch[EXAMPLE_INDEX].any(axis=1)))
        self._pairs += int(np.count_nonzero(batch[EXAMPLE_INDEX]))
        for name, values in batch.items():
            if name.endswith("_segment_ids"):
                self._tokens += int(np.count_nonzero(values))
                self._slots += values.size

    def read(self) -> dict[str, float | None]:
        """Rates a second since the last call; rows of other processes are assumed as full.

        Rates count the seconds of steps and of waiting for data, not those of compilation,
        evaluation, saving and tracing. ``fill`` is the share of input and target positions that
        hold a token, ``data_wait`` the share of time in which the device waited for a batch,
        ``mfu`` the model FLOPs utilisation (None if the device's peak is unknown).
        ``<phase>_seconds`` are all seconds since the last call, by `clock.PHASES`.
        """
        spent = self._clock.window()
        seconds = spent["step"] + spent["data_wait"]
        # Counted by rows, since processes along the tensor axis feed the same rows.
        whole = self._batch_rows * self._steps / max(self._rows, 1)
        flops = self._flops_per_step * self._steps / seconds
        values = {
            "pairs_per_second": self._pairs * whole / seconds,
            "tokens_per_second": self._tokens * whole / seconds,
            "fill": self._tokens / self._slots,
            "data_wait": spent["data_wait"] / seconds,
            "mfu": None if self._peak is None else flops / self._peak,
            **{f"{phase}_seconds": round(value, 6) for phase, value in spent.items()},
            **device_memory(),
        }
        self._reset()
        return values
