"""The parameters of a run's checkpoint, read one array at a time to bound host memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from stepdistill_jax.checkpoint import checksums, manager, zarr_arrays
from stepdistill_jax.checkpoint.names import Shape
from stepdistill_jax.spec import InputError

PyTree = Any

_STATE = "state"
_PARAMS = "params"


class LazyArray:
    """A parameter that is read when it is used, by `numpy.asarray` or ``[layer]``."""

    def __init__(self, arrays: RunArrays, key: str) -> None:
        self._arrays = arrays
        self._key = key
        self.shape = arrays.shapes[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._arrays.whole(self._key), dtype=dtype, copy=copy)

    def __getitem__(self, layer: int) -> np.ndarray:
        return self._arrays.whole(self._key)[layer]


class RunArrays:
    """The parameters of one step of a run; holds one array in memory at a time.

    Attributes:
        where: the folder of the step.
        shapes: path -> shape.
    """

    def __init__(self, model_dir: epath.PathLike, step: int) -> None:
        """Opens the arrays without reading them.

        Raises:
            InputError: the step is missing or damaged.
        """
        folder = manager.checkpoints_folder(model_dir) / str(step)
        self.where = str(folder)
        index = folder / _STATE / zarr_arrays.ORBAX_INDEX
        if not index.is_file():
            raise InputError(
                f"{folder}: {index} is missing. Copy the step's folder back, or name another step."
            )
        self._arrays = zarr_arrays.open_all(zarr_arrays.orbax_arrays(index, _PARAMS), self.where)
        self.shapes: Mapping[str, Shape] = {k: tuple(a.shape) for k, a in self._arrays.items()}
        self._last: tuple[str, np.ndarray] | None = None

    def read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        """See `fill.CheckpointReader`.

        Raises:
            InputError: a chunk is missing or damaged.
        """
        return zarr_arrays.read(self._arrays[key], index, key, self.where)

    def whole(self, key: str) -> np.ndarray:
        """One array; the last one read is cached.

        Raises:
            InputError: a chunk is missing or damaged.
        """
        if self._last is None or self._last[0] != key:
            self._last = None  # frees the last array before reading the next
            array = self.read(key, (...,))
            name = f"{_PARAMS}/{key}"
            checksums.compare(epath.Path(self.where), {name: checksums.of_host_array(array)})
            self._last = (key, array)
        return self._last[1]

    def tree(self) -> PyTree:
        """The parameter tree, of `LazyArray`."""
        root: dict[str, Any] = {}
        for key in sorted(self.shapes):
            *parents, leaf = key.split("/")
            node = root
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = LazyArray(self, key)
        return root
