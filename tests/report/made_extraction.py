"""Folders as an extraction leaves them, with answers that are made up."""

from __future__ import annotations

import json
import pathlib

from stepdistill_jax import records
from stepdistill_jax.records import Annotation, Example, ParseFailure
from stepdistill_jax.teacher import quality
from stepdistill_jax.teacher.vote import Annotated

CHOICES = ("kitchen", "garden")


def make_rows() -> list[Annotated]:
    """Eight rows: five right, one wrong, two that could not be read."""
    rows = []
    for number in range(8):
        text = f"Where does cook number {number} cook?"
        example = Example(str(number), text, "kitchen", f"Cook {number} has ovens.", CHOICES)
        outcome: Annotation | ParseFailure = Annotation(
            example.id, f"Cook {number} needs an oven, so the kitchen.", "kitchen"
        )
        if number == 5:
            outcome = Annotation(example.id, "A cook works in the garden.", "garden")
        if number > 5:
            outcome = ParseFailure(example.id, "no answer marker", "", f"I am number {number}.")
        kept = int(isinstance(outcome, Annotation))
        rows.append(Annotated(example, outcome, 1, kept, False, outcome))
    return rows


def write_extraction(
    folder: pathlib.Path,
    rows: list[Annotated] | None = None,
    *,
    unit: str = "train",
    cost: float | None = 0.16,
    dataset: str = "cqa",
    raw=None,
) -> None:
    """A summary and the rows to look at, of one unit."""
    rows = make_rows() if rows is None else rows
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "rows": 10, "answered": len(rows), "requests": len(rows), "cached": 0,
        "prompt_tokens": 8000, "completion_tokens": 240, "cost": cost, "seconds": 4.0,
        "quality": quality.assess(rows, "exact").as_dict(),
    }  # fmt: skip
    summary = {
        "dataset": dataset, "model": "small-teacher", "client": "openai", "of later": [1],
        "prompt": {"hash": "0123456789abcdef", "exemplars": 10, "tokens": 812},
        "units": {unit: facts},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    texts = {
        row.example.id: raw(row.example.id) if raw else getattr(row.outcome, "raw", None)
        for row in rows
    }
    records.write_jsonl(folder / f"worst_{unit}.jsonl", quality.worst(rows, "exact", texts))
