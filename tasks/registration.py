"""Data sets as SeqIO tasks, T5X-style: ``<dataset>_<labels>_<method>``.

Importing a data set's module registers its tasks; no file is read until a task is used. The
environment then names the data and the vocabulary: STEPDISTILL_DATA_DIR and STEPDISTILL_VOCABULARY.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import seqio

from stepdistill_jax.data import metrics
from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.join import DataConfig
from stepdistill_jax.data.preprocessors import seqio_task
from stepdistill_jax.data.sources import SOURCES

LABELS = ("gold", "teacher")

# Method -> RATIONALES: standard finetuning leaves every rationale target empty (EOS, weight 0).
METHOD_RATIONALES = {"standard": "none", "step_by_step": "teacher"}


def label_accuracy(
    metric: str, targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
    """SeqIO metric function: the share of correct `predictions`, in [0, 1]."""
    return {"accuracy": metrics.accuracy(metric, predictions, targets).accuracy}


def register(dataset: str, vocabulary: str = "", labels: Sequence[str] = LABELS) -> tuple[str, ...]:
    """Registers a data set's tasks and returns their names.

    Args:
        dataset: a key of `SOURCES`.
        vocabulary: see `load_vocabulary`; "" = the environment's.
        labels: of `LABELS`, those that the data set has.
    """
    tokens = TokenConfig(vocabulary=vocabulary)
    accuracy = functools.partial(label_accuracy, SOURCES[dataset].metric)
    names = []
    for source in labels:
        for method, rationales in METHOD_RATIONALES.items():
            name = f"{dataset}_{source}_{method}"
            data = DataConfig(dataset=dataset, labels=source, rationales=rationales)
            seqio.TaskRegistry.add_provider(
                name, seqio_task(name, data, tokens, metric_fns=[accuracy])
            )
            names.append(name)
    return tuple(names)
