"""Downloads the paper's data, or checks that in DATA_DIR, and prints its statistics.

    python -m launch.prepare --data_dir=data --vocabulary=spiece.model
    python -m launch.prepare --gin_file=own.gin        # your own data set

A split that the release has and DATA_DIR lacks is shown as missing; a damaged file is an error.
"""

from __future__ import annotations

import dataclasses
import json
import os

from absl import flags

from launch.flags import Arguments, run_with_arguments
from stepdistill_jax import records
from stepdistill_jax.data import audit, release, survey, vocabulary
from stepdistill_jax.data.audit import SplitAudit
from stepdistill_jax.data.config import DATA_DIR_VARIABLE, TokenConfig
from stepdistill_jax.data.metrics import correct
from stepdistill_jax.data.survey import RELEASED, Tokens
from stepdistill_jax.spec import InputError

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    "",
    f"Folder of the release; default: the environment's {DATA_DIR_VARIABLE}, else the cache folder "
    "that training uses when DATA_DIR is not set.",
)
_DATASETS = flags.DEFINE_list(
    "datasets", [], f"Of {','.join(RELEASED)}; default: those in DATA_DIR, or all to download."
)
_DOWNLOAD = flags.DEFINE_bool(
    "download",
    None,
    "Download missing files, or never; default: only data sets without any file.",
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    "",
    "Counts tokens: a SentencePiece model, hf:OWNER/NAME or bytes; else the gin file's, or the "
    f"environment's {vocabulary.ENVIRONMENT}; without one tokens are not counted.",
)
_JSON = flags.DEFINE_string("json", "", "Also write the table's numbers to this file.")


def main(arguments: Arguments) -> None:
    """Prints the table of what the flags name."""
    if arguments.positional or (arguments.overrides and not arguments.gin_files):
        unused = (*arguments.positional, *(f"--gin.{o}" for o in arguments.overrides))
        raise InputError(f"{' '.join(unused)}: has no effect without --gin_file; see --help")
    if arguments.gin_files:
        run = arguments.parse()
        tokens = _tokens(run.tokens)
        audits = survey.survey_pairs(run.data, tokens, correct)
    else:
        tokens = _tokens(TokenConfig())
        audits = _released(tokens)
    print(f"{audit.table(audits)}\n\n{survey.notes(audits, tokens)}")
    if _JSON.value:
        numbers = {"quantiles": audit.QUANTILES, "splits": [*map(dataclasses.asdict, audits)]}
        records.write_atomic(_JSON.value, json.dumps(numbers, indent=2) + "\n")


def _tokens(config: TokenConfig) -> Tokens | None:
    name = _VOCABULARY.value or config.vocabulary or os.environ.get(vocabulary.ENVIRONMENT, "")
    if not name:
        return None
    if _VOCABULARY.value:
        loaded = vocabulary.load_vocabulary(name, "--vocabulary")
    else:
        loaded = vocabulary.load_vocabulary(config.vocabulary)
    return Tokens(dataclasses.replace(config, vocabulary=name), loaded)


def _released(tokens: Tokens | None) -> list[SplitAudit]:
    data_dir = (
        _DATA_DIR.value or os.environ.get(DATA_DIR_VARIABLE, "") or str(release.default_folder())
    )
    datasets, folders = survey.choose(data_dir, _DATASETS.value, _DOWNLOAD.value)
    release.download(data_dir, folders)
    columns = (survey.survey_released(data_dir, name, tokens, correct) for name in datasets)
    return [column for of_one in columns for column in of_one]


if __name__ == "__main__":
    run_with_arguments(main)
