"""Measures a run: python -m launch.bench --gin_file=cqa.gin [--gin.NAME=value] [--json=FILE]

After warm-up and repeated: train steps packed and unpacked in turns, label decoding, the input
pipeline alone, memory, the building of the token cache, and with --startup the time from a train
command to its first step. Parameters are fresh, whatever INITIAL_CHECKPOINT says: speed does not
depend on them. Nothing is written to MODEL_DIR.

--against=recipe measures the released code's recipe in PyTorch and ours in turns instead; with
--trajectories=FOLDER it lets both train on the same batches and writes how far apart they are.
"""

from __future__ import annotations

import dataclasses
import os

import jax
from absl import flags

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import records
from stepdistill_jax.bench import against_recipe, benchmark, machine, report, trajectories
from stepdistill_jax.bench.measure import Measurement
from stepdistill_jax.bench.official_recipe import require_torch
from stepdistill_jax.parallel import cluster
from stepdistill_jax.spec import InputError

_WINDOWS = flags.DEFINE_integer("windows", 5, "Timed windows of each measurement.", lower_bound=1)
_STEPS = flags.DEFINE_integer(
    "steps_per_window",
    0,
    "Train steps of a window; 0 = as many as take two seconds.",
    lower_bound=0,
)
_CACHE_BUILD = flags.DEFINE_bool(
    "cache_build", True, "Also time the building of a token cache, where TensorFlow is installed."
)
_STARTUP = flags.DEFINE_bool(
    "startup", False, "Also time launch.train from its command to the end of its first step."
)
_AGAINST = flags.DEFINE_enum("against", None, ["recipe"], "Measure in turns with this instead.")
_TRAJECTORIES = flags.DEFINE_string(
    "trajectories", "", "With --against: compare the runs themselves, and write them here."
)
_RUN_STEPS = flags.DEFINE_integer("trajectory_steps", 100, "Steps of each.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("trajectory_seeds", 1, "Runs of each.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "Also write the results to this file.")


def main(arguments: Arguments) -> None:
    """Measures what the flags ask for and prints it."""
    arguments.refuse_positional()
    config = arguments.parse()
    if _AGAINST.value:
        require_torch()
    left_out: list[str] = []
    found: list[Measurement] = []
    if _TRAJECTORIES.value:
        if not _AGAINST.value:
            raise InputError("--trajectories compares two trainers; add --against=recipe")
        benchmark.say("both trainers on the same batches")
        found += trajectories.follow(config, _RUN_STEPS.value, _SEEDS.value, _TRAJECTORIES.value)
        shapes = {}
    else:
        # First of all: an accelerator belongs to one process at a time.
        if _STARTUP.value:
            benchmark.say("start-up")
            found += benchmark.start_up(
                arguments.gin_files,
                arguments.overrides,
                arguments.search_paths,
                _WINDOWS.value,
                left_out,
            )
        if _AGAINST.value:
            # JAX would take three quarters of a GPU at once, and leave PyTorch the rest.
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        cluster.start()
        parts = benchmark.Benchmark(config, _WINDOWS.value)
        if _AGAINST.value:
            found += against_recipe.measure(parts, _STEPS.value)
        else:
            found += benchmark.measure(parts, _STEPS.value, _CACHE_BUILD.value, left_out)
        shapes = {f"{mode} batch": dataclasses.asdict(s) for mode, s in parts.shapes.items()}
    if jax.process_index() == 0:
        about = {"machine": machine.machine(), "run": benchmark.settings(config), **shapes}
        print(report.text(about, found, left_out))
        if _JSON.value:
            records.write_atomic(_JSON.value, report.as_json(about, found, left_out))


if __name__ == "__main__":
    run_with_arguments(main)
