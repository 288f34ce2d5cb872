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
    find,
    override,
    read_file,
    resolve,
    typed,
    with_places,
)
from stepdistill_jax.settings import Macro
from stepdistill_jax.spec import CONFIG_FILE, InputError
from stepdistill_jax.teacher.config import ExtractConfig

# Macros in which one folder's extractions must agree: what decides an answer, beside the prompt and
# the row, which are compared by hash. All others may change between two calls.
FIXED_MACROS = (
    "TEACHER_MODEL",
    "PROMPT_FORM",
    "TEMPERATURE",
    "TOP_P",
    "MAX_NEW_TOKENS",
    "SAMPLING_SEED",
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
    """What a teacher is asked, and about which rows.

    Attributes:
        extract: the teacher.
        run: of which the data and the folder of caches are read.
    """

    extract: ExtractConfig
    run: RunConfig


@functools.cache
def macros() -> dict[str, Macro]:
    """Every setting of an extraction by its macro, those of its run left out."""
    return declarations.macros((ExtractConfig,))


def help_text() -> str:
    """Every macro of an extraction and the gin files, for ``--help``."""
    return "\n".join(
        [
            "An extraction file sets these; one that ships is extract/cqa.gin.",
            *configs.describe(macros().values()),
            "",
            *configs.describe_files(),
            "",
            "An extraction file and --gin.NAME=value may set any macro of a run too: those of its "
            "data say which rows are asked about. python -m launch.train --help lists them.",
        ]
    )


def parse(
    gin_files: Sequence[epath.PathLike],
    overrides: Sequence[str] = (),
    search_paths: Sequence[epath.PathLike] = (),
) -> Extraction:
    """Reads extraction files in order, then overrides, into one checked configuration.

    Args:
        gin_files: looked for in the working folder, `search_paths` and the shipped gin folder.
        overrides: ``NAME=value`` each; the last word on a macro.
        search_paths: more folders for `gin_files` and for what they include.

    Raises:
        InputError: see `config.parse`; a key where its variable's name belongs.
    """
    if not gin_files:
        raise InputError(
            "--gin_file is missing: name an extraction file, as in --gin_file=extract/cqa.gin; "
            "--help lists those shipped"
        )
    known = {**configs.macros(), **macros()}
    folders = (".", *search_paths)
    settings: list[Setting] = []
    for name in gin_files:
        settings += read_file(find(str(name), folders, "--gin_file"), known, folders)
    settings += [override(text, known) for text in overrides]
    resolved = resolve(settings, known)
    values = {
        macro.field: typed(macro, resolved[name])
        for name, macro in macros().items()
        if name in resolved
    }
    try:
        extract = ExtractConfig(**values)
    except InputError as error:
        raise with_places(error, resolved) from error
    of_the_run = [resolved[name] for name in configs.macros() if name in resolved]
    if "MODEL_DIR" not in resolved:
        # Nothing is trained here, so that a run file that leaves its folder to a flag will do.
        of_the_run.append(Setting("MODEL_DIR", "runs/student", "the extraction"))
    return Extraction(extract, configs.from_settings(of_the_run))


def values(extraction: Extraction) -> dict[str, Any]:
    """Every macro's value, those of the run first."""
    extract = {name: getattr(extraction.extract, m.field) for name, m in macros().items()}
    return {**configs.values(extraction.run), **extract}


def dump(extraction: Extraction) -> str:
    """The resolved configuration: a gin file, one macro a line, that `parse` reads back."""
    title = "# All settings of an extraction, as resolved when it last started."
    known = {**configs.macros(), **macros()}
    return "\n".join([title, *configs.statements(values(extraction), known)]) + "\n"


def read(folder: epath.PathLike, overrides: Sequence[str] = ()) -> Extraction:
    """The configuration of the extraction in a folder, wherever the folder lies now.

    EXTRACT_DIR is that folder unless `overrides` name another.

    Raises:
        InputError: the folder holds none, or an override is wrong.
    """
    path = epath.Path(folder) / CONFIG_FILE
    if not path.exists():
        raise InputError(
            f"{path}: no such file, so {folder} holds no extraction; check the folder's name"
        )
    found = parse([path], overrides)
    if any(text.startswith("EXTRACT_DIR=") for text in overrides):
        return found
    moved = dataclasses.replace(found.extract, extract_dir=str(folder))
    return dataclasses.replace(found, extract=moved)


def difference(old: Extraction, new: Extraction) -> dict[str, tuple[Any, Any]]:
    """Macro -> (old, new) where they differ and answers cannot lie in one folder."""
    before, after = values(old), values(new)
    return {
        name: (before[name], after[name]) for name in FIXED_MACROS if before[name] != after[name]
    }
