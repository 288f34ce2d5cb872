"""The table of data sets: DATASET -> `Source`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from stepdistill_jax.data.sources.base import ColumnConfig, Options, Source
from stepdistill_jax.spec import InputError

__all__ = ["SOURCES", "ColumnConfig", "Options", "Source"]

# DATASET -> (module of this package, its `Source`). Imported on use, so that one data set does
# not pull in the libraries of another.
_TABLE = {
    "esnli": ("nli", "ESNLI"),
    "anli": ("nli", "ANLI"),
    "cqa": ("cqa", "SOURCE"),
    "svamp": ("svamp", "SOURCE"),
    "asdiv": ("asdiv", "SOURCE"),
    "demo": ("demo", "SOURCE"),
    "jsonl": ("jsonl", "SOURCE"),
    "hf": ("jsonl", "HF_SOURCE"),
}


class _Sources(Mapping[str, Source]):
    """DATASET -> `Source`, in the table's order."""

    def __getitem__(self, name: str) -> Source:
        if name not in _TABLE:
            raise InputError(f"DATASET: got {name!r}, expected one of {', '.join(_TABLE)}.")
        module, attribute = _TABLE[name]
        source = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        assert isinstance(source, Source)
        return source

    def __iter__(self) -> Iterator[str]:
        return iter(_TABLE)

    def __len__(self) -> int:
        return len(_TABLE)

    def __contains__(self, name: object) -> bool:
        return name in _TABLE


SOURCES: Mapping[str, Source] = _Sources()
