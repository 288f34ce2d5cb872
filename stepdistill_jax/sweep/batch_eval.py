"""Many runs scored one after another, each by launch.eval in a process of its own."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType

from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.parallel import cluster
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.results import VALIDATION, Result, read_results
from stepdistill_jax.spec import (
    CONFIG_FILE,
    EVAL_FOLDER,
    EXIT_INPUT_ERROR,
    SCORE_FILE,
    TEACHER,
    InputError,
)
from stepdistill_jax.sweep import runner
from stepdistill_jax.text import columns, duration

_NUMBERS = frozenset({"step", "accuracy", "stderr", "n", "time"})
_PATTERN = frozenset("*?[")
# Of what a process says, as much as holds the reason of its failure.
_LINES_KEPT = 200


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder that is to be scored, or was.

    Attributes:
        folder: the run's.
        config: as it is scored; None where the folder or an override is wrong.
        failed: why it could not be scored; "" = it could.
        results: of the steps and splits that were asked for, once it is scored.
        new: how many steps and splits its process scored; the others were.
        seconds: that its process took.
        code: its exit code.
    """

    folder: str
    config: RunConfig | None
    failed: str = ""
    results: tuple[Result, ...] = ()
    new: int = 0
    seconds: float = 0.0
    code: int = 0


def read_lists(paths: Iterable[epath.PathLike]) -> list[str]:
    """The lines of files that name folders, but for empty ones and those that begin with #.

    Raises:
        InputError: there is no such file.
    """
    lines: list[str] = []
    for path in map(epath.Path, paths):
        if not path.exists():
            raise InputError(f"--from_file={path}: no such file; write one folder a line into it")
        lines += (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def expand(named: Sequence[str]) -> list[str]:
    """Folders that are named, and those with a run that patterns fit, each once and in order.

    Of several names of one folder the first stays.

    Raises:
        InputError: nothing is named, nothing fits a pattern, or it is none of a store's.
    """
    if not named:
        raise InputError("nothing to score: name folders of runs, patterns, or --from_file=FILE")
    folders: list[str] = []
    for name in named:
        if not _PATTERN & set(name):
            folders.append(name.rstrip("/") or name)
            continue
        if storage.is_remote(name) and ("**" in name or _PATTERN & set(_bucket(name))):
            raise InputError(
                f"{name}: a pattern on a store has no ** and names its bucket; write a * for each "
                "folder, as in gs://BUCKET/*/*"
            )
        parts = epath.Path(name).parts
        fixed = next(i for i, part in enumerate(parts) if _PATTERN & set(part))
        below = epath.Path(*parts[:fixed]) if fixed else epath.Path()
        found = sorted(os.fspath(path) for path in below.glob("/".join(parts[fixed:])))
        found = [path for path in found if (epath.Path(path) / CONFIG_FILE).exists()]
        if not found:
            raise InputError(f"{name}: no folder with a {CONFIG_FILE} fits; check the path")
        folders += found
    first: dict[str, str] = {}
    for folder in folders:
        first.setdefault(storage.absolute(folder), folder)
    return list(first.values())


def _bucket(path: str) -> str:
    return path.partition("://")[2].partition("/")[0]


def look(folder: str, overrides: Sequence[str]) -> Run:
    """Reads how a folder is to be scored; what is wrong with it is told at the end."""
    try:
        return Run(folder, configs.read(folder, overrides))
    except InputError as error:
        return Run(folder, None, f"exit code {EXIT_INPUT_ERROR}: {error}")


def refuse_hopeless(runs: Sequence[Run]) -> None:
    """Stops where no folder can be scored, as with a wrong override.

    Raises:
        InputError: with the first one's reason.
    """
    if all(run.config is None for run in runs):
        reason = runs[0].failed.removeprefix(f"exit code {EXIT_INPUT_ERROR}: ")
        others = f" (and so on, of {len(runs)} folders)" if len(runs) > 1 else ""
        raise InputError(f"{reason}{others}")


class _StoppedError(Exception):
    """SIGTERM or Ctrl-C came."""


def score_each(runs: Sequence[Run], overrides: Sequence[str]) -> tuple[list[Run], bool]:
    """Scores run after run; what they print is passed on.

    Returns:
        The runs that are done, failed ones among them, and whether a signal stopped the rest.
    """
    done: list[Run] = []
    with _signals(), contextlib.suppress(_StoppedError):
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {run.folder}", flush=True)
            done.append(run if run.config is None else _score(run, run.config, overrides))
    return done, len(done) < len(runs)


def _score(run: Run, config: RunConfig, overrides: Sequence[str]) -> Run:
    start = time.monotonic()
    before = _scores(config)
    command = [sys.executable, "-m", "launch.eval", run.folder, *(f"--gin.{o}" for o in overrides)]
    said: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=cluster.alone(),
        # Ctrl-C reaches this program alone, which passes it on.
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said.append(line)
                print(line, end="", flush=True)
            code = process.wait()
        except _StoppedError:
            process.terminate()
            raise
    seconds = time.monotonic() - start
    try:
        failed = runner.failure("".join(said), code) if code else ""
        results = () if code else _asked_for(config)
    except InputError as error:
        failed, results = str(error), ()
    return dataclasses.replace(
        run,
        failed=failed,
        results=results,
        new=0 if failed else len(_scores(config) - before),
        seconds=seconds,
        code=code,
    )


def _scores(config: RunConfig) -> frozenset[str]:
    """The scores in a run's folder, a file for each step, split and EVAL_MODE."""
    folder = epath.Path(config.model_dir) / EVAL_FOLDER
    # They are only counted: what cannot be read, the run's own process says.
    with contextlib.suppress(Exception):
        found = [folder.glob(f"{below}/{SCORE_FILE}") for below in ("*/*", "*/*/*")]
        return frozenset(os.fspath(path) for paths in found for path in paths)
    return frozenset()


def _asked_for(config: RunConfig) -> tuple[Result, ...]:
    """The results of the steps and splits that a configuration names.

    Read from results.jsonl alone: Orbax, asked for the checkpoints, would take the accelerator, and
    the process of the next run could not have it.
    """
    step = config.eval.step
    found = [
        result for result in read_results(config.model_dir) if result.split in config.eval.splits
    ]
    if step == "best" and config.method != TEACHER:
        return tuple(result for result in found if result.selected_on == VALIDATION)
    if step == "latest":
        step = max((result.step for result in found), default=0)
    return tuple(result for result in found if result.step == step or not isinstance(step, int))


def report(runs: Sequence[Run]) -> str:
    """A table of what was scored, then a line for each folder that failed."""
    rows = [("folder", "step", "split", "accuracy", "stderr", "n", "time")]
    for run in runs:
        for result in run.results:
            numbers = (f"{result.accuracy:.4f}", f"{result.stderr:.4f}", str(result.n))
            spent = duration(run.seconds) if result is run.results[0] else ""
            rows.append((run.folder, str(result.step), result.split, *numbers, spent))
    failed = [f"failed: {run.folder}: {run.failed}" for run in runs if run.failed]
    scored = [columns(rows, _NUMBERS)] if len(rows) > 1 else []
    new = sum(run.new > 0 for run in runs)
    known = len(runs) - len(failed) - new
    counts = f"{new} scored now, {known} before, {len(failed)} failed"
    return "\n".join([*scored, *failed, counts])


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise _StoppedError

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
