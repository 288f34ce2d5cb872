"""Seconds from a train command to the end of its first step."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from stepdistill_jax.spec import METRICS_FILE, InputError

# Written by the train loop when a step's metrics have been read; `train.log` has the name.
_LOOK_EVERY = 0.02
_TAIL = 2000


def train_command(
    gin_files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str],
    model_dir: pathlib.Path,
    cache_dir: pathlib.Path,
) -> list[str]:
    """`launch.train` for a run of one step from scratch, with its own folders."""
    own = (
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
        # The last word on a macro counts.
        *(f"--gin.{setting}" for setting in (*overrides, *own)),
    ]


def seconds_to_first_step(command: Sequence[str], model_dir: pathlib.Path) -> float:
    """Runs `command` until the first step's line is in `model_dir`, then ends it.

    Raises:
        InputError: the command ended before.
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
                    said = output.read().decode(errors="replace")[-_TAIL:].strip()
                    raise InputError(
                        f"start-up cannot be measured: launch.train ended with exit code "
                        f"{process.returncode} before its first step; it said: {said}"
                    )
                time.sleep(_LOOK_EVERY)
        finally:
            # Not SIGTERM, at which it would save a checkpoint first.
            process.kill()
            process.wait()
