"""The configuration of a run: gin files and flags in, one frozen `RunConfig` out, and back."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from stepdistill_jax import settings as declarations
from stepdistill_jax.data.config import OWN
from stepdistill_jax.data.sources.base import ColumnConfig
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.run.config import (
    FREE_MACROS,
    NAMED_MACROS,
    PARTS,
    RunConfig,
)
from stepdistill_jax.run.gin_files import (
    Macros,
    Setting,
    gin_folder,
    read_all,
    read_file,
    resolve,
    typed,
    with_places,
)
from stepdistill_jax.run.results import SCORING_MACROS
from stepdistill_jax.settings import Macro
from stepdistill_jax.spec import CONFIG_FILE, InputError


@functools.cache
def macros() -> dict[str, Macro]:
    """Every setting of a run by its macro, in the order of ``--help``."""
    data, *others = PARTS.values()
    return declarations.macros((RunConfig, data, ColumnConfig, *others))


def parse(
    gin_files: Sequence[epath.PathLike],
    overrides: Sequence[str] = (),
    search_paths: Sequence[epath.PathLike] = (),
) -> RunConfig:
    """Reads gin files in order, then overrides, into one checked configuration.

    Args:
        gin_files: searched in the working folder, `search_paths` and the shipped gin folder.
        overrides: ``NAME=value`` each; they win over all files.
        search_paths: more folders for `gin_files` and the files that they include.

    Raises:
        InputError: a file is missing or no gin file, a name is unknown or unused, a value has
            another type, is out of range or contradicts another; names the place that set it.
    """
    return from_settings(read_all(gin_files, overrides, search_paths, macros()))


def read_settings(path: epath.PathLike, folders: Sequence[epath.PathLike] = ()) -> list[Setting]:
    """The settings of one run, method or model file, in order; see `gin_files.read_file`."""
    return list(read_file(epath.Path(path), macros(), folders))


def from_settings(settings: Sequence[Setting], spare: Container[str] = ()) -> RunConfig:
    """The configuration that settings make; the last setting of a macro wins.

    Args:
        settings: in order.
        spare: a user's own names that nothing need use.

    Raises:
        InputError: as `parse`.
    """
    resolved = resolve(settings, macros(), spare)
    changed = {name: typed(macros()[name], setting) for name, setting in resolved.items()}
    values = {name: changed.get(name, macro.default) for name, macro in macros().items()}

    def make(config: type, **more: Any) -> Any:
        mine = {m.field: values[name] for name, m in macros().items() if m.config is config}
        return config(**mine, **more)

    try:
        columns = make(ColumnConfig) if values["DATASET"] in OWN else None
        if columns is None:
            _refuse_columns(values, changed)
        more: dict[str, dict[str, Any]] = {
            "data": {"columns": columns},
            "pipeline": {"seed": values["SEED"]},
        }
        parts = {field: make(part, **more.get(field, {})) for field, part in PARTS.items()}
        config: RunConfig = make(RunConfig, **parts)
    except InputError as error:
        raise with_places(error, resolved) from error
    return config


def _refuse_columns(values: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Raises where a user describes the columns of a data set that has its own."""
    unread = [
        name
        for name, macro in macros().items()
        if macro.config is ColumnConfig and changed.get(name, macro.default) != macro.default
    ]
    if unread:
        raise InputError(
            f"{', '.join(unread)} has no effect with DATASET={values['DATASET']!r}, whose columns "
            f"are known. Remove it, or set DATASET to {' or '.join(map(repr, OWN))}."
        )


def values(config: RunConfig) -> dict[str, Any]:
    """Every macro's value in a configuration, in the order of `macros`."""
    holders = {RunConfig: config, ColumnConfig: config.data.columns}
    holders |= {part: getattr(config, field) for field, part in PARTS.items()}
    return {
        name: macro.default
        if holders[macro.config] is None
        else getattr(holders[macro.config], macro.field)
        for name, macro in macros().items()
    }


def dump(config: RunConfig) -> str:
    """The resolved configuration: a gin file, one macro a line, that `parse` reads back."""
    title = "# All settings of a run, as resolved when it last started."
    return "\n".join([title, *statements(values(config), macros())]) + "\n"


def statements(values: Mapping[str, Any], declared: Macros) -> list[str]:
    """``NAME = value`` of every macro, under its headings: the body of a dump."""
    lines = []
    heading = ""
    for name, value in values.items():
        if declared[name].heading != heading:
            heading = declared[name].heading
            lines += ["", f"# == {heading} =="]
        lines.append(f"{name} = {value!r}")
    return lines


def read(model_dir: epath.PathLike, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of the run in a folder, wherever the folder lies now.

    Raises:
        InputError: the folder holds no run, or an override is wrong.
    """
    moved = [text for text in overrides if text.startswith("MODEL_DIR=")]
    if moved:
        raise InputError(f"--gin.{moved[0]}: the folder is {model_dir} already. Remove the flag.")
    path = epath.Path(model_dir) / CONFIG_FILE
    if not path.exists():
        raise InputError(f"{path} does not exist: {model_dir} holds no run. Check MODEL_DIR.")
    if is_damaged(path):
        raise InputError(
            f"{path} is damaged: empty, or full of zeros. Run the training command again: it "
            "writes the file from the latest checkpoint."
        )
    return dataclasses.replace(parse([path], overrides), model_dir=str(model_dir))


def is_damaged(path: epath.Path) -> bool:
    """Whether a file is empty or has zeros, as a crash of the machine leaves it."""
    content = path.read_bytes()
    return not content.strip() or b"\0" in content


def difference(
    old: RunConfig, new: RunConfig, free: Container[str] = FREE_MACROS
) -> dict[str, tuple[Any, Any]]:
    """Macro -> (old, new) of the settings that forbid resuming: all but `free`."""
    before, after = values(old), values(new)
    return {
        name: (before[name], after[name])
        for name in before
        if before[name] != after[name] and name not in free
    }


def identity(config: RunConfig) -> dict[str, str]:
    """Macro -> value, as gin writes it, of every setting that can change a result.

    Settings at their default are left out, and those that a result names beside them
    (`results.RunFacts`).
    """
    left_out = NAMED_MACROS | (FREE_MACROS - SCORING_MACROS)
    return {
        name: repr(value)
        for name, value in values(config).items()
        if name not in left_out and value != macros()[name].default
    }


def help_text() -> str:
    """The shipped run files and every macro with its default and meaning, for ``--help``."""
    return "\n".join([*describe_files(), *describe(macros().values())])


def help_beside_a_run(title: str, listed: Macros, use: str) -> str:
    """``--help`` of a program with macros of its own, and the `use` that it has for a run's."""
    lines = [title, *describe(listed.values()), "", *describe_files(), ""]
    return "\n".join([*lines, f"{use} python -m launch.train --help lists them."])


def describe_files() -> list[str]:
    """Lines of ``--help`` on the shipped gin files."""
    folder = gin_folder()
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.gin"))
    width = max(len(str(path)) for path in files)
    lines = [f"gin files in {folder}:"]
    for path in files:
        title = (folder / path).read_text().partition("\n")[0].lstrip("# ")
        lines.append(f"  {path!s:<{width}}  {title}")
    return lines


def describe(listed: Iterable[Macro]) -> list[str]:
    """Lines of ``--help`` on macros, under their headings."""
    lines = []
    heading = ""
    for macro in listed:
        if macro.heading != heading:
            heading = macro.heading
            lines += ["", f"{heading}:"]
        lines.append(f"  --gin.{macro.name}={macro.default!r}")
        text, *choices = macro.doc.splitlines()
        lines += textwrap.wrap(text, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
        for choice in choices:
            lines += textwrap.wrap(choice, 96, initial_indent=" " * 8, subsequent_indent=" " * 12)
    return lines


def model_name(model: T5Config) -> str:
    """The shipped model file that has a model's sizes, else its sizes.

    ``t5_1_1_base``, or ``custom-768x12+12`` (width, encoder and decoder layers).
    """
    fields = {name: m.field for name, m in macros().items() if m.config is T5Config}
    for path in sorted((gin_folder() / "models").glob("*.gin")):
        settings = [s for s in read_settings(path) if s.name in fields]
        if all(getattr(model, fields[s.name]) == typed(macros()[s.name], s) for s in settings):
            return path.stem
    return f"custom-{model.emb_dim}x{model.num_encoder_layers}+{model.num_decoder_layers}"
