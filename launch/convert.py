"""Lists or converts a checkpoint: python -m launch.convert CHECKPOINT [--to=FORM --out=FOLDER]

CHECKPOINT is the folder of a run (its best step on validation; --gin.EVAL_STEP chooses another, as
in launch.eval) or of one of its steps, of a Hugging Face model (or hf:OWNER/NAME), or of a T5X
checkpoint (checkpoint_STEP, native or Orbax, local or gs://). Without --to it is listed: every
array with shape, dtype and size. Nothing is downloaded but what hf: and gs:// name.
"""

from __future__ import annotations

from absl import flags

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.export import convert
from stepdistill_jax.spec import InputError

_TO = flags.DEFINE_string(
    "to",
    "",
    "hf: a folder for T5ForConditionalGeneration and AutoTokenizer, with a model card (of a run) | "
    "orbax: what INITIAL_CHECKPOINT and evaluation of this package read | t5x, t5x_scanned: T5X's "
    "native form, for its minimal network or for scalable_t5.",
)
_OUT = flags.DEFINE_string("out", "", "Folder to be made; it may exist if it is empty.")
_SCAN_LAYERS = flags.DEFINE_bool(
    "scan_layers",
    True,
    "--to=orbax from Hugging Face or T5X: layers stacked, as SCAN_LAYERS of the runs that will "
    "start from it.",
)


def main(arguments: Arguments) -> None:
    """Lists or converts the checkpoint that is named."""
    if arguments.gin_files:
        raise InputError(
            f"--gin_file={arguments.gin_files[0]}: a run's folder brings its own config.gin; leave "
            "it out"
        )
    if len(arguments.positional) != 1:
        raise InputError(
            f"{len(arguments.positional)} checkpoints are named, expected one: python -m "
            "launch.convert CHECKPOINT [--to=FORM --out=FOLDER]"
        )
    name = arguments.positional[0]
    if _TO.value and _TO.value not in convert.KINDS:
        raise InputError(f"--to={_TO.value}: expected one of {', '.join(convert.KINDS)}")
    if bool(_TO.value) != bool(_OUT.value):
        given, missing = ("--to", "--out") if _TO.value else ("--out", "--to")
        raise InputError(f"{given} is given and {missing} is not; --help lists the forms")
    source = convert.open_source(
        name, arguments.overrides, scan_layers=_SCAN_LAYERS.value, listing=not _TO.value
    )
    if not _TO.value:
        print(convert.listing(source))
        return
    written = convert.convert(source, _TO.value, _OUT.value)
    print(f"{_OUT.value}: {written}")


if __name__ == "__main__":
    run_with_arguments(main)
