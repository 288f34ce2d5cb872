"""What the binaries share: flags, and errors as one line with an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import logging as python_logging
import os
import pathlib
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from absl import app, flags, logging

from stepdistill_jax import storage
from stepdistill_jax.parallel import cluster
from stepdistill_jax.run import load
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import EXIT_INPUT_ERROR, EXIT_PREEMPTED, InputError

_PREFIX = "--gin."
_HELP = frozenset({"--help", "-h", "-help", "--helpfull", "-helpfull"})
# absl repeats Python's error texts.
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
    """The parsed command line.

    Attributes:
        gin_files: values of --gin_file.
        overrides: ``NAME=value`` of each --gin.NAME=value.
        search_paths: values of --gin_search_paths.
        positional: arguments that are not flags.
    """

    gin_files: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    search_paths: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()

    def parse(self) -> RunConfig:
        """The run that the gin files and overrides describe.

        Raises:
            InputError: no file is named; or see `load.parse`.
        """
        if not self.gin_files:
            raise InputError(
                "--gin_file is missing. Name a run file, as in --gin_file=demo.gin; --help lists "
                "those that ship."
            )
        return load.parse(self.gin_files, self.overrides, self.search_paths)

    def refuse_positional(self) -> None:
        """Raises InputError where an argument is no flag."""
        if self.positional:
            raise InputError(
                f"{' '.join(self.positional)}: not a flag. Write --gin_file=FILE and "
                "--gin.NAME=value; see --help."
            )


def run(main: Callable[[RunConfig], int | None], argv: Sequence[str] | None = None) -> None:
    """Runs a binary on one `RunConfig`; takes no positional arguments. Never returns."""

    def on_config(arguments: Arguments) -> int | None:
        arguments.refuse_positional()
        return main(arguments.parse())

    run_with_arguments(on_config, argv)


def run_with_arguments(
    main: Callable[[Arguments], int | None],
    argv: Sequence[str] | None = None,
    help_text: Callable[[], str] = load.help_text,
) -> None:
    """Runs a binary on its `Arguments` and exits with what it returns (None = 0).

    `InputError`, a failing store, a disk that cannot be written and too little device memory become
    one line on stderr and `EXIT_INPUT_ERROR`, or `EXIT_UNAVAILABLE` where a retry may succeed.
    SIGTERM and Ctrl-C become one line and `EXIT_PREEMPTED`.

    Args:
        main: the program.
        argv: the command line; None = `sys.argv`.
        help_text: lists the gin files and macros for ``--help``.
    """
    argv = list(sys.argv if argv is None else argv)
    if _HELP & set(argv[1:]):
        with _quiet_without_reader():
            print(_help(help_text()))
        sys.exit(0)
    # absl does not support flags with arbitrary names, so --gin.NAME is parsed here.
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
            with _interrupted_by_signals(), _quiet_without_reader():
                code = main(arguments)
            sys.exit(code)
        except KeyboardInterrupt as stopped:
            by = str(stopped) or signal.SIGINT.name
            # From this process, be it the lead or not.
            print(f"\nstopped by {by}. Run the same command again.", file=sys.stderr, flush=True)
            cluster.leave(EXIT_PREEMPTED)
        except InputError as error:
            _stop(str(error), error.exit_code)
        except OSError as error:
            _stop_if_known(error)
            if error.errno not in storage.DISK_ERRORS:
                cluster.end(error)
                raise
            _stop(
                f"{error.filename or 'a file'}: {error.strerror}. Free disk space or grant "
                "permission, or set MODEL_DIR and CACHE_DIR to other folders."
            )
        except Exception as error:
            _stop_if_known(error)
            cluster.end(error)
            raise

    app.run(on_flags, argv=rest, flags_parser=_parse_flags)


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Raises KeyboardInterrupt at SIGTERM and Ctrl-C; a second one ends the program at once.

    What saves its work first, such as the train loop, handles them itself.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet_without_reader() -> Iterator[None]:
    """Ends the program without a word where nobody reads its output any more, as after `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise  # another pipe
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        cluster.leave(128 + signal.SIGPIPE)  # what a shell shows for ls


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses absl's flags; an unknown flag ends the program as wrong input."""
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        text = " ".join(str(error).split())
        for raw, words in _RAW.items():
            text = re.sub(rf"^flag (.*?): .*{raw}.*", rf"\1: expected {words}", text)
        _stop(f"{text}. See --help.")


class _Plain(logging.PythonFormatter):
    """Our progress lines as they are; everything else with time and place."""

    def format(self, record: python_logging.LogRecord) -> str:
        is_ours = record.levelno == python_logging.INFO and record.pathname.startswith(_PACKAGE)
        return record.getMessage() if is_ours else super().format(record)


def _is_wanted(record: python_logging.LogRecord) -> bool:
    """Whether to log a record: libraries log so much that it would hide the run's own lines."""
    if record.pathname.startswith(_PACKAGE):
        return True
    if "/orbax/" in record.pathname and record.exc_info:
        return False  # Its threads raise the same error again where the run waits for them.
    minimum = python_logging.ERROR if "/orbax/" in record.pathname else python_logging.WARNING
    return record.levelno >= minimum


def _stop_if_known(error: Exception) -> None:
    """Stops where a store failed after its retries, or device memory was too small."""
    failure = cluster.understood(error)
    if failure:
        _stop(str(failure), failure.exit_code)


def _stop(message: str, code: int = EXIT_INPUT_ERROR) -> NoReturn:
    logging.flush()
    print(f"error: {message}", file=sys.stderr)
    cluster.leave(code)


def _help(macros: str) -> str:
    """What a binary does, its flags, and every gin file and macro."""
    defined = flags.FLAGS.flags_by_module_dict()
    about = sys.modules["__main__"].__doc__ or ""
    lines = [about.strip(), "", "flags:"]
    for module in ("__main__", sys.argv[0], "launch.workers", __name__):
        for flag in defined.get(module, []):
            lines.append(f"  --{flag.name}={flag.default!r}\n      {flag.help}")
    lines.append("  --gin.NAME=value\n      Sets a macro; wins over all gin files.")
    return "\n".join([*lines, "", macros])
