"""The configuration of a run: gin files and flags in, one frozen `RunConfig` out.

The only module of the library that imports gin. Users set macros and nothing else; the one file
that binds macros to fields is ``parts/run.gin``, which also documents and defaults each of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
import re
import tokenize
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin
from etils import epath
from gin import config_parser

from stepdistill_jax.data.config import OWN
from stepdistill_jax.data.sources.base import ColumnConfig
from stepdistill_jax.field_types import fits, frozen
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.run_config import FREE_MACROS, PARTS, RunConfig
from stepdistill_jax.spec import InputError

RUN_PART = "parts/run.gin"
CONFIG_FILE = "config.gin"
CONFIGS: dict[str, type] = {c.__name__: c for c in (RunConfig, ColumnConfig, *PARTS.values())}
for _config in CONFIGS.values():
    gin.external_configurable(_config, module=_config.__module__)


@dataclasses.dataclass(frozen=True)
class Macro:
    """One declaration of ``parts/run.gin``."""

    name: str
    section: str
    comment: str
    default: Any
    fields: tuple[tuple[str, str], ...]  # (name of the config class, field)

    @property
    def hints(self) -> list[Any]:
        """The types of the fields that the macro sets."""
        return [typing.get_type_hints(CONFIGS[config])[field] for config, field in self.fields]


@dataclasses.dataclass(frozen=True)
class Setting:
    """``name = value`` with the place that said so."""

    name: str
    value: Any
    where: str


@dataclasses.dataclass(frozen=True)
class _Reference:
    """``%NAME`` inside a value."""

    name: str


class _Delegate(config_parser.ParserDelegate):
    """Lets gin's parser build our references."""

    def __init__(self, where: str):
        self.where = where

    def macro(self, macro_name: str) -> _Reference:
        return _Reference(macro_name)

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        raise InputError(
            f"{self.where}: @{scoped_configurable_name} is not known here; run files set macros "
            f"to plain values, see --help for their names"
        )


def gin_folder() -> pathlib.Path:
    """The shipped gin files: inside the installed package, else beside it in a checkout."""
    package = pathlib.Path(__file__).parent
    for folder in (package / "_gin", package.parent / "gin"):
        if (folder / RUN_PART).is_file():
            return folder
    raise InputError(f"{package}: the shipped gin files are missing; install the package again")


@functools.cache
def macros() -> dict[str, Macro]:
    """Every macro by name, in the order of ``parts/run.gin``, with its comment and default."""
    path = epath.Path(gin_folder()) / RUN_PART
    lines = path.read_text().splitlines()
    fields: dict[str, list[tuple[str, str]]] = {}
    defaults = {}
    sections = {}
    comments = {}
    for statement in _statements(path):
        if statement.arg_name and statement.selector in CONFIGS:
            fields.setdefault(statement.value.name, []).append(
                (statement.selector, statement.arg_name)
            )
            continue
        number = statement.location.line_num - 1
        defaults[statement.selector] = statement.value
        above = number
        while lines[above - 1].startswith("# ") and not lines[above - 1].startswith("# =="):
            above -= 1
        comments[statement.selector] = " ".join(line[2:] for line in lines[above:number])
        headings = [line for line in lines[:number] if line.startswith("# == ")]
        sections[statement.selector] = headings[-1].strip("# =")
    return {
        name: Macro(name, sections[name], comments[name], default, tuple(fields[name]))
        for name, default in defaults.items()
    }


def _statements(path: epath.Path) -> Iterator[Any]:
    """gin's own parse of one file; syntax errors name the line."""
    try:
        text = path.read_text()
        yield from config_parser.ConfigParser(text, _Delegate(path.name))
    except SyntaxError as error:
        raise InputError(
            f"{path}:{error.lineno}: cannot be read: {(error.text or '').strip()!r}; write "
            f"NAME = value, with texts in quotes"
        ) from error
    except (tokenize.TokenError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a gin file ({error}); is a bracket open?") from error


def find(name: str, folders: Iterable[epath.PathLike], where: str) -> epath.Path:
    """The first of `folders` that holds `name`, the shipped gin folder last.

    Raises:
        InputError: none does; the message names `where` it was asked for and the nearest file.
    """
    searched = [epath.Path(folder) for folder in (*folders, gin_folder())]
    for folder in searched:
        if (folder / name).is_file():
            return folder / name
    shipped = [str(p.relative_to(gin_folder())) for p in gin_folder().rglob("*.gin")]
    raise InputError(
        f"{where}: no file {name!r} in {', '.join(str(f) for f in searched)}"
        f"{_nearest(name, shipped)}"
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; the nearest is {matches[0]}" if matches else ""


def _read(
    path: epath.Path, folders: Sequence[epath.PathLike], including: tuple[epath.Path, ...] = ()
) -> Iterator[Setting]:
    """Settings of a file and of what it includes, in order; the run part is read elsewhere."""
    if path in including:
        chain = " -> ".join(p.name for p in (*including, path))
        raise InputError(f"{path}: includes itself: {chain}; take one include out")
    for statement in _statements(path):
        where = f"{path}:{statement.location.line_num}"
        match statement:
            case config_parser.IncludeStatement() if statement.filename == RUN_PART:
                continue
            case config_parser.IncludeStatement():
                included = find(statement.filename, (path.parent, *folders), where)
                yield from _read(included, folders, (*including, path))
            case config_parser.BindingStatement(scope="", arg_name=None | ""):
                yield Setting(statement.selector, statement.value, where)
            case config_parser.BindingStatement():
                raise InputError(f"{where}: {_refuse_binding(statement)}")
            case _:
                raise InputError(
                    f"{where}: only includes and NAME = value are known here; remove the line"
                )


def _refuse_binding(statement: Any) -> str:
    """Says which macro sets what the user tried to bind."""
    key = f"{statement.selector}.{statement.arg_name}"
    bound = {f"{c}.{f}": macro.name for macro in macros().values() for c, f in macro.fields}
    if key in bound:
        return f"{key} is set by its macro; write {bound[key]} = ... instead"
    return f"{key} is not known{_nearest(key, bound)}; run files set macros, see --help"


def _override(text: str) -> Setting:
    """``NAME=value`` of a flag; a text may go without quotes where nothing else can be meant."""
    name, equals, raw = text.partition("=")
    where = f"--gin.{name}"
    if not equals or not raw:
        raise InputError(f"{where}: write --gin.NAME=value, with '' for an empty text")
    macro = macros().get(name)
    takes_text = macro is not None and all(
        fits("", hint) or fits(("",), hint) for hint in macro.hints
    )
    try:
        parser = config_parser.ConfigParser(raw, _Delegate(where))
        value = parser.parse_value()
        if parser.current_token.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
            raise SyntaxError("something follows the value")
    except (SyntaxError, tokenize.TokenError) as error:
        if not takes_text or raw[0] in "'\"([{@%":
            raise InputError(
                f"{where}: cannot read {raw!r} as a value; numbers, True, False, None and "
                f"('a', 'b') are written as in Python; in a shell put the whole flag in quotes"
            ) from error
        value = raw
    if takes_text and macro is not None and not all(fits(value, hint) for hint in macro.hints):
        # MODEL_DIR=2024 names a folder.
        value = raw if isinstance(value, int | float) and not isinstance(value, bool) else value
    return Setting(name, value, where)


def _typed(macro: Macro, setting: Setting) -> Any:
    """The value in its field's type: lists become tuples, a lone text a tuple of one.

    Raises:
        InputError: it is of another type.
    """
    value = frozen(setting.value)
    candidate: Any
    for candidate in (value, (value,)):
        if all(fits(candidate, hint) for hint in macro.hints):
            # 1 is as good as 1.0, and is written back as such.
            is_float = macro.hints[0] is float and isinstance(candidate, int)
            return float(candidate) if is_float else candidate
    hint = macro.hints[0]
    kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
    raise InputError(
        f"{setting.where}: {macro.name} = {setting.value!r}: expected {kind}, as in "
        f"{macro.name} = {macro.default!r}"
    )


def _resolve(settings: Sequence[Setting]) -> dict[str, Setting]:
    """The last setting of every known macro, references replaced by what they name.

    Raises:
        InputError: a name is unknown, names nothing, refers to itself or is used nowhere.
    """
    known = macros()
    last = {setting.name: setting for setting in settings}
    used: set[str] = set()

    def plain(value: Any, where: str, path: tuple[str, ...]) -> Any:
        if isinstance(value, _Reference):
            if value.name in path:
                raise InputError(
                    f"{where}: {' -> '.join((*path, value.name))} never ends; give one a value"
                )
            used.add(value.name)
            if value.name in last:
                target = last[value.name]
                return plain(target.value, target.where, (*path, value.name))
            if value.name in known:
                return known[value.name].default
            raise InputError(
                f"{where}: %{value.name} is set nowhere{_nearest(value.name, {*known, *last})}"
            )
        if isinstance(value, Mapping):
            return {key: plain(item, where, path) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return tuple(plain(item, where, path) for item in value)
        return value

    resolved = {
        name: dataclasses.replace(setting, value=plain(setting.value, setting.where, (name,)))
        for name, setting in last.items()
    }
    unknown = [
        f"{setting.where}: {name} is no macro of a run, and nothing uses it"
        f"{_nearest(name.upper(), known)}"
        for name, setting in resolved.items()
        if name not in known and name not in used
    ]
    if unknown:
        raise InputError("; ".join(unknown) + "; --help lists all of them")
    return {name: setting for name, setting in resolved.items() if name in known}


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
    settings = [
        setting
        for name in gin_files
        if str(name) != RUN_PART
        for setting in _read(find(str(name), folders, "--gin_file"), folders)
    ]
    resolved = _resolve([*settings, *map(_override, overrides)])
    values = {name: _typed(macros()[name], setting) for name, setting in resolved.items()}
    gin.clear_config()
    gin.parse_config((epath.Path(gin_folder()) / RUN_PART).read_text())
    gin.parse_config([f"{name} = {value!r}" for name, value in values.items()])
    try:
        return _build({n: s.where for n, s in resolved.items() if values[n] != macros()[n].default})
    except InputError as error:
        named = set(re.findall(r"[A-Z][A-Z0-9_]+", str(error)))
        places = [f"{n} from {s.where}" for n, s in resolved.items() if n in named]
        raise InputError(f"{error}{_in_brackets(places)}") from error
    finally:
        gin.clear_config()


def _in_brackets(places: list[str]) -> str:
    return f" ({', '.join(places)})" if places else ""


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
    section = ""
    for name, value in values(config).items():
        if macros()[name].section != section:
            section = macros()[name].section
            lines += ["", f"# == {section} =="]
        lines.append(f"{name} = {value!r}")
    return "\n".join(lines) + "\n"


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
    folder = gin_folder()
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.gin"))
    lines = [f"gin files in {folder}:"]
    for path in files:
        title = (folder / path).read_text().partition("\n")[0].lstrip("# ")
        lines.append(f"  {path!s:<28} {title}")
    section = ""
    for macro in macros().values():
        if macro.section != section:
            section = macro.section
            lines += ["", f"{section}:"]
        lines.append(f"  --gin.{macro.name}={macro.default!r}")
        lines.append(f"      {macro.comment}")
    return "\n".join(lines)


def model_name(model: T5Config) -> str:
    """The shipped model file that a model is of, whatever its dropout and precision, else its size.

    ``t5_1_1_base``, or ``custom-768x12+12`` (width, encoder and decoder layers).
    """
    fields = {
        field: name for name, m in macros().items() for c, field in m.fields if c == "T5Config"
    }
    for path in sorted((gin_folder() / "models").glob("*.gin")):
        sizes = {setting.name: frozen(setting.value) for setting in _read(epath.Path(path), ())}
        if all(getattr(model, f) == sizes[n] for f, n in fields.items() if n in sizes):
            return path.stem
    return f"custom-{model.emb_dim}x{model.num_encoder_layers}+{model.num_decoder_layers}"
