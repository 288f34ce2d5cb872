"""The configuration of a run: gin files and flags in, one frozen `RunConfig` out.

`gin_settings` says what the files and flags say; here it becomes a `RunConfig` and a file again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import gin
from etils import epath

from stepdistill_jax.data.config import OWN
from stepdistill_jax.data.sources.base import ColumnConfig
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.run import gin_files as gin_settings
from stepdistill_jax.run.config import FREE_MACROS, PARTS, RunConfig
from stepdistill_jax.run.field_types import frozen
from stepdistill_jax.run.gin_files import RUN_PART, Macro, Setting, gin_folder
from stepdistill_jax.spec import CONFIG_FILE, InputError

CONFIGS: dict[str, type] = {c.__name__: c for c in (RunConfig, ColumnConfig, *PARTS.values())}
for _config in CONFIGS.values():
    gin.external_configurable(_config, module=_config.__module__)


@functools.cache
def macros() -> dict[str, Macro]:
    """Every macro of a run by name, in the order of ``parts/run.gin``."""
    return gin_settings.declared(RUN_PART, CONFIGS)


def parse(
    gin_files: Sequence[epath.PathLike],
    overrides: Sequence[str] = (),
    search_paths: Sequence[epath.PathLike] = (),
) -> RunConfig:
    """Reads gin files in order, then overrides, into one checked configuration.

    Args:
        gin_files: looked for in the working folder, `search_paths` and the shipped gin folder.
        overrides: ``NAME=value`` each; the last word on a macro.
        search_paths: more folders for `gin_files` and for what they include.

    Raises:
        InputError: a file is missing or no gin file, a name is unknown or unused, a value is of
            another type, out of range or contradicts another; names the place that set it.
    """
    folders = (".", *search_paths)
    settings: list[Setting] = []
    for name in gin_files:
        if str(name) == RUN_PART:
            continue
        own = read_settings(gin_settings.find(str(name), folders, "--gin_file"), folders)
        gin_settings.refuse_foreign(name, own, macros())
        settings += own
    return from_settings([*settings, *(gin_settings.override(o, macros()) for o in overrides)])


def read_settings(path: epath.PathLike, folders: Sequence[epath.PathLike] = ()) -> list[Setting]:
    """What one run, method or model file sets, in order; see `gin_settings.read_file`."""
    return list(gin_settings.read_file(epath.Path(path), macros(), folders))


def from_settings(settings: Sequence[Setting], spare: Container[str] = ()) -> RunConfig:
    """The configuration that settings make, the last one of a macro having the last word.

    Args:
        settings: in order.
        spare: a user's own names that nothing need use.

    Raises:
        InputError: as `parse`.
    """
    resolved = gin_settings.resolve(settings, macros(), spare)
    values = {n: gin_settings.typed(macros()[n], setting) for n, setting in resolved.items()}
    gin.clear_config()
    gin.parse_config((epath.Path(gin_folder()) / RUN_PART).read_text())
    gin.parse_config([f"{name} = {value!r}" for name, value in values.items()])
    try:
        return _build({n: s.where for n, s in resolved.items() if values[n] != macros()[n].default})
    except InputError as error:
        raise gin_settings.with_places(error, resolved) from error
    finally:
        gin.clear_config()


def _build(changed: Mapping[str, str]) -> RunConfig:
    """RunConfig from gin's bindings; `changed` are the macros that a user set, and where."""
    parts = {field: gin.get_bindings(config) for field, config in PARTS.items()}
    if parts["data"]["dataset"] in OWN:
        parts["data"]["columns"] = ColumnConfig(**gin.get_bindings(ColumnConfig))
    else:
        unread = [n for n in changed if macros()[n].fields[0][0] == ColumnConfig.__name__]
        if unread:
            raise InputError(
                f"{', '.join(unread)} has no effect with DATASET={parts['data']['dataset']!r}, "
                f"whose columns are known; take it out or set DATASET to "
                f"{' or '.join(OWN)}"
            )
    return RunConfig(
        **{field: config(**parts[field]) for field, config in PARTS.items()},
        **gin.get_bindings(RunConfig),
    )


def values(config: RunConfig) -> dict[str, Any]:
    """Every macro's value in a configuration, in the order of ``parts/run.gin``."""
    holders = {type(config).__name__: config, ColumnConfig.__name__: config.data.columns}
    holders |= {part.__name__: getattr(config, field) for field, part in PARTS.items()}
    found = {}
    for name, macro in macros().items():
        holder, field = macro.fields[0]
        held = holders[holder]
        found[name] = macro.default if held is None else getattr(held, field)
    return found


def dump(config: RunConfig) -> str:
    """The resolved configuration: a gin file, one macro a line, that `parse` reads back."""
    lines = ["# The whole configuration of a run, as resolved when it started.", ""]
    lines.append(f'include "{RUN_PART}"')
    return "\n".join([*lines, *statements(values(config), macros())]) + "\n"


def statements(found: Mapping[str, Any], known: Mapping[str, Macro]) -> list[str]:
    """``NAME = value`` of every macro, under its headings: the body of a dump."""
    lines = []
    section = ""
    for name, value in found.items():
        if known[name].section != section:
            section = known[name].section
            lines += ["", f"# == {section} =="]
        lines.append(f"{name} = {value!r}")
    return lines


def read(model_dir: epath.PathLike, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of the run in a folder, wherever the folder lies now.

    Raises:
        InputError: the folder holds no run, or an override is wrong.
    """
    moved = [text for text in overrides if text.startswith("MODEL_DIR=")]
    if moved:
        raise InputError(f"--gin.{moved[0]}: the folder {model_dir} is given; leave one out")
    path = epath.Path(model_dir) / CONFIG_FILE
    if not path.exists():
        raise InputError(f"{path}: no such file, so {model_dir} holds no run; check MODEL_DIR")
    return dataclasses.replace(parse([path], overrides), model_dir=str(model_dir))


def difference(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Macro -> (old, new) where they differ and a run cannot be resumed (see FREE_MACROS)."""
    before, after = values(old), values(new)
    return {
        name: (before[name], after[name])
        for name in before
        if before[name] != after[name] and name not in FREE_MACROS
    }


def help_text() -> str:
    """The shipped run files and every macro with its default and comment, for ``--help``."""
    return "\n".join([*describe_files(), *describe(macros().values())])


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
    section = ""
    for macro in listed:
        if macro.section != section:
            section = macro.section
            lines += ["", f"{section}:"]
        lines.append(f"  --gin.{macro.name}={macro.default!r}")
        lines.append(f"      {macro.comment}")
    return lines


def model_name(model: T5Config) -> str:
    """The shipped model file that a model is of, whatever its dropout and precision, else its size.

    ``t5_1_1_base``, or ``custom-768x12+12`` (width, encoder and decoder layers).
    """
    fields = {
        field: name for name, m in macros().items() for c, field in m.fields if c == "T5Config"
    }
    for path in sorted((gin_folder() / "models").glob("*.gin")):
        sizes = {setting.name: frozen(setting.value) for setting in read_settings(path)}
        if all(getattr(model, f) == sizes[n] for f, n in fields.items() if n in sizes):
            return path.stem
    return f"custom-{model.emb_dim}x{model.num_encoder_layers}+{model.num_decoder_layers}"
