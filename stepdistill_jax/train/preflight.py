"""Tries all that a run needs, on every host, before hours are spent; touches nothing of the run.

It writes below ``MODEL_DIR/.preflight-<id>`` alone and deletes that at its end, so it may be asked
of a folder whose run goes on or is finished. What it leaves behind is worth having: token caches
and compiled programs, which the run then finds.
"""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import time
import uuid
from collections.abc import Iterable

from absl import logging
from etils import epath

from stepdistill_jax.parallel import cluster, compilation, processes
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import EXIT_INPUT_ERROR, InputError
from stepdistill_jax.train import preflight_checks, preflight_hosts

OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"
# Width of the first three columns; the rest is for what was found.
_LABELS = 33
_NARROWEST = 40


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of one check, on all hosts.

    Attributes:
        check: its name.
        result: `OK`, `FAILED` or `NOT_RUN`.
        found: what was found.
        remedy: what to do about it.
        seconds: that it took.
    """

    check: str
    result: str
    found: str
    remedy: str = ""
    seconds: float = 0.0


def run(config: RunConfig) -> int:
    """Runs all checks and prints a line for each; returns 0, or `EXIT_INPUT_ERROR` if one failed.

    Raises:
        InputError: METHOD trains nothing.
    """
    if not config.streams:
        raise InputError(
            f"METHOD={config.method!r} trains nothing that a preflight could try; run the same "
            "command without --preflight"
        )
    started = time.perf_counter()
    compilation.enable_compilation_cache(config.tokens.root())
    identity = processes.from_lead(lambda: uuid.uuid4().hex[:8])
    tried = preflight_checks.Checks(config, epath.Path(config.model_dir) / f".preflight-{identity}")
    for line in table([Finding("check", "result", "what was found")], head=True):
        cluster.say(line)
    findings: dict[str, Finding] = {}
    try:
        for check in tried.listed():
            findings[check.name] = finding = _judge(check, findings, f"preflight/{identity}")
            for line in table([finding]):
                cluster.say(line)
    finally:
        if processes.is_lead():
            tried.clean_up()
    cluster.say(_summary(findings.values(), time.perf_counter() - started))
    return EXIT_INPUT_ERROR if any(f.result == FAILED for f in findings.values()) else 0


def _judge(check: preflight_checks.Check, before: dict[str, Finding], key: str) -> Finding:
    """Runs one check on this host and hears what came of it on the others.

    Where one of them has died, JAX ends this process too while it waits (`parallel.cluster`).
    """
    lacking = [need for need in check.needs if before[need].result != OK]
    if lacking:
        return Finding(check.name, NOT_RUN, f"needs {', '.join(lacking)}")
    started = time.perf_counter()
    try:
        mine = (OK, check.run(), "")
    except Exception as error:  # whatever it is, the checks after it may still tell something
        mine = (FAILED, *explain(error))
    everywhere = processes.gather(f"{key}/{check.name}", (preflight_hosts.name(), mine))
    result, found, remedy = _joined(dict(everywhere))
    return Finding(check.name, result, found, remedy, time.perf_counter() - started)


def explain(error: Exception) -> tuple[str, str]:
    """What an error says of the cause, and of the remedy."""
    error = cluster.understood(error) or error
    text = str(error)
    if isinstance(error, InputError):
        found, _, remedy = text.rpartition("; ")
        return (found, remedy) if found else (remedy, "")
    if isinstance(error, OSError) and error.strerror:
        found = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return found, "make room, give the right to read and write, or choose another folder"
    first = next(iter(text.splitlines()), "")
    logging.error("Not foreseen:", exc_info=error)
    return f"{type(error).__name__}: {first}", "read the stack trace above"


def _joined(everywhere: dict[str, tuple[str, str, str]]) -> tuple[str, str, str]:
    """One result of all hosts' (result, found, remedy); a failure names the hosts that have it."""
    failed = {host: mine for host, mine in everywhere.items() if mine[0] == FAILED}
    if not failed:
        return next(iter(everywhere.values()))
    if len(failed) == len(everywhere) and len(set(failed.values())) == 1:
        return next(iter(failed.values()))
    found = ". ".join(f"{host}: {mine[1]}" for host, mine in failed.items())
    return FAILED, found, next(iter(failed.values()))[2]


def table(findings: Iterable[Finding], *, head: bool = False) -> list[str]:
    """Lines of the table: check, result, seconds, what was found and, below it, the remedy."""
    width = max(_NARROWEST, shutil.get_terminal_size((100, 24)).columns - _LABELS)
    lines = []
    for finding in findings:
        seconds = "" if finding.result == NOT_RUN else f"{finding.seconds:.1f} s"
        labels = f"{finding.check:<17}{finding.result:<8}{'' if head else seconds:>6}  "
        text = textwrap.wrap(finding.found, width, break_on_hyphens=False) or [""]
        if finding.remedy:
            text += textwrap.wrap(f"-> {finding.remedy}", width, break_on_hyphens=False)
        lines += [(labels + text[0]).rstrip(), *(" " * _LABELS + line for line in text[1:])]
    return lines


def _summary(findings: Iterable[Finding], seconds: float) -> str:
    counts = dict.fromkeys((OK, FAILED, NOT_RUN), 0)
    for finding in findings:
        counts[finding.result] += 1
    if counts[FAILED]:
        return (
            f"preflight: {counts[FAILED]} of {sum(counts.values())} checks failed, "
            f"{counts[NOT_RUN]} were not run ({seconds:.0f} s); do what stands at the arrows and "
            "run the same command again"
        )
    return (
        f"preflight: all {counts[OK]} checks passed in {seconds:.0f} s; the same command without "
        "--preflight trains"
    )
