"""The cost of a run: one line per saved or scored step in ``MODEL_DIR/costs.jsonl``."""

from __future__ import annotations

import dataclasses

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.spec import COSTS_FILE


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of the steps up to a checkpoint.

    Attributes:
        step: optimizer steps done.
        train_pairs: pairs in the training data.
        train_flops: model FLOPs of those steps, forward and backward (`model.flops`).
        device_seconds: devices times seconds, with the first step's compilation and without
            evaluation and saving. Steps that a killed run repeats count once.
    """

    step: int
    train_pairs: int
    train_flops: float
    device_seconds: float


def read_costs(model_dir: epath.PathLike) -> dict[int, Cost]:
    """Step -> cost up to it, ascending.

    Raises:
        InputError: a line is damaged.
    """
    path = epath.Path(model_dir) / COSTS_FILE
    if not path.exists():
        return {}
    return {row["step"]: Cost(**row) for _, row in records.read_jsonl(path)}


class CostMeter:
    """Counts a run's cost from the step at which it starts or continues."""

    def __init__(
        self,
        model_dir: epath.PathLike,
        step: int,
        *,
        train_pairs: int,
        flops_per_step: float,
        devices: int,
    ) -> None:
        """Drops the costs of later steps, which the run is about to repeat.

        Args:
            model_dir: MODEL_DIR.
            step: optimizer steps completed.
            train_pairs: pairs in the training data.
            flops_per_step: model FLOPs of a step.
            devices: devices that the step runs on.
        """
        self._path = epath.Path(model_dir) / COSTS_FILE
        self._noted = {s: cost for s, cost in read_costs(model_dir).items() if s <= step}
        self._train_pairs = train_pairs
        self._flops_per_step = flops_per_step
        self._devices = devices
        self._before = self._noted[step].device_seconds if step in self._noted else 0.0

    def note(self, step: int, seconds: float) -> None:
        """Writes the cost of `step` steps; `seconds` counts from the start of this meter."""
        spent = round(self._before + seconds * self._devices, 3)
        self._noted[step] = Cost(step, self._train_pairs, self._flops_per_step * step, spent)
        records.write_jsonl(self._path, map(dataclasses.asdict, self._noted.values()))
