"""Plans a run on TPUs you do not have: python -m launch.plan --gin_file=F --topology=v5e:4x4

Compiles the run's train step and label decode with XLA's TPU compiler (extra tpu), on any machine.
Prints for each: HBM per device and whether it fits, FLOPs, HBM traffic, every collective by mesh
axis, and the roofline's lower bound on the time.

--search tries meshes and remat policies and finds the largest batch that fits. Exit code 4: a
program does not fit or did not compile; for a search, nothing fits.
"""

from __future__ import annotations

import jax
from absl import flags
from etils import epath

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import records
from stepdistill_jax.plan import tables
from stepdistill_jax.plan.compiler_process import CompilerProcess
from stepdistill_jax.plan.planner import Planner, batch_shapes
from stepdistill_jax.plan.program import EFFORTS
from stepdistill_jax.plan.topology import topology
from stepdistill_jax.run import load
from stepdistill_jax.spec import EXIT_INCOMPLETE, InputError

_TOPOLOGY = flags.DEFINE_list(
    "topology", [], "Slices, separated by commas: v5e:4x4, v5p:2x2x4, v5e:4x4*2 for two slices."
)
_SHAPE = flags.DEFINE_string(
    "shape", "", "Rows and tokens of a step, as 64x512x32x128; default: those of the data."
)
_EFFORT = flags.DEFINE_enum(
    "effort", "quick", list(EFFORTS), "quick skips autotuning; full compiles as on a TPU, slowly."
)
_SEARCH = flags.DEFINE_bool("search", False, "Find the best mesh, remat policy and batch.")
_JSON = flags.DEFINE_string("json", "", "Also write the plans to this file, as JSON.")
_HLO = flags.DEFINE_string("hlo", "", "Also write the compiled programs to this folder.")


def main(arguments: Arguments) -> int:
    """Plans for every topology; prints each plan when it is done, then all in one table."""
    arguments.refuse_positional()
    if not _TOPOLOGY.value:
        raise InputError("--topology is missing. Name slices, as --topology=v5e:4x4.")
    if _JSON.value:
        if epath.Path(_JSON.value).is_dir():
            raise InputError(f"--json={_JSON.value} is a folder. Name a file in it.")
        records.require_writable(f"--json={_JSON.value}", epath.Path(_JSON.value).parent)
    if _HLO.value:
        records.require_writable(f"--hlo={_HLO.value}", epath.Path(_HLO.value))
    # Plans are for TPUs, whatever devices this machine has.
    jax.config.update("jax_platforms", "cpu")
    config = arguments.parse()
    topologies = [topology(name) for name in _TOPOLOGY.value]
    shapes = batch_shapes(config, _SHAPE.value)
    if config.eval.mode == "choices" and not _SEARCH.value:
        print("EVAL_MODE='choices' needs less time than decoding, which is planned here")
    plans: list[tables.Planned] = []
    with CompilerProcess() as compiler:
        for target in topologies:
            planner = Planner(config, shapes, target, _EFFORT.value, compiler)
            for plan in planner.search() if _SEARCH.value else planner.plan():
                print(tables.summary([plan]) if _SEARCH.value else tables.text(plan), flush=True)
                if _HLO.value and plan.program.text:
                    path = f"{_HLO.value}/{len(plans)}_{plan.program.name.replace(' ', '_')}.txt"
                    records.write_atomic(path, plan.program.text)
                plans.append(plan)
    print(f"\n{tables.summary(plans)}")
    if _SEARCH.value:
        print(
            f"\nlargest batch that fits, by remat policy:\n{tables.summary(tables.largest(plans))}"
        )
    if _JSON.value:
        about = {
            "model": load.model_name(config.model),
            "dtype": config.model.dtype,
            "effort": _EFFORT.value,
            "jax": jax.__version__,
        }
        records.write_atomic(_JSON.value, tables.as_json(about, plans))
    # A search also compiles batches that do not fit.
    fitting = [plan.fits for plan in plans]
    return 0 if (any(fitting) if _SEARCH.value else all(fitting)) else EXIT_INCOMPLETE


if __name__ == "__main__":
    run_with_arguments(main)
