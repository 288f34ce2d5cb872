"""A run's claim on its folder: the configuration that lies there is this run's."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator

from etils import epath

from stepdistill_jax import records, storage
from stepdistill_jax.checkpoint import restore
from stepdistill_jax.parallel import processes
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.results import Result, read_results
from stepdistill_jax.spec import CONFIG_FILE, FINISHED_FILE, InputError

# Hosts may keep their copies of the data in folders of their own.
_OF_A_HOST = frozenset({"DATA_DIR", "CACHE_DIR"})


def reach(config: RunConfig) -> None:
    """Asks the stores that a run's folders lie on whether they can be used.

    Raises:
        InputError: one cannot, saying why.
    """
    storage.check("MODEL_DIR", config.model_dir, write=True)
    storage.check("CACHE_DIR", config.tokens.root(), write=True)
    storage.check("INITIAL_CHECKPOINT", config.initial_checkpoint or "")


def claim(config: RunConfig) -> str:
    """Writes ``config.gin``, or checks that the run in MODEL_DIR is this one; returns its text.

    A run that stopped before its first checkpoint or result holds nothing to spoil. Of several
    processes the lead claims for all.

    Raises:
        InputError: MODEL_DIR holds a run with other settings, or cannot be written; or see
            `refuse_strangers`.
    """
    text = processes.from_lead(lambda: _claim(config))
    refuse_strangers(config)
    return text


def refuse_strangers(config: RunConfig) -> None:
    """Checks that all processes have one run before them: the same settings, the same MODEL_DIR.

    What each finds in a folder of its own would differ without a word, and a checkpoint that they
    write together would never be whole.

    Raises:
        InputError: this process was started with other settings than the lead; or MODEL_DIR, as
            all processes then say, is not shared or cannot be written.
    """
    if processes.count() == 1:
        return
    of_lead = configs.values(processes.from_lead(lambda: config))
    own = configs.values(config)
    different = [
        f"{name}={own[name]!r} (process 0: {value!r})"
        for name, value in of_lead.items()
        if own[name] != value and name not in _OF_A_HOST
    ]
    if different:
        raise InputError(
            f"process {processes.index()} was started with {', '.join(different)}; start the same "
            "command in all processes"
        )
    # A name that is new each time: any other file might be a host's own copy of the lead's.
    path = processes.from_lead(lambda: _sign(config))
    seen = processes.gather(f"claim/{path.name}", path.exists())
    if processes.is_lead():
        path.unlink()
    without = [str(process) for process, sees in enumerate(seen) if not sees]
    if without:
        raise InputError(
            f"MODEL_DIR={config.model_dir!r} is not shared: what process 0 writes there, process "
            f"{', '.join(without)} does not find; choose a MODEL_DIR that all hosts share (gs://, "
            "NFS)"
        )


def _sign(config: RunConfig) -> epath.Path:
    """Writes a file in MODEL_DIR under a name that no file ever had; returns its path."""
    path = epath.Path(config.model_dir) / f".shared-{uuid.uuid4().hex}"
    with writable(config):
        records.write_atomic(path, "")
    return path


def _claim(config: RunConfig) -> str:
    refuse_other(config)
    text = configs.dump(config)
    with writable(config):
        records.write_atomic(epath.Path(config.model_dir) / CONFIG_FILE, text)
    return text


@contextlib.contextmanager
def writable(config: RunConfig) -> Iterator[None]:
    """Turns what a full or forbidden MODEL_DIR raises into one clear error."""
    try:
        yield
    except OSError as error:
        storage.raise_failure(error)
        raise InputError(
            f"MODEL_DIR={config.model_dir!r} cannot be written: {error.strerror or error}; "
            "choose another MODEL_DIR, or make room or give the right to write"
        ) from error


def refuse_other(config: RunConfig) -> None:
    """Checks that the run in MODEL_DIR, where there is one, is this one.

    A run that stopped before its first checkpoint or result holds nothing to spoil.

    Raises:
        InputError: it has other settings.
    """
    path = epath.Path(config.model_dir) / CONFIG_FILE
    begun = restore.available_steps(config.model_dir) or read_results(config.model_dir)
    changed = {}
    if path.exists() and begun:
        changed = configs.difference(configs.read(config.model_dir), config)
    if not changed:
        return
    remedy = "repeat the settings in its config.gin to continue it"
    before, now = changed.get("TRAIN_STEPS", (0, 0))
    if now > before and (epath.Path(config.model_dir) / FINISHED_FILE).exists():
        remedy = (
            "repeat the settings in its config.gin to score it again; its schedule is "
            "finished and cannot be lengthened, but "
            f"INITIAL_CHECKPOINT={config.model_dir!r} in a new MODEL_DIR starts from its "
            "best step"
        )
    listed = ", ".join(f"{n}={old!r} (now {new!r})" for n, (old, new) in changed.items())
    raise InputError(
        f"{config.model_dir} holds a run with {listed}; choose another MODEL_DIR, or {remedy}"
    )


def mark_finished(config: RunConfig, steps: int, best: int, scored: list[Result]) -> None:
    """Says that nothing is left to do for a run of so many steps, the best of them `best`."""
    if not processes.is_lead():
        return
    accuracy = {result.split: result.accuracy for result in scored}
    text = json.dumps({"step": steps, "best_step": best, "accuracy": accuracy}, indent=1) + "\n"
    records.write_atomic(epath.Path(config.model_dir) / FINISHED_FILE, text)
