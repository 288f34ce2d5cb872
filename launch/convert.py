"""Lists or converts a checkpoint: python -m launch.convert CHECKPOINT [--to=FORM --out=FOLDER]

CHECKPOINT is the folder of
  a run: its best step on validation, or the step of --gin.EVAL_STEP as in launch.eval;
  one step of a run;
  a Hugging Face model, or hf:OWNER/NAME;
  a T5X checkpoint (checkpoint_STEP, native or Orbax, local or gs://).
Without --to, prints every array with shape, dtype and size. Downloads only what hf: and gs:// name.
"""

from __future__ import annotations

from absl import flags

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.export import checkpoints, conversion
from stepdistill_jax.spec import InputError

_TO = flags.DEFINE_string(
    "to",
    "",
    "hf: for T5ForConditionalGeneration and AutoTokenizer, with a model card (needs a run) | "
    "orbax: for INITIAL_CHECKPOINT and launch.eval | t5x, t5x_scanned: T5X's native form, for its "
    "minimal network or scalable_t5.",
)
_OUT = flags.DEFINE_string("out", "", "Output folder; must be new or empty.")
_SCAN_LAYERS = flags.DEFINE_bool(
    "scan_layers",
    True,
    "--to=orbax from Hugging Face or T5X: stack the layers; use SCAN_LAYERS of the runs that will "
    "start from the result.",
)


def main(arguments: Arguments) -> None:
    """Lists or converts one checkpoint."""
    if arguments.gin_files:
        raise InputError(
            f"--gin_file={arguments.gin_files[0]}: launch.convert reads the config.gin of the run. "
            "Remove --gin_file."
        )
    if len(arguments.positional) != 1:
        raise InputError(
            f"wrong number of checkpoints: got {len(arguments.positional)}, expected 1. Run "
            "python -m launch.convert CHECKPOINT [--to=FORM --out=FOLDER]."
        )
    if _TO.value and _TO.value not in checkpoints.FORMS:
        raise InputError(f"--to={_TO.value}: expected one of {', '.join(checkpoints.FORMS)}.")
    if bool(_TO.value) != bool(_OUT.value):
        present, missing = ("--to", "--out") if _TO.value else ("--out", "--to")
        raise InputError(f"{present} needs {missing} too. Add {missing}; --help lists the forms.")
    checkpoint = checkpoints.open_checkpoint(
        arguments.positional[0],
        arguments.overrides,
        scan_layers=_SCAN_LAYERS.value,
        listing=not _TO.value,
    )
    if not _TO.value:
        print(checkpoints.listing(checkpoint))
        return
    print(f"{_OUT.value}: {conversion.convert(checkpoint, _TO.value, _OUT.value)}")


if __name__ == "__main__":
    run_with_arguments(main)
