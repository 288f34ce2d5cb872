"""Downloads and checks the paper's data, or checks your own, and prints a table of statistics.

    python -m launch.prepare --data_dir=data --vocabulary=spiece.model
    python -m launch.prepare --gin_file=own.gin        # your own data set

A missing split is shown as missing; a damaged file is an error.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import records
from stepdistill_jax.data import audit, survey, vocabulary
from stepdistill_jax.data.config import DATA_DIR_VARIABLE, TokenConfig
from stepdistill_jax.spec import InputError

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    "",
    f"Folder of the paper's data. Default: ${DATA_DIR_VARIABLE}, else the cache folder "
    "that training uses when DATA_DIR is not set.",
)
_DATASETS = flags.DEFINE_list(
    "datasets",
    [],
    f"Some of {','.join(survey.RELEASED)}. Default: those in DATA_DIR; all if it has none.",
)
_DOWNLOAD = flags.DEFINE_bool(
    "download",
    None,
    "Download all missing files, or (--nodownload) none. Default: only data sets without any file.",
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    "",
    "Vocabulary for token counts: a SentencePiece model, hf:OWNER/NAME or bytes. Default: the gin "
    f"file's, else ${vocabulary.ENVIRONMENT}; without one, tokens are not counted.",
)
_JSON = flags.DEFINE_string("json", "", "Also write the table's numbers to this file.")


def main(arguments: Arguments) -> None:
    """Prints the table of what the flags name."""
    if arguments.positional or (arguments.overrides and not arguments.gin_files):
        unused = (*arguments.positional, *(f"--gin.{o}" for o in arguments.overrides))
        raise InputError(f"{' '.join(unused)}: no effect without --gin_file. Pass --gin_file.")
    if arguments.gin_files:
        run = arguments.parse()
        tokens = survey.tokenizer(run.tokens, _VOCABULARY.value)
        audits = survey.survey_pairs(
            run.data,
            tokens,
            run.eval.max_decode_length,
            scores_choices=run.eval.mode == "choices",
        )
    else:
        tokens = survey.tokenizer(TokenConfig(), _VOCABULARY.value)
        audits = survey.survey_release(_DATA_DIR.value, _DATASETS.value, _DOWNLOAD.value, tokens)
    print(f"{audit.table(audits)}\n\n{survey.notes(audits, tokens)}")
    if _JSON.value:
        numbers = {"quantiles": audit.QUANTILES, "splits": [*map(dataclasses.asdict, audits)]}
        records.write_atomic(_JSON.value, json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    run_with_arguments(main)
