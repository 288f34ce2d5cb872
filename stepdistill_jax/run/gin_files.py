"""What gin files and flags say: statements, macros with their types, and which setting is the last.

With `config` the only module of the library that imports gin. Users set macros and nothing else;
a part (``parts/run.gin``, ``parts/sweep.gin``, ``parts/extract.gin``) declares, documents and
defaults each of them, and binds it to fields of dataclasses, which give it its type.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
import re
import tokenize
import typing
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from gin import config_parser

from stepdistill_jax.run.field_types import fits, frozen
from stepdistill_jax.spec import InputError

# The parts: read first, whatever includes them and wherever.
RUN_PART = "parts/run.gin"
SWEEP_PART = "parts/sweep.gin"
EXTRACT_PART = "parts/extract.gin"
# Part -> what it is the part of, and the program whose files set its macros.
PROGRAMS = {
    RUN_PART: ("a run", "launch.train"),
    SWEEP_PART: ("a sweep", "launch.sweep"),
    EXTRACT_PART: ("an extraction", "launch.extract"),
}
# What the macros of a sweep begin with, and no others.
SWEEP_PREFIX = "SWEEP_"


@dataclasses.dataclass(frozen=True)
class Macro:
    """One declaration of a part.

    Attributes:
        name: of the macro.
        section: the heading that it stands under.
        comment: what it means.
        default: its value where nobody sets it.
        fields: (name of the dataclass, field) that it sets.
        hints: the types of those fields.
    """

    name: str
    section: str
    comment: str
    default: Any
    fields: tuple[tuple[str, str], ...]
    hints: tuple[Any, ...]


Macros = Mapping[str, Macro]


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
    package = pathlib.Path(__file__).parents[1]
    for folder in (package / "_gin", package.parent / "gin"):
        if (folder / RUN_PART).is_file():
            return folder
    raise InputError(f"{package}: the shipped gin files are missing; install the package again")


def declared(part: str, configs: Mapping[str, type]) -> dict[str, Macro]:
    """Every macro of a part by name, in its order, with its comment and default.

    Args:
        part: the file, inside the shipped gin folder.
        configs: the dataclasses that it binds macros to, by name.
    """
    path = epath.Path(gin_folder()) / part
    lines = path.read_text().splitlines()
    fields: dict[str, list[tuple[str, str]]] = {}
    defaults = {}
    sections = {}
    comments = {}
    for statement in _statements(path):
        if statement.arg_name and statement.selector in configs:
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
    types = {name: typing.get_type_hints(config) for name, config in configs.items()}
    return {
        name: Macro(
            name,
            sections[name],
            comments[name],
            default,
            tuple(fields[name]),
            tuple(types[config][field] for config, field in fields[name]),
        )
        for name, default in defaults.items()
    }


@functools.cache
def names(part: str) -> frozenset[str]:
    """The macros that a part declares."""
    statements = _statements(epath.Path(gin_folder()) / part)
    return frozenset(s.selector for s in statements if not s.arg_name)


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
    searched = list(dict.fromkeys(epath.Path(folder) for folder in (*folders, gin_folder())))
    for folder in searched:
        # As a path, which may be absolute or gs://: that is then the place, whatever the folder.
        path = folder / epath.Path(name)
        if path.is_file():
            return path
    # Only the shipped folder is known to be small enough to be walked.
    there = [str(p.relative_to(gin_folder())) for p in gin_folder().rglob("*.gin")]
    subfolder = epath.Path(name).parent
    for folder in searched:
        there += [str(subfolder / p.name) for p in (folder / subfolder).glob("*.gin")]
    raise InputError(
        f"{where}: no file {name!r} in {', '.join(str(f) for f in searched)}{_nearest(name, there)}"
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; the nearest is {matches[0]}" if matches else ""


def read_file(
    path: epath.Path,
    known: Macros,
    folders: Sequence[epath.PathLike] = (),
    including: tuple[epath.Path, ...] = (),
) -> Iterator[Setting]:
    """Settings of a file and of what it includes, in order; parts are read elsewhere.

    Args:
        path: the file.
        known: macros that may be set, to say which one sets what a user tried to bind.
        folders: where included files are looked for, after the file's own.
        including: the files that include it.

    Raises:
        InputError: naming the line, where one cannot be read.
    """
    if path in including:
        chain = " -> ".join(p.name for p in (*including, path))
        raise InputError(f"{path}: includes itself: {chain}; take one include out")
    for statement in _statements(path):
        where = f"{path}:{statement.location.line_num}"
        match statement:
            case config_parser.IncludeStatement() if statement.filename in PROGRAMS:
                continue
            case config_parser.IncludeStatement():
                included = _included(path, statement.filename, folders, where)
                yield from read_file(included, known, folders, (*including, path))
            case config_parser.BindingStatement(scope="", arg_name=None | ""):
                yield Setting(statement.selector, statement.value, where)
            case config_parser.BindingStatement():
                raise InputError(f"{where}: {_refuse_binding(statement, known)}")
            case _:
                raise InputError(
                    f"{where}: only includes and NAME = value are known here; remove the line"
                )


def _included(
    path: epath.Path, name: str, folders: Sequence[epath.PathLike], where: str
) -> epath.Path:
    """What `path` includes by `name`: ``extract/cqa.gin`` means the ``cqa.gin`` that it is not."""
    searched = [epath.Path(folder) for folder in (path.parent, *folders, gin_folder())]
    own = path.resolve()
    others = [folder for folder in searched if (folder / name).resolve() != own]
    is_elsewhere = any((folder / name).is_file() for folder in others)
    return find(name, others if is_elsewhere else searched, where)


def _refuse_binding(statement: Any, known: Macros) -> str:
    """Says which macro sets what the user tried to bind."""
    key = f"{statement.selector}.{statement.arg_name}"
    bound = {f"{c}.{f}": macro.name for macro in known.values() for c, f in macro.fields}
    if key in bound:
        return f"{key} is set by its macro; write {bound[key]} = ... instead"
    return f"{key} is not known{_nearest(key, bound)}; run files set macros, see --help"


def override(text: str, known: Macros) -> Setting:
    """``NAME=value`` of a flag; a text may go without quotes where nothing else can be meant.

    Raises:
        InputError: there is no value, or it cannot be read.
    """
    name, equals, raw = text.partition("=")
    where = f"--gin.{name}"
    if not equals or not raw:
        raise InputError(f"{where}: write --gin.NAME=value, with '' for an empty text")
    macro = known.get(name)
    takes_text = macro is not None and all(
        fits("", hint) or fits(("",), hint) for hint in macro.hints
    )
    is_text = takes_text and macro is not None and all(fits("", hint) for hint in macro.hints)
    try:
        parser = config_parser.ConfigParser(raw, _Delegate(where))
        value = parser.parse_value()
        if parser.current_token.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
            raise SyntaxError("something follows the value")
    except (SyntaxError, tokenize.TokenError) as error:
        # {column} is how templates begin, and no field that is a text takes anything in braces.
        is_template = is_text and raw[0] == "{"
        if not takes_text or (raw[0] in "'\"([{@%" and not is_template):
            remedy = (
                f"a text that begins with {raw[0]} goes in quotes of its own inside those of the "
                f"shell, as in '--gin.{name}=\"text\"'"
                if is_text
                else "numbers, True, False, None and ('a', 'b') are written as in Python; in a "
                "shell put the whole flag in quotes"
            )
            raise InputError(f"{where}: cannot read {raw!r} as a value; {remedy}") from error
        value = raw
    if takes_text and macro is not None and not all(fits(value, hint) for hint in macro.hints):
        # MODEL_DIR=2024 names a folder.
        value = raw if isinstance(value, int | float) and not isinstance(value, bool) else value
    return Setting(name, value, where)


def typed(macro: Macro, setting: Setting) -> Any:
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


def resolve(
    settings: Sequence[Setting], known: Macros, spare: Container[str] = ()
) -> dict[str, Setting]:
    """The last setting of every known macro, references replaced by what they name.

    Args:
        settings: in the order of reading.
        known: macros that may be set.
        spare: a user's own names that nothing need use.

    Raises:
        InputError: a name is unknown, names nothing, refers to itself or is used nowhere.
    """
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
        f"{setting.where}: {name} is no {_unknown(name, known)}"
        for name, setting in resolved.items()
        if name not in known and name not in used and name not in spare
    ]
    if unknown:
        raise InputError("; ".join(unknown) + "; --help lists all of them")
    return {name: setting for name, setting in resolved.items() if name in known}


def _unknown(name: str, known: Macros) -> str:
    """What a name is none of, and what may have been meant."""
    parts = [part for part in PROGRAMS if names(part) <= known.keys()]
    of_a_sweep = name.startswith(SWEEP_PREFIX)
    for part, (kind, program) in PROGRAMS.items():
        if part not in parts and (name in names(part) or (part == SWEEP_PART and of_a_sweep)):
            return (
                f"macro of {_kinds(parts)}: only the file that python -m {program} is given sets "
                f"those of {kind}"
            )
    if SWEEP_PART in parts:
        parts = [SWEEP_PART] if of_a_sweep else [RUN_PART]
    candidates = [macro for part in parts for macro in names(part)]
    return f"macro of {_kinds(parts)}, and nothing uses it{_nearest(name.upper(), candidates)}"


def _kinds(parts: Iterable[str]) -> str:
    return " or ".join(PROGRAMS[part][0] for part in parts)


def refuse_foreign(name: epath.PathLike, settings: Iterable[Setting], known: Macros) -> None:
    """Raises InputError where the file `name` is one of another program, saying which."""
    foreign = [part for part in PROGRAMS if not names(part) <= known.keys()]
    for setting in settings:
        for part in foreign:
            kind, program = PROGRAMS[part]
            by_prefix = part == SWEEP_PART and setting.name.startswith(SWEEP_PREFIX)
            if by_prefix or setting.name in names(part):
                raise InputError(
                    f"{name} is {kind} file: run it with python -m {program} --gin_file={name}"
                )


def with_places(error: InputError, resolved: Mapping[str, Setting]) -> InputError:
    """The error, with the place that set each macro which its message names."""
    named = set(re.findall(r"[A-Z][A-Z0-9_]+", str(error)))
    places = [f"{n} from {s.where}" for n, s in resolved.items() if n in named]
    return InputError(f"{error} ({', '.join(places)})") if places else error
