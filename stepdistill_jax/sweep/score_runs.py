"""Scores many runs one after another, each with launch.eval in a child process."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import subprocess
import time
from collections.abc import Iterable, Sequence

from etils import epath

from stepdistill_jax import storage
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
from stepdistill_jax.sweep import child_process
from stepdistill_jax.text import columns, duration

_NUMBERS = frozenset({"step", "accuracy", "stderr", "n", "time"})
_PATTERN = frozenset("*?[")
# Lines of output kept to find the reason of a failure.
_LINES_KEPT = 200


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """A run to score, and the outcome.

    Attributes:
        config: with the overrides; None if the folder or an override is wrong.
        failed: why scoring failed; "" if it did not.
        results: of the requested steps and splits, once scored.
        new: number of scores that its process added.
        seconds: duration of its process.
        code: exit code of its process.
    """

    folder: str
    config: RunConfig | None
    failed: str = ""
    results: tuple[Result, ...] = ()
    new: int = 0
    seconds: float = 0.0
    code: int = 0


def read_lists(paths: Iterable[epath.PathLike]) -> list[str]:
    """The lines of files that list folders; empty lines and comments (#) are left out.

    Raises:
        InputError: a file does not exist.
    """
    lines: list[str] = []
    for path in map(epath.Path, paths):
        if not path.exists():
            raise InputError(f"--from_file={path}: no such file. Write one folder a line into it.")
        lines += (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def expand(names: Sequence[str]) -> list[str]:
    """Folders, with patterns replaced by the matching folders of runs, in order.

    Of several names of one folder the first is kept.

    Raises:
        InputError: `names` is empty, a pattern matches no run, or a store cannot match it.
    """
    if not names:
        raise InputError("no folders to score. Name folders of runs, patterns or --from_file=FILE.")
    folders: dict[str, str] = {}
    for name in names:
        matches = _matches(name) if _PATTERN & set(name) else [name.rstrip("/") or name]
        for folder in matches:
            folders.setdefault(storage.absolute(folder), folder)
    return list(folders.values())


def _matches(pattern: str) -> list[str]:
    bucket = pattern.partition("://")[2].partition("/")[0]
    if storage.is_remote(pattern) and ("**" in pattern or _PATTERN & set(bucket)):
        raise InputError(
            f"{pattern}: a pattern on a store cannot contain ** or match buckets. Write a * for "
            "each folder, as in gs://BUCKET/*/*."
        )
    parts = epath.Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if _PATTERN & set(part))
    root = epath.Path(*parts[:fixed]) if fixed else epath.Path()
    paths = sorted(os.fspath(path) for path in root.glob("/".join(parts[fixed:])))
    folders = [path for path in paths if (epath.Path(path) / CONFIG_FILE).exists()]
    if not folders:
        raise InputError(f"{pattern}: no folder with a {CONFIG_FILE} matches. Check the path.")
    return folders


def read_run(folder: str, overrides: Sequence[str]) -> ScoredRun:
    """Reads how to score a folder; `failed` says what is wrong with it."""
    try:
        return ScoredRun(folder, configs.read(folder, overrides))
    except InputError as error:
        return ScoredRun(folder, None, f"exit code {EXIT_INPUT_ERROR}: {error}")


def refuse_hopeless(runs: Sequence[ScoredRun]) -> None:
    """Stops if no folder can be scored, for example because an override is wrong.

    Raises:
        InputError: the error of the first folder.
    """
    if all(run.config is None for run in runs):
        reason = runs[0].failed.removeprefix(f"exit code {EXIT_INPUT_ERROR}: ")
        others = f" (the first of {len(runs)} such folders)" if len(runs) > 1 else ""
        raise InputError(f"{reason}{others}")


class _StopSignal(Exception):  # noqa: N818 - no error
    """SIGTERM or Ctrl-C arrived."""


def _stop() -> None:
    raise _StopSignal


def score_each(runs: Sequence[ScoredRun], overrides: Sequence[str]) -> tuple[list[ScoredRun], bool]:
    """Scores one run after another and passes their output on.

    Returns:
        The finished runs, including failed ones, and whether a signal stopped the rest.
    """
    done: list[ScoredRun] = []
    with contextlib.suppress(_StopSignal), child_process.on_stop_signal(_stop):
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {run.folder}", flush=True)
            done.append(run if run.config is None else _score(run, run.config, overrides))
    return done, len(done) < len(runs)


def _score(run: ScoredRun, config: RunConfig, overrides: Sequence[str]) -> ScoredRun:
    start = time.monotonic()
    before = _scores(config)
    output: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
    with child_process.start(
        "launch.eval", run.folder, *(f"--gin.{override}" for override in overrides),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                output.append(line)
                print(line, end="", flush=True)
            code = process.wait()
        except _StopSignal:
            process.terminate()
            raise
    seconds = time.monotonic() - start
    try:
        failed = child_process.failure("".join(output), code) if code else ""
        results = () if code else requested_results(config)
    except InputError as error:
        failed, results = str(error), ()
    new = 0 if failed else len(_scores(config) - before)
    return dataclasses.replace(
        run, failed=failed, results=results, new=new, seconds=seconds, code=code
    )


def _scores(config: RunConfig) -> frozenset[str]:
    """The score files of a run, one for each step, split and EVAL_MODE."""
    folder = epath.Path(config.model_dir) / EVAL_FOLDER
    # They are only counted; launch.eval reports files it cannot read.
    with contextlib.suppress(Exception):
        matches = [folder.glob(f"{depth}/{SCORE_FILE}") for depth in ("*/*", "*/*/*")]
        return frozenset(os.fspath(path) for paths in matches for path in paths)
    return frozenset()


def requested_results(config: RunConfig) -> tuple[Result, ...]:
    """The results of the steps and splits that a configuration names.

    Reads only results.jsonl: Orbax would open the accelerator to list checkpoints, and the next
    child process could not use it.
    """
    step = config.eval.step
    splits = config.eval.splits
    settings = {} if config.method == TEACHER else configs.identity(config)
    results = [
        result
        for result in read_results(config.model_dir)
        if result.split in splits and result.settings == settings
    ]
    if step == "best" and config.method != TEACHER:
        return tuple(result for result in results if result.selected_on == VALIDATION)
    if step == "latest":
        step = max((result.step for result in results), default=0)
    return tuple(result for result in results if result.step == step or not isinstance(step, int))


def report(runs: Sequence[ScoredRun]) -> str:
    """A table of the scores, then one line for each folder that failed."""
    rows = [("folder", "step", "split", "accuracy", "stderr", "n", "time")]
    for run in runs:
        for result in run.results:
            numbers = (f"{result.accuracy:.4f}", f"{result.stderr:.4f}", str(result.n))
            spent = duration(run.seconds) if result is run.results[0] else ""
            rows.append((run.folder, str(result.step), result.split, *numbers, spent))
    failed = [f"failed: {run.folder}: {run.failed}" for run in runs if run.failed]
    table = [columns(rows, _NUMBERS)] if len(rows) > 1 else []
    new = sum(run.new > 0 for run in runs)
    earlier = len(runs) - len(failed) - new
    counts = f"{new} scored now, {earlier} before, {len(failed)} failed"
    return "\n".join([*table, *failed, counts])
