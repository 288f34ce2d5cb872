"""Tests everything that a run needs, on every host, before hours of training.

It writes only below ``MODEL_DIR/.preflight-<id>``, which it deletes at the end, so MODEL_DIR may
hold a run that trains or is finished. The run reuses the token caches and compiled programs.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
import time
import uuid
from collections.abc import Iterable
from typing import Any

from absl import logging
from etils import epath

from stepdistill_jax.parallel import cluster, compilation, processes
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import EXIT_INPUT_ERROR, InputError
from stepdistill_jax.train import preflight_checks, preflight_hosts

OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"
# Width of the first three columns of the table, and the minimum width of the last one.
_LABELS = 33
_MIN_WIDTH = 40
# A remedy is the sentences after the first one; in older texts it follows the last semicolon.
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])")


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check on all hosts: `OK`, `FAILED` or `NOT_RUN`, and why."""

    check: str
    result: str
    detail: str
    remedy: str = ""
    seconds: float = 0.0


def run(config: RunConfig) -> int:
    """Runs all checks and prints a line for each; returns 0, or `EXIT_INPUT_ERROR` if one failed.

    Raises:
        InputError: METHOD trains nothing.
    """
    if not config.streams:
        raise InputError(
            f"METHOD={config.method!r} trains nothing that --preflight could test. Run the same "
            "command without --preflight."
        )
    started = time.perf_counter()
    compilation.enable_compilation_cache(config.tokens.root())
    identity = processes.from_lead(lambda: uuid.uuid4().hex[:8])
    checks = preflight_checks.Checks(
        config, epath.Path(config.model_dir) / f".preflight-{identity}"
    )
    cluster.say(table([Finding("check", "result", "detail")], head=True))
    findings: dict[str, Finding] = {}
    try:
        for check in checks.listed():
            findings[check.name] = finding = _judge(check, findings, f"preflight/{identity}")
            cluster.say(table([finding]))
    finally:
        if processes.is_lead():
            checks.clean_up()
    cluster.say(_summary(findings.values(), time.perf_counter() - started))
    return EXIT_INPUT_ERROR if any(f.result == FAILED for f in findings.values()) else 0


def _judge(check: preflight_checks.Check, before: dict[str, Finding], key: str) -> Finding:
    """Runs one check on this host and joins its result with those of the other hosts.

    If another process dies meanwhile, JAX ends this one too (`parallel.cluster`).
    """
    missing = [need for need in check.needs if before[need].result != OK]
    if missing:
        return Finding(check.name, NOT_RUN, f"needs {', '.join(missing)}")
    started = time.perf_counter()
    try:
        here = (OK, check.run(), "")
    except Exception as error:  # Later checks are useful whatever this one raises.
        here = (FAILED, *explain(error))
    by_host: list[Any] = processes.gather(f"{key}/{check.name}", [preflight_hosts.name(), [*here]])
    result, detail, remedy = _joined({host: tuple(found) for host, found in by_host})
    return Finding(check.name, result, detail, remedy, time.perf_counter() - started)


def explain(error: Exception) -> tuple[str, str]:
    """The cause and the remedy that an error names."""
    error = cluster.understood(error) or error
    text = str(error)
    if isinstance(error, InputError):
        end = _SENTENCE_END.search(text)
        if end:
            return text[: end.start()], text[end.end() :]
        cause, _, remedy = text.rpartition("; ")
        return (cause, remedy) if cause else (remedy, "")
    if isinstance(error, OSError) and error.strerror:
        cause = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return cause, "Free disk space, grant read and write permission, or choose another folder."
    first = next(iter(text.splitlines()), "")
    logging.error("Unexpected error:", exc_info=error)
    return f"{type(error).__name__}: {first}", "Read the stack trace above."


def _joined(by_host: dict[str, tuple[str, str, str]]) -> tuple[str, str, str]:
    """One (result, detail, remedy) for all hosts; a failure names the hosts that failed."""
    failed = {host: here for host, here in by_host.items() if here[0] == FAILED}
    if not failed:
        return next(iter(by_host.values()))
    if len(failed) == len(by_host) and len(set(failed.values())) == 1:
        return next(iter(failed.values()))
    detail = "; ".join(f"{host}: {here[1]}" for host, here in failed.items())
    return FAILED, detail, next(iter(failed.values()))[2]


def table(findings: Iterable[Finding], *, head: bool = False) -> str:
    """Rows of the table: check, result, seconds, detail and, below it, the remedy."""
    width = max(_MIN_WIDTH, shutil.get_terminal_size((100, 24)).columns - _LABELS)
    lines = []
    for finding in findings:
        seconds = "" if finding.result == NOT_RUN else f"{finding.seconds:.1f} s"
        labels = f"{finding.check:<17}{finding.result:<8}{'' if head else seconds:>6}  "
        text = textwrap.wrap(finding.detail, width, break_on_hyphens=False) or [""]
        if finding.remedy:
            text += textwrap.wrap(f"-> {finding.remedy}", width, break_on_hyphens=False)
        lines += [(labels + text[0]).rstrip(), *(" " * _LABELS + line for line in text[1:])]
    return "\n".join(lines)


def _summary(findings: Iterable[Finding], seconds: float) -> str:
    counts = dict.fromkeys((OK, FAILED, NOT_RUN), 0)
    for finding in findings:
        counts[finding.result] += 1
    if counts[FAILED]:
        return (
            f"preflight: {counts[FAILED]} of {sum(counts.values())} checks failed, "
            f"{counts[NOT_RUN]} were not run ({seconds:.0f} s). Follow the remedies after the "
            "arrows, and run the same command again."
        )
    return (
        f"preflight: all {counts[OK]} checks passed in {seconds:.0f} s. To train, run the same "
        "command without --preflight."
    )
