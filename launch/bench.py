"""Measures a run: python -m launch.bench --gin_file=cqa.gin [--gin.NAME=value] [--json=FILE]

After warm-up and repeated: train steps packed and unpacked in turns, label decoding, the input
pipeline alone, memory, the building of the token cache, and with --startup the time from a train
command to its first step. Parameters are fresh, whatever INITIAL_CHECKPOINT says: speed does not
depend on them. Nothing is written to MODEL_DIR.
"""

from __future__ import annotations

import dataclasses
import sys

import jax
from absl import flags

from launch import benchmark
from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import records
from stepdistill_jax.bench import machine, report
from stepdistill_jax.bench.measure import Measurement
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
_JSON = flags.DEFINE_string("json", "", "Also write the results to this file.")


def main(arguments: Arguments) -> None:
    """Measures what the flags ask for and prints it."""
    if arguments.positional:
        raise InputError(f"{' '.join(arguments.positional)}: not a flag; write --gin_file=FILE")
    config = arguments.parse()
    builds = benchmark.has_tensorflow()
    left_out = []
    found: list[Measurement] = []
    # In the only order in which nothing disturbs the next: an accelerator belongs to one process
    # at a time, and TensorFlow, once imported, keeps its memory.
    if _STARTUP.value and builds:
        _say("start-up")
        found += benchmark.start_up(arguments, _WINDOWS.value)
    elif _STARTUP.value:
        left_out.append("start-up (a cold one needs TensorFlow and SeqIO, which are not installed)")
    parts = benchmark.Benchmark(config, _WINDOWS.value)
    _say("train steps, packed and unpacked")
    found += parts.train(_STEPS.value)
    _say("label decode")
    found += parts.decode()
    _say("pipeline")
    found += parts.pipeline()
    found += benchmark.memory()
    if _CACHE_BUILD.value and builds:
        _say("token cache build")
        found += parts.build()
    elif _CACHE_BUILD.value:
        left_out.append("token cache build (TensorFlow and SeqIO are not installed)")
    if jax.process_index() == 0:
        about = {"machine": machine.machine(), "run": benchmark.settings(config)}
        about |= {f"{mode} batch": dataclasses.asdict(s) for mode, s in parts.shapes.items()}
        print(report.text(about, found, left_out))
        if _JSON.value:
            records.write_atomic(_JSON.value, report.as_json(about, found, left_out))


def _say(what: str) -> None:
    """Tells whoever waits, apart from the results."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_with_arguments(main)
