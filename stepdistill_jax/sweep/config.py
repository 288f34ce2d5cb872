"""The settings of a sweep: the axes of its matrix."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from stepdistill_jax import settings as declarations
from stepdistill_jax.run import load
from stepdistill_jax.settings import Macro, check, setting
from stepdistill_jax.spec import InputError


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """The axes of a sweep. A sweep file sets these, and any setting of a run for every run."""

    HEADING = "Sweep"

    dir: str = setting(
        "",
        "Folder of the sweep: one folder per run, and sweep.json. Runs in it are continued.",
        macro="SWEEP_DIR",
    )
    run_files: tuple[str, ...] = setting(
        (), "Run files, one per data set: ('cqa.gin', 'svamp.gin').", macro="SWEEP_RUN_FILES"
    )
    methods: tuple[str, ...] = setting(
        ("standard", "step_by_step"),
        "Methods: names of files in methods/, or paths. 'teacher' is one run per data set.",
        macro="SWEEP_METHODS",
    )
    labels: tuple[str, ...] = setting(
        (),
        "LABELS of every method that trains: 'gold', 'teacher'; () = as the method file says.",
        macro="SWEEP_LABELS",
    )
    fractions: tuple[float, ...] = setting(
        (1.0,), "Shares of the training examples, each in (0, 1].", macro="SWEEP_FRACTIONS"
    )
    models: tuple[str, ...] = setting(
        (),
        "Models: names of files in models/, or paths; () = as the run file says.",
        macro="SWEEP_MODELS",
    )
    grid: Any = setting(  # noqa: RUF009 (as every setting's; Any hides it from ruff)
        (),
        "Settings that every method tries, crossed: {'LEARNING_RATE': (1e-4, 5e-5), "
        "'WEIGHT_DECAY': (0.0, 0.1)}. The last table shows each method's best ones on validation.",
        macro="SWEEP_GRID",
    )
    seeds: tuple[int, ...] = setting(
        (0,),
        "SEED of each repetition. All runs of one seed come before those of the next.",
        macro="SWEEP_SEEDS",
    )
    data_seeds: str = setting(
        "seed",
        "DATA_SEED of each repetition.",
        macro="SWEEP_DATA_SEEDS",
        choices={
            "seed": "SEED, so that the spread over seeds includes the choice of examples.",
            "fixed": "as the run file says.",
        },
    )
    only: tuple[str, ...] = setting(
        (),
        "Run only the runs whose name matches one of these: ('cqa-*', '*-s0'); () = all.",
        macro="SWEEP_ONLY",
    )
    exclude: tuple[str, ...] = setting(
        (),
        "Leave out the runs whose name matches one of these: ('*-step_by_step_shuffled-*-f0.*',).",
        macro="SWEEP_EXCLUDE",
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.dir or "://" in self.dir:
            raise InputError(
                f"SWEEP_DIR: got {self.dir!r}, expected a folder on a disk, as in "
                "--gin.SWEEP_DIR=sweeps/first. Machines that share a sweep mount it."
            )
        if not all(_is_axis(item) for item in self.grid):
            raise InputError(
                f"SWEEP_GRID: got {self.grid!r}, expected settings and their values, as in "
                "{'LEARNING_RATE': (1e-4, 5e-5)}."
            )
        for macro in ("RUN_FILES", "METHODS", "FRACTIONS", "SEEDS"):
            if not getattr(self, macro.lower()):
                raise InputError(f"SWEEP_{macro}: got (), expected at least one.")


def _is_axis(item: Any) -> bool:
    """Whether it is a pair of a macro's name and one value or more."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], tuple)
        and item[1] != ()
    )


@functools.cache
def macros() -> dict[str, Macro]:
    """Every setting of a sweep by its macro, in the order of ``--help``."""
    return declarations.macros((SweepConfig,))


def help_text() -> str:
    """The macros of a sweep and the shipped gin files, for ``--help``."""
    return load.help_beside_a_run(
        "A sweep file sets these macros; see sweeps/demo.gin.",
        macros(),
        "A sweep file and --gin.NAME=value may also set any macro of a run, for all runs:",
    )
