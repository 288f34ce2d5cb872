"""Finds runs below folders and reads what they scored."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence

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

# A run that was started has it, before any result.
# Of a run; nothing below them is another run.
_OWN_FOLDERS = frozenset({CHECKPOINTS, EVAL_FOLDER, TENSORBOARD_FOLDER})


@dataclasses.dataclass(frozen=True)
class Line:
    """One result and the run that it is of.

    Attributes:
        run: the run's name in the report, unique in it.
        folder: where it lies.
        result: the line.
    """

    run: str
    folder: epath.Path
    result: Result


@dataclasses.dataclass(frozen=True)
class Runs:
    """What was found.

    Attributes:
        lines: every result of every run, ordered by the runs' names.
        empty: names of runs that were started and hold no result yet.
    """

    lines: tuple[Line, ...]
    empty: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Of the runs that hold results, sorted."""
        return sorted({line.run for line in self.lines})


def read_runs(folders: Sequence[epath.PathLike]) -> Runs:
    """The results of every run in `folders` and below them.

    Args:
        folders: runs, or folders that hold runs at any depth; a run that is found twice counts
            once.

    Raises:
        InputError: a folder does not exist or holds no run, no run holds a result, or a line is
            damaged.
    """
    found: dict[str, tuple[str, ...]] = {}
    for root in map(epath.Path, folders):
        if not root.is_dir():
            raise InputError(
                f"{root}: no such folder; name folders of runs, or one that holds them"
            )
        below = [*_runs_below(root)]
        if not below:
            raise InputError(
                f"{root}: no run in it or below (a run's folder holds {RESULTS_FILE} or "
                f"{CONFIG_FILE})"
            )
        for folder in below:
            found.setdefault(storage.absolute(folder), _names(root, folder))
    names = _distinct(found)
    lines: list[Line] = []
    empty: list[str] = []
    for path, name in sorted(names.items(), key=lambda item: item[1]):
        results = _read(epath.Path(path))
        lines += [Line(name, epath.Path(path), result) for result in results]
        if not results:
            empty.append(name)
    if not lines:
        raise InputError(
            f"no results in {', '.join(map(os.fspath, folders))}: {len(empty)} runs were started, "
            f"and none has been scored; let one finish, or score it with launch.eval"
        )
    return Runs(tuple(lines), tuple(empty))


def _runs_below(folder: epath.Path) -> Iterator[epath.Path]:
    if (folder / RESULTS_FILE).exists():
        yield folder
        return
    below = [
        run
        for child in sorted(folder.iterdir())
        if child.name not in _OWN_FOLDERS and not child.name.startswith(".") and child.is_dir()
        for run in _runs_below(child)
    ]
    yield from below
    if not below and (folder / CONFIG_FILE).exists():
        yield folder


def _names(root: epath.Path, run: epath.Path) -> tuple[str, ...]:
    """The run's path below `root`, or its folder's name; then ever longer ends of its path.

    The first do not depend on where `root` lies, so that a copy elsewhere gives the same report.
    """
    inside = os.path.relpath(storage.absolute(run), storage.absolute(root)).split(os.sep)
    parts = storage.absolute(run).split(os.sep)
    return tuple(os.sep.join(parts[-n:]) for n in range(len(inside), len(parts) + 1))


def _distinct(found: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Folder -> the shortest of its names that no other has."""
    counts = collections.Counter(name for names in found.values() for name in {*names})
    return {path: next(n for n in names if counts[n] == 1) for path, names in found.items()}


def _read(folder: epath.Path) -> list[Result]:
    try:
        results = read_results(folder)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    for number, result in enumerate(results, start=1):
        for name, value, low in (
            ("accuracy", result.accuracy, 0),
            ("fraction", result.fraction, 0),
        ):
            if not (isinstance(value, int | float) and low <= value <= 1):
                raise InputError(
                    f"{folder / RESULTS_FILE}:{number}: {name} is {value!r}, expected a number "
                    f"from 0 to 1; score the run anew"
                )
    return results
