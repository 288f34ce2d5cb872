"""Rationales, and labels where given, from a user's own JSON lines: RATIONALES=file:PATH."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from absl import logging
from etils import epath

from stepdistill_jax.data.sources.base import field, text
from stepdistill_jax.records import Annotation, Example, read_jsonl
from stepdistill_jax.spec import InputError


def read_rationales(
    path: epath.Path,
    examples: Sequence[Example],
    split: str,
    rows_skipped: int = 0,
    evaluated: Collection[str] = (),
) -> dict[str, Annotation]:
    """Example id -> its line of ``{"id", "rationale", "label"?, "hinted"?}``.

    Rows without a line have no entry; a missing label is "".

    Args:
        path: the file.
        examples: the rows that its lines may be about.
        split: that they are of, for messages.
        rows_skipped: bad rows left out of `examples`: up to as many lines of unknown ids are
            taken to be about them, passed over, and counted in a warning.
        evaluated: ids of rows that are validated or tested on, whose words no gold label may have
            helped with.

    Raises:
        InputError: a damaged or blank line, an empty rationale, an id twice or of no example, a
            label outside the example's choices, or a hinted line of an evaluated row.
    """
    by_id = {example.id: example for example in examples}
    found: dict[str, Annotation] = {}
    unknown: set[str] = set()
    for where, row in read_jsonl(path):
        row_id = str(field(row, "id", where, (str, int)))
        rationale = text(row, "rationale", where).strip()
        label = text(row, "label", where).strip() if "label" in row else ""
        if row_id in found or row_id in unknown:
            raise InputError(f"{where}: id {row_id} occurs a second time; keep one line")
        if row_id not in by_id and len(unknown) < rows_skipped:
            unknown.add(row_id)
            continue
        if row_id not in by_id:
            raise InputError(
                f"{where}: id {row_id} is no row of the {split} split, whose ids are like "
                f"{examples[0].id!r}; remove the line, or correct RATIONALES or TRAIN_SPLIT"
            )
        choices = by_id[row_id].choices
        if label and choices and label not in choices:
            raise InputError(
                f"{where}: label {label!r} is not one of {', '.join(choices)}; fix the line"
            )
        hinted = "hinted" in row and field(row, "hinted", where, bool)
        if hinted and row_id in evaluated:
            raise InputError(
                f"{where}: the rationale of id {row_id} was written with the gold label given "
                '("hinted"), and the row is validated or tested on; remove the line, or extract '
                "again with the DATA_SEED of this run, which asks such rows without a hint"
            )
        found[row_id] = Annotation(row_id, rationale, label, hinted=hinted)
    if unknown:
        logging.warning(
            "%s: passed over %d rationales of rows that SKIP_BAD_ROWS left out", path, len(unknown)
        )
    return found
