"""Finds runs below folders and reads their results."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

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


def read_runs(
    folders: Sequence[epath.PathLike],
    identity: Callable[[epath.Path], Mapping[str, str]] = lambda folder: {},
) -> Runs:
    """The results of all runs in `folders`, at any depth; each run counts once.

    Args:
        folders: of runs, or their parents.
        identity: folder of a run -> `RunFacts.settings`, for results of earlier versions.

    Raises:
        InputError: a folder does not exist or holds no run, no run has a result, or a line is
            damaged.
    """
    minimum_parts: dict[str, int] = {}
    for root in map(epath.Path, folders):
        if not root.is_dir():
            raise InputError(f"{root}: no such folder. Name folders of runs, or their parents.")
        below = [*_runs_below(root)]
        if not below:
            raise InputError(
                f"{root}: no run in it or below: a run's folder holds {RESULTS_FILE} or "
                f"{CONFIG_FILE}. Name folders of runs, or their parents."
            )
        for folder in map(storage.absolute, below):
            # Names below the given folder do not depend on the place of that folder.
            inside = os.path.relpath(folder, storage.absolute(root))
            minimum_parts.setdefault(folder, len(inside.split(os.sep)))
    lines: list[Line] = []
    empty: list[str] = []
    for path, name in sorted(unique_names(minimum_parts).items(), key=lambda item: item[1]):
        results = _read(epath.Path(path), identity)
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


def unique_names(minimum_parts: Mapping[str, int]) -> dict[str, str]:
    """Absolute path -> its shortest end that no other path has.

    Args:
        minimum_parts: absolute path -> minimum number of parts of its name.
    """
    ends = {
        path: [os.sep.join(parts[-n:]) for n in range(minimum, len(parts) + 1)]
        for path, minimum in minimum_parts.items()
        for parts in [path.split(os.sep)]
    }
    counts = collections.Counter(end for of_path in ends.values() for end in {*of_path})
    return {path: next(e for e in of_path if counts[e] == 1) for path, of_path in ends.items()}


def _read(folder: epath.Path, identity: Callable[[epath.Path], Mapping[str, str]]) -> list[Result]:
    try:
        results = read_results(folder, functools.cache(lambda: identity(folder)))
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
