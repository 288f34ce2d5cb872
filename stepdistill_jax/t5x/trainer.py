"""T5X's trainer with microbatches that give the loss and gradient of the whole batch."""

from __future__ import annotations

import functools
from typing import Any

from t5x import trainer


class StepByStepTrainer(trainer.Trainer):
    """`t5x.trainer.Trainer` for `StepByStepModel`, with the same arguments.

    T5X adds the losses of the microbatches. Here each microbatch has the loss factors of the global
    batch, so the sum is the loss of the batch for any ``num_microbatches``. Dropout masks differ.
    """

    @functools.cached_property
    def _partitioned_train_step(self) -> Any:
        def train_step(train_state: Any, batch: Any) -> Any:
            return trainer.train_with_lr(
                train_state,
                self._model.with_loss_factors(batch),
                learning_rate=self._learning_rate_fn(train_state.step),
                dropout_rng=self._get_step_rng(train_state.step),
                model=self._model,
                num_microbatches=self._num_microbatches,
                weight_metrics_computer=self._weight_metrics_computer,
                data_partition_spec=self._partitioner.data_partition_spec,
            )

        rows = self._partitioner.data_partition_spec
        return self._partitioner.partition(
            train_step,
            in_axis_resources=(self._train_state_axes, rows),
            out_axis_resources=(self._train_state_axes, None),
            donate_argnums=(0,),
        )
