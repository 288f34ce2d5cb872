"""Finds runs below folders and reads their results."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.run.results import Result, read_results
from stepdistill_jax.spec import (
    CHECKPOINTS,
    CONFIG_FILE,
    EVAL_FOLDER,
    RESULTS_FILE,
    TENSORBOARD_FOLDER,
    InputError,
)

# Folders of a run, which hold no other runs.
_RUN_FOLDERS = frozenset({CHECKPOINTS, EVAL_FOLDER, TENSORBOARD_FOLDER})


@dataclasses.dataclass(frozen=True)
class Line:
    """One result of a run.

    Attributes:
        run: name of the run, unique in the report.
        folder: of the run.
    """

    run: str
    folder: epath.Path
    result: Result


@dataclasses.dataclass(frozen=True)
class Runs:
    """All runs of a report.

    Attributes:
        lines: every result of every run, ordered by the names of the runs.
        empty: names of runs that have started and have no result yet.
    """

    lines: tuple[Line, ...]
    empty: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Sorted names of the runs with results."""
        return sorted({line.run for line in self.lines})


def read_runs(folders: Sequence[epath.PathLike]) -> Runs:
    """The results of all runs in `folders`, at any depth; each run counts once.

    Raises:
        InputError: a folder does not exist or holds no run, no run has a result, or a line is
            damaged.
    """
    names_of: dict[str, tuple[str, ...]] = {}
    for root in map(epath.Path, folders):
        if not root.is_dir():
            raise InputError(f"{root}: no such folder. Name folders of runs, or their parents.")
        below = [*_runs_below(root)]
        if not below:
            raise InputError(
                f"{root}: no run in it or below: a run's folder holds {RESULTS_FILE} or "
                f"{CONFIG_FILE}. Name folders of runs, or their parents."
            )
        for folder in below:
            names_of.setdefault(storage.absolute(folder), _possible_names(root, folder))
    lines: list[Line] = []
    empty: list[str] = []
    for path, name in sorted(_unique_names(names_of).items(), key=lambda item: item[1]):
        results = _read(epath.Path(path))
        lines += [Line(name, epath.Path(path), result) for result in results]
        if not results:
            empty.append(name)
    if not lines:
        raise InputError(
            f"{', '.join(map(os.fspath, folders))}: no results: {len(empty)} runs have started and "
            "none is scored. Let one finish, or score it with launch.eval."
        )
    return Runs(tuple(lines), tuple(empty))


def _runs_below(folder: epath.Path) -> Iterator[epath.Path]:
    if (folder / RESULTS_FILE).exists():
        yield folder
        return
    below = [
        run
        for child in sorted(folder.iterdir())
        if child.name not in _RUN_FOLDERS and not child.name.startswith(".") and child.is_dir()
        for run in _runs_below(child)
    ]
    yield from below
    # A run that has started has a configuration before any result.
    if not below and (folder / CONFIG_FILE).exists():
        yield folder


def _possible_names(root: epath.Path, run: epath.Path) -> tuple[str, ...]:
    """The run's path below `root`, or its folder's name; then longer and longer ends of its path.

    The first ones do not depend on the place of `root`: a copy elsewhere gives the same report.
    """
    inside = os.path.relpath(storage.absolute(run), storage.absolute(root)).split(os.sep)
    parts = storage.absolute(run).split(os.sep)
    return tuple(os.sep.join(parts[-n:]) for n in range(len(inside), len(parts) + 1))


def _unique_names(names_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Folder -> the shortest of its possible names that no other folder has."""
    counts = collections.Counter(name for names in names_of.values() for name in {*names})
    return {path: next(n for n in names if counts[n] == 1) for path, names in names_of.items()}


def _read(folder: epath.Path) -> list[Result]:
    try:
        results = read_results(folder)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    for number, result in enumerate(results, start=1):
        for name in ("accuracy", "fraction"):
            value = getattr(result, name)
            if not (isinstance(value, int | float) and 0 <= value <= 1):
                raise InputError(
                    f"{folder / RESULTS_FILE}:{number}: {name}: got {value!r}, expected a number "
                    "from 0 to 1. Remove the line and score the run again."
                )
    return results
