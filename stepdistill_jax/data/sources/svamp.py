"""SVAMP: arithmetic word problems; the label is an equation, scored by its value."""

from __future__ import annotations

from typing import Any

from stepdistill_jax.data.sources.base import check_equation, released_source, row_number, text
from stepdistill_jax.records import Example


def _parse(where: str, row: Any) -> Example:
    label = text(row, "label", where).strip()
    check_equation(label, where)
    # The release has no ids: the row number is the id, which is also the teacher outputs' order.
    return Example(row_number(where), text(row, "input", where).strip(), label, where=where)


SOURCE = released_source("svamp", "svamp", ("train", "test"), _parse, metric="equation")
