"""Expands a sweep file into runs: every combination of its axes.

A run takes its settings from, in this order: run file, method file, model file, sweep file, axes
of the matrix, flags. The last value of a macro wins. The run's name, which is also its folder in
SWEEP_DIR, consists of run file, method file, LABELS, model, FRACTION, settings of SWEEP_GRID and
SEED: ``cqa-step_by_step-gold-t5_1_1_base-f0.125-learning_rate=0.0001-s0``.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.gin_files import (
    Setting,
    fields,
    find,
    gin_folder,
    override,
    read_file,
    resolve,
    typed,
)
from stepdistill_jax.spec import InputError
from stepdistill_jax.sweep.config import SweepConfig, macros

_TEACHER = "teacher"
# Every setting of a sweep begins with it, and no setting of a run.
_PREFIX = "SWEEP_"
# Macros that the matrix sets -> what a user sets instead.
_AXES = {
    "MODEL_DIR": "set SWEEP_DIR",
    "METHOD": "set SWEEP_METHODS",
    "RATIONALES": "set it in your own method file and name that in SWEEP_METHODS",
    "FRACTION": "set SWEEP_FRACTIONS",
    "SEED": "set SWEEP_SEEDS",
}
_DATA_SEED_AXIS = {"DATA_SEED": "set SWEEP_SEEDS, or SWEEP_DATA_SEEDS='fixed'"}
_LABELS_AXIS = {"LABELS": "set SWEEP_LABELS"}


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of the matrix.

    Attributes:
        name: of its folder in SWEEP_DIR.
        data: name of its run file.
        method: name of its method file.
        model: name of its model file, or its sizes; "" if nothing is trained.
        config: its MODEL_DIR is SWEEP_DIR/name.
        grid: its settings of SWEEP_GRID, as ``learning_rate=0.0001``.
    """

    name: str
    data: str
    method: str
    model: str
    config: RunConfig
    grid: tuple[str, ...] = ()

    @property
    def cell(self) -> tuple[str, str, str, str, float]:
        """What runs that differ only in their seed and their settings of SWEEP_GRID share."""
        return (self.data, self.method, self.labels, self.model, self.config.data.fraction)

    @property
    def variant(self) -> tuple[str, str, str, str, float, tuple[str, ...]]:
        """What runs that differ only in their seed share."""
        return (*self.cell, self.grid)

    @property
    def labels(self) -> str:
        """LABELS, or "" if nothing is trained."""
        return self.config.data.labels if self.config.streams else ""


@dataclasses.dataclass(frozen=True)
class ImpossibleRun:
    """A run whose settings or data are wrong, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The runs of a sweep.

    Attributes:
        runs: in the order of training, without duplicates.
        impossible: combinations whose settings contradict each other.
        repeated: how many combinations were duplicates of `runs`.
    """

    config: SweepConfig
    runs: tuple[PlannedRun, ...]
    impossible: tuple[ImpossibleRun, ...]
    repeated: int


@dataclasses.dataclass(frozen=True)
class _File:
    """A run, method or model file that the matrix names."""

    name: str
    settings: tuple[Setting, ...]


@dataclasses.dataclass(frozen=True)
class _Point:
    """One combination of the axes, which may be impossible."""

    data: _File
    method: _File
    model: _File | None
    labels: str | None
    fraction: float
    seed: int
    grid: tuple[Setting, ...] = ()


def read(
    gin_files: Sequence[epath.PathLike],
    overrides: Sequence[str] = (),
    search_paths: Sequence[epath.PathLike] = (),
) -> Matrix:
    """Reads sweep files in order, then overrides, and expands them.

    Arguments are those of `run.load.parse`. A macro of a run applies to all runs, and files that a
    sweep file names may lie beside it.

    Raises:
        InputError: a file is missing or wrong, a name is unknown, or a setting is an axis.
    """
    if not gin_files:
        raise InputError(
            "--gin_file is missing. Name a sweep file, as in --gin_file=sweeps/demo.gin; --help "
            "lists the shipped ones."
        )
    all_macros = {**configs.macros(), **macros()}
    paths = [find(str(name), (".", *search_paths), "--gin_file") for name in gin_files]
    # The folder of the sweep file comes last: sweeps/demo.gin names demo.gin, the run file.
    beside = (path.parent for path in paths)
    folders = (".", *search_paths, gin_folder(), *beside)
    in_files = [setting for path in paths for setting in read_file(path, all_macros, folders)]
    flags = [override(text, all_macros) for text in overrides]
    resolved = resolve([*in_files, *flags], all_macros)
    _refuse_run_file(gin_files[0], in_files, flags)
    config = SweepConfig(**fields(macros(), resolved))
    _refuse_axes(config, resolved)
    common = [s for s in in_files if not s.name.startswith(_PREFIX)]
    last = [s for s in flags if not s.name.startswith(_PREFIX)]
    return _expand(config, common, last, folders)


def _refuse_run_file(
    name: epath.PathLike, in_files: Sequence[Setting], flags: Sequence[Setting]
) -> None:
    is_sweep_file = any(setting.name.startswith(_PREFIX) for setting in in_files)
    if not is_sweep_file and all(setting.name != "SWEEP_RUN_FILES" for setting in flags):
        raise InputError(
            f"{name} is a run file; train it with python -m launch.train --gin_file={name}. For a "
            'sweep, write a file with SWEEP_DIR = "runs/sweep" and SWEEP_RUN_FILES = '
            f'("{name}",).'
        )


def _refuse_axes(config: SweepConfig, resolved: dict[str, Setting]) -> None:
    axes = dict(_AXES)
    if config.data_seeds == "seed":
        axes |= _DATA_SEED_AXIS
    if config.labels:
        axes |= _LABELS_AXIS
    for name, remedy in axes.items():
        if name in resolved:
            raise InputError(
                f"{resolved[name].where}: {name} is an axis of the sweep. Instead, {remedy}."
            )
    for name, _ in config.grid:
        if name in axes:
            raise InputError(
                f"SWEEP_GRID: {name} is another axis of the sweep. Instead, {axes[name]}."
            )
        if name in resolved:
            raise InputError(
                f"{resolved[name].where}: {name} is set here and in SWEEP_GRID. Remove one of them."
            )


def _expand(
    config: SweepConfig,
    common: Sequence[Setting],
    flags: Sequence[Setting],
    folders: Sequence[epath.PathLike],
) -> Matrix:
    """Sorts the combinations into runs, impossible runs and duplicates."""
    runs: dict[RunConfig, PlannedRun] = {}
    impossible: dict[str, ImpossibleRun] = {}
    repeated = 0
    names: set[str] = set()
    for point in _points(config, folders):
        settings = [
            *point.data.settings,
            *point.method.settings,
            *(point.model.settings if point.model else ()),
            *common,
            *_axes(config, point),
            *flags,
        ]
        run = _planned(config, point, settings, spare={s.name for s in common})
        names.add(run.name)
        if not _is_wanted(config, run.name):
            continue
        if isinstance(run, ImpossibleRun):
            impossible.setdefault(run.name, run)
            continue
        first = runs.setdefault(dataclasses.replace(run.config, model_dir="-"), run)
        repeated += first is not run
    _refuse_unused_patterns(config, names)
    _refuse_ambiguous_names(runs.values())
    return Matrix(config, tuple(runs.values()), tuple(impossible.values()), repeated)


def _points(config: SweepConfig, folders: Sequence[epath.PathLike]) -> Iterator[_Point]:
    """The combinations, seeds outermost: a stopped sweep has complete tables of fewer seeds."""
    data = [_file("SWEEP_RUN_FILES", "", name, folders) for name in config.run_files]
    methods = [_file("SWEEP_METHODS", "methods", name, folders) for name in config.methods]
    models: list[_File | None] = [
        _file("SWEEP_MODELS", "models", name, folders) for name in config.models
    ]
    axes = [[Setting(name, v, "SWEEP_GRID") for v in values] for name, values in config.grid]
    teachers: set[tuple[str, str]] = set()
    for seed, run_file, method in itertools.product(config.seeds, data, methods):
        if _last(method, "METHOD") == _TEACHER:
            # Nothing is trained: model, fraction and seed do not matter.
            if (run_file.name, method.name) not in teachers:
                teachers.add((run_file.name, method.name))
                yield _Point(run_file, method, None, None, 1.0, 0)
            continue
        labels: Sequence[str | None] = config.labels or (None,)
        for label, model, fraction in itertools.product(labels, models or [None], config.fractions):
            for grid in itertools.product(*axes):
                yield _Point(run_file, method, model, label, fraction, seed, grid)


def _file(macro: str, folder: str, name: str, folders: Sequence[epath.PathLike]) -> _File:
    """Finds and reads a file by path, or by name in a shipped folder."""
    file_name = name if name.endswith(".gin") else str(pathlib.PurePath(folder, f"{name}.gin"))
    path = find(file_name, folders, macro)
    return _File(path.stem, tuple(configs.read_settings(path, folders)))


def _last(file: _File, macro: str) -> Any:
    """The last value of a macro in a file; None without one."""
    return next((s.value for s in reversed(file.settings) if s.name == macro), None)


def _axes(config: SweepConfig, point: _Point) -> Iterator[Setting]:
    """The settings that the matrix itself makes."""
    yield Setting("FRACTION", point.fraction, "SWEEP_FRACTIONS")
    yield Setting("SEED", point.seed, "SWEEP_SEEDS")
    if config.data_seeds == "seed" and _last(point.method, "METHOD") != _TEACHER:
        yield Setting("DATA_SEED", point.seed, "SWEEP_DATA_SEEDS")
    if point.labels is not None:
        yield Setting("LABELS", point.labels, "SWEEP_LABELS")
    yield from point.grid


def _grid_text(setting: Setting) -> str:
    """A setting of SWEEP_GRID as a part of a folder's name."""
    value = setting.value
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    return f"{setting.name.lower()}={re.sub(r'[^A-Za-z0-9_.+-]+', '_', text)}"


def _planned(
    config: SweepConfig, point: _Point, settings: list[Setting], spare: set[str]
) -> PlannedRun | ImpossibleRun:
    """The run of a combination.

    Raises:
        InputError: a setting is wrong in every combination.
    """
    resolved = resolve(settings, configs.macros(), spare)
    values = {
        name: typed(macro, resolved[name]) if name in resolved else macro.default
        for name, macro in configs.macros().items()
    }
    grid = tuple(map(_grid_text, point.grid))
    if values["METHOD"] == _TEACHER:
        model = ""
        name = f"{point.data.name}-{point.method.name}"
    else:
        sizes = {
            macro.field: values[name]
            for name, macro in configs.macros().items()
            if macro.config is T5Config
        }
        model = point.model.name if point.model else configs.model_name(T5Config(**sizes))
        share = f"f{point.fraction:.12g}"
        files = (point.data.name, point.method.name)
        name = "-".join((*files, values["LABELS"], model, share, *grid, f"s{point.seed}"))
    place = Setting("MODEL_DIR", str(pathlib.Path(config.dir) / name), "SWEEP_DIR")
    try:
        run_config = configs.from_settings([*settings, place], spare)
    except InputError as error:
        return ImpossibleRun(name, str(error))
    return PlannedRun(name, point.data.name, point.method.name, model, run_config, grid)


def _is_wanted(config: SweepConfig, name: str) -> bool:
    if config.only and not any(fnmatch.fnmatchcase(name, p) for p in config.only):
        return False
    return not any(fnmatch.fnmatchcase(name, p) for p in config.exclude)


def _refuse_unused_patterns(config: SweepConfig, names: set[str]) -> None:
    for macro, patterns in (("SWEEP_ONLY", config.only), ("SWEEP_EXCLUDE", config.exclude)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise InputError(
                    f"{macro}: {pattern!r} matches none of the {len(names)} runs. Correct the "
                    f"pattern; one run is named {min(names)!r}."
                )


def _refuse_ambiguous_names(runs: Iterable[PlannedRun]) -> None:
    by_name: dict[str, PlannedRun] = {}
    for run in runs:
        other = by_name.setdefault(run.name, run)
        if other is not run:
            differing = ", ".join(configs.difference(other.config, run.config))
            raise InputError(
                f"two different runs have the name {run.name}: they differ in {differing}. Rename "
                "one of the files in SWEEP_RUN_FILES, SWEEP_METHODS or SWEEP_MODELS."
            )
