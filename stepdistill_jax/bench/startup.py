"""The time from a train command to the end of its first step."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from stepdistill_jax.bench.measurement import Results, announce
from stepdistill_jax.bench.run_speed import has_tensorflow
from stepdistill_jax.spec import METRICS_FILE, InputError

# A start takes long, so this limits the number of windows.
_MAX_STARTS = 3
_POLL_SECONDS = 0.02
# Characters of a failed command's output in the error.
_OUTPUT_TAIL = 2000


def measure(
    gin_files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str],
    turns: int,
    results: Results,
) -> None:
    """Cold and warm starts of `launch.train`, in turns; before this process takes a device.

    A cold start has neither a token cache nor compiled programs; a warm one has those of the cold
    start. Without TensorFlow a cold start is impossible and nothing is measured.
    """
    announce("start-up")
    if not has_tensorflow():
        results.left_out.append(
            "start-up (a cold one needs TensorFlow and SeqIO, which are not installed)"
        )
        return
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(min(turns, _MAX_STARTS)):
        with tempfile.TemporaryDirectory() as folder:
            caches = pathlib.Path(folder) / "caches"
            for kind, times in seconds.items():
                model_dir = pathlib.Path(folder) / kind
                command = train_command(gin_files, overrides, search_paths, model_dir, caches)
                times.append(seconds_to_first_step(command, model_dir))
    for kind, times in seconds.items():
        results.add(f"start-up, {kind}", "s", times, "command to the end of step 1")


def train_command(
    gin_files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str],
    model_dir: pathlib.Path,
    cache_dir: pathlib.Path,
) -> list[str]:
    """`launch.train` for a run of one step from random parameters, in the given folders."""
    last_overrides = (
        f"MODEL_DIR={str(model_dir)!r}",
        f"CACHE_DIR={str(cache_dir)!r}",
        "TRAIN_STEPS=1",
        "WARMUP_STEPS=0",
        "INITIAL_CHECKPOINT=None",
    )
    return [
        sys.executable,
        "-m",
        "launch.train",
        *(f"--gin_file={name}" for name in gin_files),
        *([f"--gin_search_paths={','.join(search_paths)}"] if search_paths else []),
        *(f"--gin.{setting}" for setting in (*overrides, *last_overrides)),
    ]


def seconds_to_first_step(command: Sequence[str], model_dir: pathlib.Path) -> float:
    """Runs `command` until `model_dir` has the metrics of the first step, then kills it.

    Raises:
        InputError: the command ended before its first step.
    """
    metrics = model_dir / METRICS_FILE
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                ended = process.poll() is not None
                if metrics.exists() and metrics.stat().st_size:
                    return time.perf_counter() - started
                if ended:
                    output.seek(0)
                    tail = output.read().decode(errors="replace")[-_OUTPUT_TAIL:].strip()
                    raise InputError(
                        f"--startup: launch.train ended with exit code {process.returncode} before "
                        f"its first step. Fix its error, or omit --startup. Its output: {tail}"
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            # On SIGTERM it would save a checkpoint first.
            process.kill()
            process.wait()
