"""Joins extractions, or one folder's workers, into one folder that training reads."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from stepdistill_jax.data import inputs
from stepdistill_jax.spec import CONFIG_FILE, EXIT_INCOMPLETE, InputError
from stepdistill_jax.teacher import load, store
from stepdistill_jax.teacher import resume as planned
from stepdistill_jax.teacher import run as extraction
from stepdistill_jax.teacher.config import SPLITS
from stepdistill_jax.teacher.load import Extraction
from stepdistill_jax.teacher.resume import ResumeState
from stepdistill_jax.teacher.run import Prepared
from stepdistill_jax.teacher.store import Share, Store

_REMEDY = "only answers of one teacher and prompt can be joined: leave the folder out"


def merge(folders: Sequence[str], overrides: Sequence[str]) -> int:
    """Joins folders, or one folder's workers; returns the exit code.

    The result covers whatever any of the folders was asked about.

    Raises:
        InputError: they hold extractions of different kinds, or different answers to one question.
    """
    first = load.read(folders[0], overrides)
    out = pathlib.Path(first.extract.extract_dir)
    if len(folders) > 1 and not any(text.startswith("EXTRACT_DIR=") for text in overrides):
        raise InputError(
            "--merge of several folders wants one to write to; name it, as in "
            "--gin.EXTRACT_DIR=teachers/all"
        )
    sources = [pathlib.Path(folder) for folder in folders]
    if (out / CONFIG_FILE).exists() and store.has_answers(out):
        sources += [out] if out.resolve() not in {s.resolve() for s in sources} else []
    held = [load.read(source) for source in sources]
    for source, other in zip(sources, held, strict=True):
        _refuse_other(other, first, source, sources[0])
    asked = _prepare(first, [first, *held], sources)
    for source in sources:
        # Refuses other prompts and rows before anything is written.
        planned.load(source, asked.units, asked.teaching, Share(), _REMEDY)
    # Its lock: a lone process that adds to a log would lose it to the merged one.
    locked = Store(out, (), Share())
    try:
        lines = store.merge(sources, out)
    finally:
        locked.close()
    asked.measure_prompt(*sources)
    extraction.describe(asked)
    print(", ".join(f"{count:,} lines on {unit}" for unit, count in lines.items()) or "no answers")
    progress = asked.load()
    print(extraction.summarise(asked, progress))
    return _end(asked, progress, store.absent(sources))


def _prepare(
    first: Extraction, held: Sequence[Extraction], sources: Sequence[pathlib.Path]
) -> Prepared:
    """What all of the extractions ask about, with the settings of the first."""
    splits = {split for each in held for split in each.extract.extract_splits}
    added = [*dict.fromkeys(e.extract.extract_inputs for e in held if e.extract.extract_inputs)]
    lacking = [source for source in sources if not added and inputs.ADDED in store.units(source)]
    if lacking:
        raise InputError(
            f"{lacking[0]} holds answers about inputs of no split, and no config.gin says which "
            "they were; add --gin.EXTRACT_INPUTS=file:PATH"
        )
    extract = dataclasses.replace(
        first.extract,
        extract_splits=tuple(split for split in SPLITS if split in splits),
        extract_inputs=added[0] if added else "",
    )
    asked = extraction.prepare(dataclasses.replace(first, extract=extract), Share())
    rows = {unit: {row.id: row for row in examples} for unit, examples in asked.units.items()}
    for other in added[1:]:
        for row in inputs.load(first.run.data, (), other)[inputs.ADDED]:
            rows[inputs.ADDED].setdefault(row.id, row)
    units = {unit: [*found.values()] for unit, found in rows.items()}
    # An earlier call may have asked about splits that no config.gin names any more.
    held_units = {unit for source in sources for unit in store.units(source)}
    evaluated = inputs.evaluated(first.run.data, {*units, *held_units})
    teaching = dataclasses.replace(asked.teaching, evaluated=evaluated)
    return dataclasses.replace(asked, units=units, teaching=teaching)


def _refuse_other(
    other: Extraction, first: Extraction, folder: pathlib.Path, beside: pathlib.Path
) -> None:
    """Raises InputError where two folders' answers cannot lie in one."""
    changed = load.difference(other, first)
    if changed:
        listed = ", ".join(f"{n}={old!r} (there {new!r})" for n, (old, new) in changed.items())
        raise InputError(
            f"{folder} holds another extraction than {beside}, with {listed}; {_REMEDY}"
        )


def _end(asked: Prepared, progress: ResumeState, absent: Sequence[Share]) -> int:
    """Says what is missing; returns the exit code."""
    left = sum(bool([*asked.teaching.open(row)]) for row in progress.rows) + progress.beyond
    if not left:
        return 0
    named = ", ".join(f"{share.worker} of {share.workers}" for share in absent)
    why = f"; of these workers no answers are in the folders named: {named}" if absent else ""
    print(
        f"{left:,} of {progress.wanted:,} rows are not done{why}; merge again when they are, or "
        f"ask on in {asked.folder}"
    )
    return EXIT_INCOMPLETE
