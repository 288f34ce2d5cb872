"""What the runs of a sweep will take, found out in a process of its own.

The process that starts the runs must neither hold their accelerator nor TensorFlow's memory.
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

from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.spec import InputError
from stepdistill_jax.sweep.estimate import NOTHING, Work, train_work

# Rows and columns of the measured product: large enough for any device to be near its best.
_PRODUCT_SIZE = 2048
_PRODUCT_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found out.

    Attributes:
        work: of each run, or why its data cannot be had.
        product_rate: FLOP/s of a large matrix product over all devices.
    """

    work: tuple[Work | str, ...]
    product_rate: float


def survey(configs: Sequence[RunConfig]) -> Survey:
    """Opens the data of runs, building the token caches that are lacking, and times the device."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_survey, configs).result()


def _survey(configs: Sequence[RunConfig]) -> Survey:
    bar = tqdm.tqdm(configs, "data", unit="run", disable=None, file=sys.stderr, leave=False)
    work = tuple(_work(config) for config in bar)
    dtypes = {config.model.dtype for config in configs}
    return Survey(work, _product_rate(min(dtypes, default="float32")))


def _work(config: RunConfig) -> Work | str:
    if not config.streams:
        return NOTHING
    try:
        for split in sorted({"validation", *config.eval.splits}):
            open_split(config, split)
        return train_work(config, open_split(config, "train"))
    except InputError as error:
        return str(error)


def _product_rate(dtype: str) -> float:
    """FLOP/s of a product of two square matrices, times the devices."""
    product = jax.jit(jnp.matmul)
    matrix = jnp.ones((_PRODUCT_SIZE, _PRODUCT_SIZE), dtype)
    product(matrix, matrix).block_until_ready()
    start = time.perf_counter()
    count, seconds = 0, 0.0
    while not count or seconds < _PRODUCT_SECONDS:
        product(matrix, matrix).block_until_ready()
        count, seconds = count + 1, time.perf_counter() - start
    return 2.0 * _PRODUCT_SIZE**3 * count * jax.device_count() / seconds
