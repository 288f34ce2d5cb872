"""What gin files and flags set: statements with the place of each, and the last setting of a macro.

Users set macros and nothing else; the dataclasses declare them (`settings.setting`). This is the
only module that imports gin, and only its parser.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pathlib
import re
import tokenize
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from gin import config_parser

from stepdistill_jax.settings import Macro, fits, kind, short
from stepdistill_jax.spec import InputError

# Earlier versions declared the macros in these files, which their run files include.
_OLD_PARTS = frozenset({"parts/run.gin", "parts/sweep.gin", "parts/extract.gin"})
# Program -> what its files describe, and the module whose `macros` they set. By name, since two of
# these modules import this one.
_PROGRAMS = {
    "launch.train": ("a run", "stepdistill_jax.run.load"),
    "launch.sweep": ("a sweep", "stepdistill_jax.sweep.config"),
    "launch.extract": ("an extraction", "stepdistill_jax.teacher.load"),
}

Macros = Mapping[str, Macro]


@dataclasses.dataclass(frozen=True)
class Setting:
    """``name = value`` and the place that set it."""

    name: str
    value: Any
    where: str

    @property
    def place(self) -> str:
        """Place and name, to begin an error with; the place of a flag is its name."""
        return self.where if self.where == f"--gin.{self.name}" else f"{self.where}: {self.name}"


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
            f"{self.where}: @{scoped_configurable_name} is not supported. Write plain values only."
        )


def gin_folder() -> pathlib.Path:
    """The shipped gin files: inside the installed package, else beside it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    for folder in (package / "_gin", package.parent / "gin"):
        if (folder / "demo.gin").is_file():
            return folder
    raise InputError(f"{package}: the shipped gin files are missing. Install the package again.")


def _statements(path: epath.Path) -> Iterator[Any]:
    """gin's own parse of one file; syntax errors name the line."""
    try:
        text = path.read_text().removeprefix("\ufeff")  # Windows writes this mark.
        yield from config_parser.ConfigParser(text, _Delegate(path.name))
    except SyntaxError as error:
        raise InputError(
            f"{path}:{error.lineno}: cannot parse {short((error.text or '').strip())}. Write "
            "NAME = value, with texts in quotes."
        ) from error
    except RecursionError as error:
        raise InputError(
            f"{path}: not a gin file: brackets are nested too deeply. Remove some."
        ) from error
    except tokenize.TokenError as error:
        problem, (line, _) = error.args
        raise InputError(
            f"{path}:{line}: not a gin file: {problem}. Close open brackets and quotes."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a gin file: not UTF-8. Convert it to UTF-8.") from error


def find(name: str, folders: Iterable[epath.PathLike], where: str) -> epath.Path:
    """The first of `folders` that holds `name`, the shipped gin folder last.

    Raises:
        InputError: none does; the message names `where` it was requested and the nearest file.
    """
    searched = list(dict.fromkeys(epath.Path(folder) for folder in (*folders, gin_folder())))
    for folder in searched:
        # Joining keeps an absolute or gs:// name as it is.
        path = folder / epath.Path(name)
        if path.is_file():
            return path
    # Only the shipped folder is known to be small enough to walk.
    names = [str(p.relative_to(gin_folder())) for p in gin_folder().rglob("*.gin")]
    subfolder = epath.Path(name).parent
    for folder in searched:
        names += [str(subfolder / p.name) for p in (folder / subfolder).glob("*.gin")]
    raise InputError(
        f"{where}: no file {name!r} in {', '.join(str(f) for f in searched)}."
        f"{_nearest(name, names)}"
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


def read_all(
    gin_files: Sequence[epath.PathLike],
    overrides: Sequence[str],
    search_paths: Sequence[epath.PathLike],
    declared: Macros,
) -> list[Setting]:
    """The settings of files in order, then of overrides; see `run.load.parse`."""
    folders = (".", *search_paths)
    settings: list[Setting] = []
    for name in gin_files:
        settings += read_file(find(str(name), folders, "--gin_file"), declared, folders)
    return [*settings, *(override(text, declared) for text in overrides)]


def fields(declared: Macros, resolved: Mapping[str, Setting]) -> dict[str, Any]:
    """Field -> value of the declared macros that are set."""
    return {
        macro.field: typed(macro, resolved[name])
        for name, macro in declared.items()
        if name in resolved
    }


def read_file(
    path: epath.Path,
    declared: Macros,
    folders: Sequence[epath.PathLike] = (),
    including: tuple[epath.Path, ...] = (),
) -> Iterator[Setting]:
    """Settings of a file and of the files that it includes, in order.

    Args:
        path: the file.
        declared: macros, to name the one that sets a field which a user tried to bind.
        folders: where included files are searched, after the file's own folder.
        including: the files that include this one.

    Raises:
        InputError: naming the line that cannot be read.
    """
    if path in including:
        chain = " -> ".join(p.name for p in (*including, path))
        raise InputError(f"{path}: includes itself: {chain}. Remove one include.")
    for statement in _statements(path):
        where = f"{path}:{statement.location.line_num}"
        match statement:
            case config_parser.IncludeStatement() if statement.filename in _OLD_PARTS:
                continue
            case config_parser.IncludeStatement():
                included = _included(path, statement.filename, folders, where)
                yield from read_file(included, declared, folders, (*including, path))
            case config_parser.BindingStatement(scope="", arg_name=None | ""):
                yield Setting(statement.selector, statement.value, where)
            case config_parser.BindingStatement():
                raise InputError(f"{where}: {_refuse_binding(statement, declared)}")
            case _:
                raise InputError(f"{where}: expected an include or NAME = value. Remove the line.")


def _included(
    path: epath.Path, name: str, folders: Sequence[epath.PathLike], where: str
) -> epath.Path:
    """The file that `path` includes by `name`; never itself where another file has that name."""
    searched = [epath.Path(folder) for folder in (path.parent, *folders, gin_folder())]
    itself = path.resolve()
    others = [folder for folder in searched if (folder / name).resolve() != itself]
    is_elsewhere = any((folder / name).is_file() for folder in others)
    return find(name, others if is_elsewhere else searched, where)


def _refuse_binding(statement: Any, declared: Macros) -> str:
    """Names the macro that sets the field which the user tried to bind."""
    key = f"{statement.selector}.{statement.arg_name}"
    bound = {f"{m.config.__name__}.{m.field}": name for name, m in declared.items()}
    if key in bound:
        return f"{key} is set by its macro. Write {bound[key]} = ... instead."
    return f"{key} is unknown.{_nearest(key, bound)} --help lists all macros."


def override(text: str, declared: Macros) -> Setting:
    """``NAME=value`` of a flag; a text needs no quotes where it cannot be anything else.

    Raises:
        InputError: the value is missing or cannot be parsed.
    """
    name, equals, raw = text.partition("=")
    where = f"--gin.{name}"
    if not equals or not raw:
        raise InputError(f"{where}: write --gin.NAME=value, with '' for an empty text.")
    hint = declared[name].hint if name in declared else None
    is_text = hint is not None and fits("", hint)
    takes_text = is_text or (hint is not None and fits(("",), hint))
    try:
        parser = config_parser.ConfigParser(raw, _Delegate(where))
        value = parser.parse_value()
        if parser.current_token.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
            raise SyntaxError("something follows the value")
    except (SyntaxError, tokenize.TokenError, RecursionError) as error:
        # A template may begin with {column}; no text setting takes a dict.
        is_template = is_text and raw[0] == "{"
        if not takes_text or (raw[0] in "'\"([{@%" and not is_template):
            remedy = (
                f"Put a text that begins with {raw[0]} in quotes: '--gin.{name}=\"text\"'"
                if is_text
                else "Write numbers, True, False, None and ('a', 'b') as in Python, and quote the "
                "whole flag in the shell"
            )
            raise InputError(f"{where}: cannot parse {short(raw)}. {remedy}.") from error
        value = raw
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if takes_text and is_number and not fits(value, hint):
        value = raw  # MODEL_DIR=2024 names a folder.
    return Setting(name, value, where)


def typed(macro: Macro, setting: Setting) -> Any:
    """The value in its field's type: lists become tuples, a single text a tuple of one.

    Raises:
        InputError: it has another type.
    """
    value = _frozen(setting.value)
    candidate: Any
    for candidate in (value, (value,)):
        if fits(candidate, macro.hint):
            # 1 passes for 1.0, and is written back as 1.0.
            is_float = macro.hint is float and isinstance(candidate, int)
            # By its text, since a whole number larger than any float is then infinite.
            return float(str(candidate)) if is_float else candidate
    example = f", as in {macro.name} = {macro.default!r}" if macro.default else ""
    raise InputError(
        f"{setting.place}: got {short(setting.value)}, expected {kind(macro.hint)}{example}."
    )


def _frozen(value: Any) -> Any:
    """Lists as tuples and dicts as tuples of pairs, at every depth."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def resolve(
    settings: Sequence[Setting], declared: Macros, spare: Container[str] = ()
) -> dict[str, Setting]:
    """The last setting of every declared macro, references replaced by what they name.

    Args:
        settings: in the order of reading.
        declared: macros that may be set.
        spare: a user's own names that nothing need use.

    Raises:
        InputError: a name is unknown, names nothing, refers to itself or is used nowhere.
    """
    last = {setting.name: setting for setting in settings}
    used: set[str] = set()

    def plain(value: Any, where: str, path: tuple[str, ...]) -> Any:
        if isinstance(value, _Reference):
            if value.name in path:
                chain = " -> ".join((*path, value.name))
                raise InputError(f"{where}: {chain} is a circle. Set one of them to a value.")
            used.add(value.name)
            if value.name in last:
                target = last[value.name]
                return plain(target.value, target.where, (*path, value.name))
            if value.name in declared:
                return declared[value.name].default
            raise InputError(
                f"{where}: %{value.name} is never set.{_nearest(value.name, {*declared, *last})}"
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
    unknown = [s for n, s in resolved.items() if n not in {*declared, *used} and n not in spare]
    if unknown:
        raise InputError(" ".join(_unknown(setting, declared) for setting in unknown))
    return {name: setting for name, setting in resolved.items() if name in declared}


def _unknown(setting: Setting, declared: Macros) -> str:
    """What a setting that is no macro may have been meant for."""
    for program, (described, module) in _PROGRAMS.items():
        others = importlib.import_module(module).macros()
        if setting.name in others:
            return (
                f"{setting.place}: a setting of {described}. Give its file to "
                f"python -m {program}, or remove the setting."
            )
    return f"{setting.place}: unknown setting.{_nearest(setting.name.upper(), declared)}"


def with_places(error: InputError, resolved: Mapping[str, Setting]) -> InputError:
    """The error, after the places that set the macros which its message names."""
    named = re.findall(r"[A-Z][A-Z0-9_]+", str(error))
    places = dict.fromkeys(resolved[name].where for name in named if name in resolved)
    if not places:
        return error
    text = str(error)
    if list(places) == [f"--gin.{named[0]}"]:
        text = text.removeprefix(f"{named[0]}: ")
    return InputError(f"{', '.join(places)}: {text}")
