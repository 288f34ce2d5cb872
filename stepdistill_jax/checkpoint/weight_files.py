"""Weight files of Hugging Face checkpoints, read slice by slice: safetensors and PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from etils import epath

from stepdistill_jax.checkpoint.names import Shape
from stepdistill_jax.spec import InputError

# Types of safetensors that weights may have; others are quantized.
_FLOATS = ("F32", "F16", "BF16", "F64")


class WeightFile(Protocol):
    """One file of arrays."""

    def shapes(self) -> Mapping[str, Shape]:
        """Key -> shape.

        Raises:
            InputError: the file is damaged, or an array is quantized.
        """

    def read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        """The elements of one array at `index`."""


class SafetensorsFile:
    """A ``.safetensors`` file; it is mapped during each read only, so its pages are released."""

    def __init__(self, path: epath.Path) -> None:
        self._path = path

    @functools.cache  # noqa: B019 - a reader lives as long as one import
    def shapes(self) -> Mapping[str, Shape]:
        """See `WeightFile`."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="numpy") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                for key, array in slices.items():
                    if array.get_dtype() not in _FLOATS:
                        raise _not_float(self._path, key, array.get_dtype())
                return {key: tuple(array.get_shape()) for key, array in slices.items()}
        except SafetensorError as error:
            raise damaged(self._path, str(error)) from error

    def read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        """See `WeightFile`."""
        from safetensors import safe_open

        with safe_open(self._path, framework="numpy") as file:
            array: np.ndarray = file.get_slice(key)[index]
        return array


class PytorchFile:
    """A PyTorch ``.bin`` file; unpickling accepts tensors only."""

    def __init__(self, path: epath.Path) -> None:
        self._path = path

    def shapes(self) -> Mapping[str, Shape]:
        """See `WeightFile`."""
        return {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}

    def read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        """See `WeightFile`."""
        # PyTorch cannot convert bfloat16 to numpy.
        array: np.ndarray = self._tensors[key][index].float().numpy()
        return array

    @functools.cached_property
    def _tensors(self) -> Mapping[str, Any]:
        try:
            import torch
        except ImportError as error:
            raise InputError(
                f"{self._path}: PyTorch is not installed. Install torch, or download the "
                "checkpoint's model.safetensors instead."
            ) from error
        load = functools.partial(torch.load, self._path, map_location="cpu", weights_only=True)
        try:
            try:
                tensors = load(mmap=True)
            except RuntimeError:
                tensors = load()  # files from before PyTorch 1.6 cannot be mapped
        except Exception as error:  # unpickling a file that is no pickle raises anything
            raise damaged(self._path, type(error).__name__) from error
        if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
            raise damaged(self._path, "it is not a dict of tensors")
        for key, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise _not_float(self._path, key, str(tensor.dtype))
        return tensors


def _not_float(path: epath.Path, key: str, kind: str) -> InputError:
    return InputError(
        f"{path}: unsupported type of {key}: got {kind}, expected {', '.join(_FLOATS)}. Use the "
        "checkpoint from before quantization."
    )


def damaged(path: epath.Path, reason: str) -> InputError:
    """The error for a weight file that cannot be read."""
    return InputError(f"{path}: cannot read these weights: {reason}. Download the file again.")
