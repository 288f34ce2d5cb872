"""Joins extractions, or one folder's workers, into one folder that training reads."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from stepdistill_jax.data import inputs
from stepdistill_jax.spec import CONFIG_FILE, EXIT_INCOMPLETE, InputError
from stepdistill_jax.teacher import load, prompts, resume, store, summary
from stepdistill_jax.teacher.config import SPLITS
from stepdistill_jax.teacher.load import Extraction
from stepdistill_jax.teacher.prepared import Prepared, prepare
from stepdistill_jax.teacher.resume import ResumeState
from stepdistill_jax.teacher.store import ALONE, Store

_REMEDY = "Leave the folder out: only responses of one teacher and prompt can be joined."


def merge(folders: Sequence[str], overrides: Sequence[str]) -> int:
    """Joins folders, or one folder's workers; returns the exit code.

    The result covers all examples that any of the folders asked about.

    Raises:
        InputError: they hold extractions of different kinds, or different responses to one request.
    """
    first = load.read(folders[0], overrides)
    out = pathlib.Path(first.extract.extract_dir)
    if len(folders) > 1 and not any(text.startswith("EXTRACT_DIR=") for text in overrides):
        raise InputError(
            "--merge: several folders need one to write to. Name it, as in "
            "--gin.EXTRACT_DIR=teachers/all."
        )
    sources = [pathlib.Path(folder) for folder in folders]
    if (out / CONFIG_FILE).exists() and store.has_completions(out):
        sources += [out] if out.resolve() not in {s.resolve() for s in sources} else []
    extractions = [load.read(source) for source in sources]
    for source, other in zip(sources, extractions, strict=True):
        _refuse_other(other, first, source, sources[0])
    prepared = _prepare(first, [first, *extractions], sources)
    for source in sources:
        # Refuses other prompts and texts before anything is written.
        resume.load(source, prepared.units, prepared.annotator, ALONE, _REMEDY)
    # For its lock: lines that a lone process added to a log during the merge would be lost.
    lock = Store(out, (), ALONE)
    try:
        lines = store.merge(sources, out)
    finally:
        lock.close()
    prepared.write_settings(prompts.written_prefix_tokens(sources, prepared.annotator.prompt_hash))
    print(
        ", ".join(f"{count:,} lines on {unit}" for unit, count in lines.items()) or "no responses"
    )
    state = prepared.load()
    print(summary.write(prepared, state))
    return _end(prepared, state, sources)


def _prepare(
    first: Extraction, extractions: Sequence[Extraction], sources: Sequence[pathlib.Path]
) -> Prepared:
    """All examples that the extractions select, with the settings of the first."""
    splits = {split for each in extractions for split in each.extract.extract_splits}
    added = [
        *dict.fromkeys(e.extract.extract_inputs for e in extractions if e.extract.extract_inputs)
    ]
    missing = [source for source in sources if not added and inputs.ADDED in store.units(source)]
    if missing:
        raise InputError(
            f"{missing[0]} holds responses about added inputs, and no config.gin names their file. "
            "Add --gin.EXTRACT_INPUTS=file:PATH."
        )
    extract = dataclasses.replace(
        first.extract,
        extract_splits=tuple(split for split in SPLITS if split in splits),
        extract_inputs=added[0] if added else "",
        ask_failed_again=False,
    )
    prepared = prepare(dataclasses.replace(first, extract=extract), ALONE)
    units = {name: {each.id: each for each in unit} for name, unit in prepared.units.items()}
    for other in added[1:]:
        for example in inputs.load(first.run.data, (), other)[inputs.ADDED]:
            units[inputs.ADDED].setdefault(example.id, example)
    # An earlier call may have asked about splits that no config.gin names any more.
    logged = {unit for source in sources for unit in store.units(source)}
    evaluated = inputs.evaluated(first.run.data, {*units, *logged})
    return dataclasses.replace(
        prepared,
        units={name: [*unit.values()] for name, unit in units.items()},
        annotator=dataclasses.replace(prepared.annotator, evaluated=evaluated),
    )


def _refuse_other(
    other: Extraction, first: Extraction, folder: pathlib.Path, first_folder: pathlib.Path
) -> None:
    """Raises InputError where the responses of two folders cannot lie in one."""
    changed = load.difference(other, first)
    if changed:
        listed = ", ".join(f"{n}={old!r} (there {new!r})" for n, (old, new) in changed.items())
        raise InputError(
            f"{folder} holds another extraction than {first_folder}, with {listed}. {_REMEDY}"
        )


def _end(prepared: Prepared, state: ResumeState, sources: Sequence[pathlib.Path]) -> int:
    """Prints what is missing; returns the exit code."""
    left = sum(bool([*prepared.annotator.open(each)]) for each in state.states) + state.beyond
    if not left:
        return 0
    workers = [f"{share.worker} of {share.workers}" for share in store.missing_workers(sources)]
    reason = f"; no folder has responses of worker {', '.join(workers)}" if workers else ""
    print(
        f"{left:,} of {state.selected:,} examples are not done{reason}. Merge again when they are, "
        f"or continue in {prepared.folder}."
    )
    return EXIT_INCOMPLETE
