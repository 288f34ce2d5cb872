"""The table of data sets: DATASET -> `Source`."""

from __future__ import annotations

from collections.abc import Mapping

from stepdistill_jax.data.sources import asdiv, cqa, demo, jsonl, nli, svamp
from stepdistill_jax.data.sources.base import ColumnConfig, Options, Source

__all__ = ["SOURCES", "ColumnConfig", "Options", "Source"]

SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        nli.ESNLI,
        nli.ANLI,
        cqa.SOURCE,
        svamp.SOURCE,
        asdiv.SOURCE,
        demo.SOURCE,
        jsonl.SOURCE,
        jsonl.HF_SOURCE,
    )
}
