"""What the binaries share: flags, and errors as one line with an exit code."""

from __future__ import annotations

import dataclasses
import errno
import logging as python_logging
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from stepdistill_jax import storage
from stepdistill_jax.parallel import cluster
from stepdistill_jax.run import load
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import EXIT_INPUT_ERROR, InputError

_PREFIX = "--gin."
_HELP = frozenset({"--help", "-h", "-help", "--helpfull", "-helpfull"})
# Not a defect of the program: a full, read-only or forbidden folder.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
# absl passes Python's own words on.
_RAW = {"invalid literal for int": "a whole number", "Non-boolean argument": "true or false"}

_PACKAGE = str(pathlib.Path(load.__file__).parents[1])

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "Gin file, in the working folder or shipped; may be given several times."
)
_SEARCH_PATHS = flags.DEFINE_list(
    "gin_search_paths", [], "More folders for gin files, separated by commas."
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line, taken apart.

    Attributes:
        gin_files: values of --gin_file.
        overrides: ``NAME=value`` of each --gin.NAME=value.
        search_paths: values of --gin_search_paths.
        positional: what is no flag.
    """

    gin_files: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    search_paths: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()

    def parse(self) -> RunConfig:
        """The run that the gin files and overrides describe.

        Raises:
            InputError: none was named, or see `config.parse`.
        """
        if not self.gin_files:
            raise InputError(
                "--gin_file is missing: name a run file, as in --gin_file=demo.gin; "
                "--help lists those shipped"
            )
        return load.parse(self.gin_files, self.overrides, self.search_paths)


def run(main: Callable[[RunConfig], int | None], argv: Sequence[str] | None = None) -> None:
    """Runs a binary on one `RunConfig`; takes no positional arguments. Never returns."""

    def on_config(arguments: Arguments) -> int | None:
        if arguments.positional:
            raise InputError(
                f"{' '.join(arguments.positional)}: not a flag; write --gin_file=FILE and "
                f"--gin.NAME=value"
            )
        return main(arguments.parse())

    run_with_arguments(on_config, argv)


def run_with_arguments(
    main: Callable[[Arguments], int | None],
    argv: Sequence[str] | None = None,
    help_text: Callable[[], str] = load.help_text,
) -> None:
    """Runs a binary on its `Arguments` and exits with what it returns (None = 0).

    `help_text` says which gin files and macros there are.

    `InputError`, a store that fails, a disk that cannot be written and devices with too little
    memory become one line on stderr and `EXIT_INPUT_ERROR`, or `EXIT_UNAVAILABLE` where the same
    may go well later.
    """
    argv = list(sys.argv if argv is None else argv)
    if _HELP & set(argv[1:]):
        print(_help(help_text()))
        sys.exit(0)
    # absl knows no flags of open-ended names: gin's go their own way.
    overrides = tuple(a.removeprefix(_PREFIX) for a in argv[1:] if a.startswith(_PREFIX))
    rest = [a for a in argv if not a.startswith(_PREFIX)]

    def on_flags(left: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.INFO)
            logging.get_absl_handler().addFilter(_is_wanted)
            logging.get_absl_handler().setFormatter(_Plain())
        arguments = Arguments(
            tuple(_GIN_FILE.value), overrides, tuple(_SEARCH_PATHS.value), tuple(left[1:])
        )
        try:
            for folder in arguments.positional:
                storage.check("folder", folder)
            sys.exit(main(arguments))
        except InputError as error:
            _stop(str(error), error.exit_code)
        except OSError as error:
            _stop_if_understood(error)
            if error.errno not in _DISK_ERRORS:
                cluster.end(error)
                raise
            _stop(
                f"{error.filename or 'a file'}: {error.strerror}; free or unlock the disk, or "
                f"choose other folders with MODEL_DIR and CACHE_DIR"
            )
        except Exception as error:
            _stop_if_understood(error)
            cluster.end(error)
            raise

    app.run(on_flags, argv=rest, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """What absl's own parser leaves; a flag that there is not ends the program as wrong input."""
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        told = " ".join(str(error).split())
        for raw, words in _RAW.items():
            told = re.sub(rf"^flag (.*?): .*{raw}.*", rf"\1: expected {words}", told)
        _stop(f"{told}; --help names all")


class _Plain(logging.PythonFormatter):
    """What the run tells stands in plain words; who warns, when and where, before a warning."""

    def format(self, record: python_logging.LogRecord) -> str:
        told = record.levelno == python_logging.INFO and record.pathname.startswith(_PACKAGE)
        return record.getMessage() if told else super().format(record)


def _is_wanted(record: python_logging.LogRecord) -> bool:
    """Whether to log: what libraries say of every checkpoint would hide what the run says."""
    if record.pathname.startswith(_PACKAGE):
        return True
    loud = python_logging.ERROR if "/orbax/" in record.pathname else python_logging.WARNING
    return record.levelno >= loud


def _stop_if_understood(error: Exception) -> None:
    """Stops where a store failed, after its retries, or devices had too little memory."""
    failure = cluster.understood(error)
    if failure:
        _stop(str(failure), failure.exit_code)


def _stop(message: str, code: int = EXIT_INPUT_ERROR) -> NoReturn:
    logging.flush()
    print(f"error: {message}", file=sys.stderr)
    cluster.leave(code)


def _help(macros: str) -> str:
    """What a binary does, its own flags, and every gin file and macro."""
    own = flags.FLAGS.flags_by_module_dict()
    about = sys.modules["__main__"].__doc__ or ""
    lines = [about.strip(), "", "flags:"]
    for module in ("__main__", sys.argv[0], "launch.workers", __name__):
        for flag in own.get(module, []):
            lines.append(f"  --{flag.name}={flag.default!r}\n      {flag.help}")
    lines.append("  --gin.NAME=value\n      Sets a macro; the last word over all gin files.")
    return "\n".join([*lines, "", macros])
