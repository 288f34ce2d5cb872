"""The configuration of an extraction: the teacher, and the run whose data it annotates.

An extraction file sets the settings of `ExtractConfig` and includes a run file, of which only the
data is read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from etils import epath

from stepdistill_jax import settings as declarations
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.gin_files import (
    Setting,
    fields,
    read_all,
    resolve,
    with_places,
)
from stepdistill_jax.settings import Macro
from stepdistill_jax.spec import CONFIG_FILE, InputError
from stepdistill_jax.teacher.config import ExtractConfig

# Macros in which the extractions of one folder must agree, since they decide a response. Prompt and
# example are compared by hash. All other macros may change between two calls. MAX_NEW_TOKENS may,
# since a completion that ended before it is the same under any greater one.
FIXED_MACROS = (
    "TEACHER_MODEL",
    "PROMPT_FORM",
    "TEMPERATURE",
    "TOP_P",
    "SAMPLING_SEED",
    "REASONING_EFFORT",
    "EXTRA_BODY",
    "REPLAY",
    "DATASET",
    "HF_NAME",
    "HF_CONFIG",
    "INPUT_TEMPLATE",
    "ID_COLUMN",
    "LABEL_SET",
)


@dataclasses.dataclass(frozen=True)
class Extraction:
    """A teacher, and the run whose data and cache folder are used."""

    extract: ExtractConfig
    run: RunConfig


@functools.cache
def macros() -> dict[str, Macro]:
    """Every setting of an extraction by its macro, those of its run left out."""
    return declarations.macros((ExtractConfig,))


def help_text() -> str:
    """Every macro of an extraction and the gin files, for ``--help``."""
    return configs.help_beside_a_run(
        "An extraction file, as extract/cqa.gin, sets these macros.",
        macros(),
        "An extraction file and --gin.NAME=value may also set macros of a run: they select the "
        "examples.",
    )


def parse(
    gin_files: Sequence[epath.PathLike],
    overrides: Sequence[str] = (),
    search_paths: Sequence[epath.PathLike] = (),
) -> Extraction:
    """Reads extraction files in order, then overrides, into one checked configuration.

    Arguments and errors are those of `run.load.parse`. A key in place of its variable's name is an
    InputError too.
    """
    if not gin_files:
        raise InputError(
            "--gin_file is missing. Name an extraction file, as in --gin_file=extract/cqa.gin; "
            "--help lists the shipped ones."
        )
    declared = {**configs.macros(), **macros()}
    settings = read_all(gin_files, overrides, search_paths, declared)
    resolved = resolve(settings, declared)
    try:
        extract = ExtractConfig(**fields(macros(), resolved))
    except InputError as error:
        raise with_places(error, resolved) from error
    of_the_run = [resolved[name] for name in configs.macros() if name in resolved]
    if "MODEL_DIR" not in resolved:
        # Nothing is trained here, so the run needs no folder.
        of_the_run.append(Setting("MODEL_DIR", "runs/student", "the extraction"))
    return Extraction(extract, configs.from_settings(of_the_run))


def values(extraction: Extraction) -> dict[str, Any]:
    """Every macro's value, those of the run first."""
    extract = {name: getattr(extraction.extract, m.field) for name, m in macros().items()}
    return {**configs.values(extraction.run), **extract}


def dump(extraction: Extraction) -> str:
    """The resolved configuration: a gin file, one macro a line, that `parse` reads back."""
    title = "# All settings of an extraction, as resolved when it last started."
    declared = {**configs.macros(), **macros()}
    return "\n".join([title, *configs.statements(values(extraction), declared)]) + "\n"


def read(folder: epath.PathLike, overrides: Sequence[str] = ()) -> Extraction:
    """The configuration of the extraction in a folder, wherever the folder lies now.

    EXTRACT_DIR is that folder unless `overrides` name another.

    Raises:
        InputError: the folder holds none, or an override is wrong.
    """
    path = epath.Path(folder) / CONFIG_FILE
    if not path.exists():
        raise InputError(
            f"{path}: no such file, so {folder} holds no extraction. Check the folder's name."
        )
    extraction = parse([path], overrides)
    if any(text.startswith("EXTRACT_DIR=") for text in overrides):
        return extraction
    moved = dataclasses.replace(extraction.extract, extract_dir=str(folder))
    return dataclasses.replace(extraction, extract=moved)


def difference(old: Extraction, new: Extraction) -> dict[str, tuple[Any, Any]]:
    """Macro -> (old, new) where they differ and the responses cannot lie in one folder."""
    before, after = values(old), values(new)
    return {
        name: (before[name], after[name]) for name in FIXED_MACROS if before[name] != after[name]
    }
