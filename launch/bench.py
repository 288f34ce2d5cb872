"""Measures a run: python -m launch.bench --gin_file=cqa.gin [--gin.NAME=value] [--json=FILE]

Measures train steps (packed and unpacked in turns), label decoding, the input pipeline alone, peak
memory, the building of a token cache, and with --startup the time from a train command to the end
of its first step. Prints each figure when it is measured, and a table at the end. Parameters are
random, whatever INITIAL_CHECKPOINT is: speed does not depend on them. Writes nothing to MODEL_DIR.

--against=recipe compares with the released recipe in PyTorch instead, in turns. With
--trajectories=FOLDER both train on the same batches, and every step's differences are written.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from absl import flags

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import records
from stepdistill_jax.bench import machine, recipe_speed, recipe_trajectories, run_speed, startup
from stepdistill_jax.bench.measurement import Results
from stepdistill_jax.bench.official_recipe import check_supported, require_torch
from stepdistill_jax.parallel import cluster, processes
from stepdistill_jax.spec import InputError

_WINDOWS = flags.DEFINE_integer("windows", 5, "Timed windows of each measurement.", lower_bound=1)
_STEPS = flags.DEFINE_integer(
    "steps_per_window", 0, "Train steps of a window; 0 = about two seconds.", lower_bound=0
)
_CACHE_BUILD = flags.DEFINE_bool(
    "cache_build", True, "Also measure the building of a token cache, if TensorFlow is installed."
)
_STARTUP = flags.DEFINE_bool(
    "startup", False, "Also measure the time from launch.train to the end of its first step."
)
_AGAINST = flags.DEFINE_enum("against", None, ["recipe"], "Compare with this trainer instead.")
_TRAJECTORIES = flags.DEFINE_string(
    "trajectories", "", "With --against: compare training step by step; write it to this folder."
)
_RUN_STEPS = flags.DEFINE_integer(
    "trajectory_steps", 100, "Train steps of --trajectories.", lower_bound=1
)
_SEEDS = flags.DEFINE_integer("trajectory_seeds", 1, "Seeds of --trajectories.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "Also write the results to this file, as JSON.")


def main(arguments: Arguments) -> None:
    """Measures and prints."""
    arguments.refuse_positional()
    config = arguments.parse()
    if _TRAJECTORIES.value and not _AGAINST.value:
        raise InputError("--trajectories needs a second trainer. Add --against=recipe.")
    if _AGAINST.value:
        require_torch()
        check_supported(config)
    results = Results()
    shapes: dict[str, dict[str, Any]] = {}
    if _TRAJECTORIES.value:
        recipe_trajectories.compare(
            config, _RUN_STEPS.value, _SEEDS.value, _TRAJECTORIES.value, results
        )
    else:
        # First, because an accelerator serves one process at a time.
        if _STARTUP.value:
            startup.measure(
                arguments.gin_files,
                arguments.overrides,
                arguments.search_paths,
                _WINDOWS.value,
                results,
            )
        if _AGAINST.value:
            # By default JAX reserves three quarters of a GPU, which PyTorch needs too.
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        cluster.start()
        run = run_speed.BenchmarkRun(config, _WINDOWS.value)
        if _AGAINST.value:
            recipe_speed.measure(run, results, _STEPS.value)
        else:
            run_speed.measure(run, results, _STEPS.value, _CACHE_BUILD.value)
        shapes = {f"{mode} batch": dataclasses.asdict(s) for mode, s in run.shapes.items()}
    about = {"machine": machine.machine(), "run": run_speed.settings(config), **shapes}
    cluster.say(f"\n{results.text(about)}")
    if _JSON.value and processes.is_lead():
        records.write_atomic(_JSON.value, results.as_json(about))


if __name__ == "__main__":
    run_with_arguments(main)
