"""Plans a run on TPUs that are not there: python -m launch.plan --gin_file=F --topology=v5e:4x4

Compiles the real train step and the real label decode by XLA's own TPU compiler (extra tpu) on
any machine, and prints for each: memory a device against the chip's, FLOPs, HBM traffic and every
collective by mesh axis, the roofline's lower bound on its time, and whether it fits.

--search tries meshes and remat policies and finds the largest batch that fits. Exit code 4:
something does not fit or was not compiled; of a search, nothing does fit.
"""

from __future__ import annotations

import tempfile
from typing import Any

import jax
from absl import flags
from etils import epath

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import records, storage
from stepdistill_jax.plan import plans, tables
from stepdistill_jax.plan.isolated import Isolated
from stepdistill_jax.plan.program import EFFORTS
from stepdistill_jax.plan.topology import topology
from stepdistill_jax.run import load as configs
from stepdistill_jax.spec import EXIT_INCOMPLETE, InputError

_TOPOLOGY = flags.DEFINE_list(
    "topology", [], "Slices, as v5e:4x4 or v5p:2x2x4, or v5e:4x4*2 for two; several by commas."
)
_SHAPE = flags.DEFINE_string(
    "shape", "", "Rows and tokens of a step, as 64x512x32x128; else the data's."
)
_EFFORT = flags.DEFINE_enum(
    "effort", "quick", list(EFFORTS), "How hard the compiler tries; full is as on a TPU, and slow."
)
_SEARCH = flags.DEFINE_bool("search", False, "Find the best mesh, remat policy and batch.")
_JSON = flags.DEFINE_string("json", "", "Also write the plans to this file.")
_HLO = flags.DEFINE_string("hlo", "", "Also write the compiled programs to this folder.")


def main(arguments: Arguments) -> int:
    """Plans for every topology; prints each as it is done, then all in one table."""
    arguments.refuse_positional()
    if not _TOPOLOGY.value:
        raise InputError("--topology is missing: name slices, as --topology=v5e:4x4")
    if _JSON.value:
        if epath.Path(_JSON.value).is_dir():
            raise InputError(f"--json={_JSON.value} is a folder; name a file in it")
        _refuse_unwritable(f"--json={_JSON.value}", epath.Path(_JSON.value).parent)
    if _HLO.value:
        _refuse_unwritable(f"--hlo={_HLO.value}", epath.Path(_HLO.value))
    # The plan is for TPUs, whatever this machine has.
    jax.config.update("jax_platforms", "cpu")
    config = arguments.parse()
    slices = [topology(name) for name in _TOPOLOGY.value]
    work = plans.job(config, _SHAPE.value)
    if config.eval.mode == "choices" and not _SEARCH.value:
        print(
            "EVAL_MODE='choices' scores each choice in one pass; planned is decoding, which is more"
        )
    found: list[tables.Planned] = []
    with Isolated() as compiler:
        for target in slices:
            planned = (
                plans.searched(work, target, _EFFORT.value, compiler)
                if _SEARCH.value
                else plans.plans(config, work, target, _EFFORT.value, compiler)
            )
            for plan in planned:
                print(tables.summary([plan]) if _SEARCH.value else tables.text(plan), flush=True)
                if _HLO.value and plan.program.text:
                    path = f"{_HLO.value}/{len(found)}_{plan.program.name.replace(' ', '_')}.txt"
                    records.write_atomic(path, plan.program.text)
                found.append(plan)
    print(f"\n{tables.summary(found)}")
    if _SEARCH.value:
        print("\nlargest batch that fits, by remat policy:")
        print(tables.summary(tables.largest(found)))
    if _JSON.value:
        about: dict[str, Any] = {
            "model": configs.model_name(config.model),
            "dtype": config.model.dtype,
            "effort": _EFFORT.value,
            "jax": jax.__version__,
        }
        records.write_atomic(_JSON.value, tables.as_json(about, found))
    # A search looks for what does not fit, too.
    fitting = [plan.fits for plan in found]
    return 0 if (any(fitting) if _SEARCH.value else all(fitting)) else EXIT_INCOMPLETE


def _refuse_unwritable(flag: str, folder: epath.Path) -> None:
    """Before minutes of compiling whose outcome could not be written."""
    if storage.is_remote(folder):
        storage.check(flag.partition("=")[0], folder, write=True)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in the way" if in_the_way else error.strerror
        raise InputError(
            f"{flag}: {folder} cannot be written: {reason}; choose another folder"
        ) from error


if __name__ == "__main__":
    run_with_arguments(main)
