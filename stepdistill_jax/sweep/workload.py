"""What each run of a sweep computes, and how fast this device is.

A child process opens the data and uses the device: the process that starts the runs must hold
neither their accelerator nor TensorFlow's memory.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import tqdm

from stepdistill_jax.data.packing import row_shape
from stepdistill_jax.data.pipeline import SplitCache
from stepdistill_jax.model.flops import train_flops
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.spec import InputError

# Rows and columns of the measured product: large enough for any device to be near its best.
_PRODUCT_SIZE = 2048
_PRODUCT_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a run computes; all 0 for a run that trains nothing.

    Attributes:
        steps: optimizer steps.
        pairs: training pairs in the data.
        tokens: input and target tokens in the batches of all steps.
        flops: model FLOPs of all steps, forward and backward.
    """

    steps: int
    pairs: int
    tokens: float
    flops: float


NO_TRAINING = Workload(0, 0, 0.0, 0.0)


def train_workload(config: RunConfig, pairs: SplitCache) -> Workload:
    """The workload of a run; `pairs` are those its method reads of its training split."""
    shape = row_shape(pairs.lengths, config.pipeline, config.streams)
    features = shape.feature_lengths()
    tokens = sum(float(pairs.lengths[feature].mean()) for feature in features)
    return Workload(
        config.train_steps,
        len(pairs),
        config.train_steps * shape.rows * shape.pairs_per_row * tokens,
        config.train_steps * train_flops(config.model, shape.rows, shape.inputs, shape.targets),
    )


@dataclasses.dataclass(frozen=True)
class Survey:
    """Workloads of runs, and the speed of the device.

    Attributes:
        workloads: one a run, or the error of its data.
        product_rate: FLOP/s of a large matrix product over all devices.
    """

    workloads: tuple[Workload | str, ...]
    product_rate: float


def survey(configs: Sequence[RunConfig]) -> Survey:
    """Opens the data of runs, builds missing token caches and times the device."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_survey, configs).result()


def _survey(configs: Sequence[RunConfig]) -> Survey:
    bar = tqdm.tqdm(configs, "data", unit="run", disable=None, file=sys.stderr, leave=False)
    workloads = tuple(_workload(config) for config in bar)
    dtypes = {config.model.dtype for config in configs}
    return Survey(workloads, _product_rate(min(dtypes, default="float32")))


def _workload(config: RunConfig) -> Workload | str:
    if not config.streams:
        return NO_TRAINING
    try:
        for split in sorted({"validation", *config.eval.splits}):
            open_split(config, split)
        return train_workload(config, open_split(config, "train"))
    except InputError as error:
        return str(error)


def _product_rate(dtype: str) -> float:
    """FLOP/s of a product of two square matrices, times the number of devices."""
    product = jax.jit(jnp.matmul)
    matrix = jnp.ones((_PRODUCT_SIZE, _PRODUCT_SIZE), dtype)
    product(matrix, matrix).block_until_ready()
    start = time.perf_counter()
    count, seconds = 0, 0.0
    while not count or seconds < _PRODUCT_SECONDS:
        product(matrix, matrix).block_until_ready()
        count, seconds = count + 1, time.perf_counter() - start
    return 2.0 * _PRODUCT_SIZE**3 * count * jax.device_count() / seconds
