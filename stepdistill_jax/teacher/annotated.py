"""What an extraction made of one row."""

from __future__ import annotations

import dataclasses

from stepdistill_jax.records import Annotation, Example, ParseFailure


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One row with its teacher's answer, after voting and hints.

    Attributes:
        example: the row.
        outcome: the rationale and label that are kept, or why there are none.
        samples: answers that were read, those that failed included; hints not.
        agreeing: of those, the ones whose label is the kept one.
        hinted: the rationale was written with the gold label given.
        unhinted: what was made of the row before the hint; the same as `outcome` without one.
    """

    example: Example
    outcome: Annotation | ParseFailure
    samples: int
    agreeing: int
    hinted: bool
    unhinted: Annotation | ParseFailure
