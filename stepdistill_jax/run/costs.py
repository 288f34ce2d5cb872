"""What a run has cost: one line a saved or scored step in ``MODEL_DIR/costs.jsonl``."""

from __future__ import annotations

import dataclasses

from etils import epath

from stepdistill_jax import records
from stepdistill_jax.spec import COSTS_FILE


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the steps behind a run's parameters took.

    Attributes:
        step: optimizer steps done.
        train_pairs: pairs in the training data.
        train_flops: model FLOPs of those steps, forward and backward (`model.flops`).
        device_seconds: devices times seconds; evaluation and saving left out, the first step's
            compilation included. Steps that were lost with a killed run and done again count once.
    """

    step: int
    train_pairs: int
    train_flops: float
    device_seconds: float


def read_costs(model_dir: epath.PathLike) -> dict[int, Cost]:
    """Step -> what it took to get there, ascending; empty where nothing was noted.

    Raises:
        InputError: a line is damaged.
    """
    path = epath.Path(model_dir) / COSTS_FILE
    if not path.exists():
        return {}
    found = [Cost(**row) for _, row in records.read_jsonl(path)]
    return {cost.step: cost for cost in found}


class CostMeter:
    """Counts a run's cost from the step on that it starts or continues at."""

    def __init__(
        self,
        model_dir: epath.PathLike,
        step: int,
        *,
        train_pairs: int,
        flops_per_step: float,
        devices: int,
    ) -> None:
        """Forgets what was noted of later steps, which are about to be done again.

        Args:
            model_dir: the run's folder.
            step: optimizer steps done.
            train_pairs: pairs in the training data.
            flops_per_step: model FLOPs of a step.
            devices: that work on it.
        """
        self._path = epath.Path(model_dir) / COSTS_FILE
        self._noted = {s: cost for s, cost in read_costs(model_dir).items() if s <= step}
        self._train_pairs = train_pairs
        self._flops_per_step = flops_per_step
        self._devices = devices
        self._before = self._noted[step].device_seconds if step in self._noted else 0.0

    def note(self, step: int, seconds: float) -> None:
        """Writes down what `step` steps have taken, of which `seconds` since the meter was made."""
        spent = round(self._before + seconds * self._devices, 3)
        self._noted[step] = Cost(step, self._train_pairs, self._flops_per_step * step, spent)
        records.write_jsonl(self._path, map(dataclasses.asdict, self._noted.values()))
