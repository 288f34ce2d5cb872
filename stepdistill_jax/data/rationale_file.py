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

    Examples without a line have no entry; a missing label is "".

    Args:
        examples: those that lines may refer to.
        split: of the examples, for messages.
        rows_skipped: bad rows that `examples` lacks; up to as many lines with unknown ids are
            attributed to them, skipped and counted in a warning.
        evaluated: ids of examples that are validated or tested on; the teacher must not have seen
            their gold labels.

    Raises:
        InputError: a damaged or blank line, an empty rationale, an id twice or of no example, a
            label outside the example's choices, or a hinted line of an evaluated example.
    """
    by_id = {example.id: example for example in examples}
    annotations: dict[str, Annotation] = {}
    unknown: set[str] = set()
    for where, row in read_jsonl(path):
        key = str(field(row, "id", where, (str, int)))
        rationale = text(row, "rationale", where).strip()
        label = text(row, "label", where).strip() if "label" in row else ""
        if key in annotations or key in unknown:
            raise InputError(f"{where}: id {key} occurs a second time. Keep one line.")
        if key not in by_id and len(unknown) < rows_skipped:
            unknown.add(key)
            continue
        if key not in by_id:
            raise InputError(
                f"{where}: id {key} is not in the {split} split, whose ids look like "
                f"{examples[0].id!r}. Remove the line, or correct RATIONALES or TRAIN_SPLIT."
            )
        choices = by_id[key].choices
        if label and choices and label not in choices:
            raise InputError(
                f"{where}: got label {label!r}, expected one of {', '.join(choices)}. Fix the line."
            )
        hinted = "hinted" in row and field(row, "hinted", where, bool)
        if hinted and key in evaluated:
            raise InputError(
                f"{where}: the rationale of id {key} was written with its gold label as a hint "
                '("hinted"), and the example is validated or tested on. Remove the line, or '
                "extract again with this run's DATA_SEED, which gives no hint for such examples."
            )
        annotations[key] = Annotation(key, rationale, label, hinted=hinted)
    if unknown:
        logging.warning(
            "%s: skipped %d rationales of rows that SKIP_BAD_ROWS left out", path, len(unknown)
        )
    return annotations
