"""Runs an extraction: checks, progress bar, signals, and what is printed at the end."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys

from stepdistill_jax.spec import CONFIG_FILE, EXIT_INCOMPLETE, EXIT_PREEMPTED, InputError
from stepdistill_jax.teacher import clients, load, store, summary, token_count
from stepdistill_jax.teacher.extractor import Ending, Extractor
from stepdistill_jax.teacher.prepared import Prepared
from stepdistill_jax.teacher.progress_bar import notify, progress_bar, show
from stepdistill_jax.teacher.resume import ResumeState
from stepdistill_jax.teacher.store import Store


def run(prepared: Prepared) -> int:
    """Asks the teacher and writes what training reads; returns the exit code.

    Raises:
        InputError: a prompt is too long, the folder is locked or holds another extraction, or a
            disk is full.
        EndpointError: the endpoint fails before anything is sent.
    """
    try:
        return _run(prepared)
    except OSError as error:
        if not error.filename:
            raise
        raise InputError(
            f"{error.filename}: {error.strerror}. Free or unlock the disk, or set EXTRACT_DIR and "
            "ANSWER_CACHE to other folders; all earlier responses are safe."
        ) from error


def _run(prepared: Prepared) -> int:
    extract, data = prepared.extraction.extract, prepared.extraction.run.data
    _check_length(prepared)
    prefix_tokens = prepared.count_prefix()
    notify(*clients.warnings(extract))
    client = clients.open(extract, data, notify)
    log = Store(prepared.folder, tuple(prepared.units), prepared.share)
    try:
        _refuse_other_config(prepared)
        state = prepared.load()
        prepared.write_settings(prefix_tokens)
        for line in [*log.torn, *prepared.describe(state)]:
            print(line, flush=True)
        budget = state.budget(extract, prepared.share)
        cache = prepared.cache()
        with progress_bar(len(state.states)) as bar:
            extractor = Extractor(
                prepared.annotator,
                state.states,
                log,
                cache,
                budget,
                prepared.bounds(state),
                client,
                state.unanswered,
                functools.partial(show, bar, budget),
            )
            ending = asyncio.run(_until_signal(extractor))
    finally:
        log.close()
    if extractor.counts.cached:
        print(
            f"{extractor.counts.cached:,} responses came from equal requests: from the cache "
            f"{cache.folder}, or from examples of equal text"
        )
    if cache.damaged:
        print(f"{cache.damaged} damaged entries in {cache.folder} were asked again and replaced")
    if prepared.share.workers == 1:
        print(summary.write(prepared, state), flush=True)
    return _end(prepared, state, extractor, ending)


def _check_length(prepared: Prepared) -> None:
    """Raises InputError where the longest prompt does not fit the teacher's context."""
    extract = prepared.extraction.extract
    context = extract.context_length or clients.context_length(extract)
    if not context or prepared.counter is None:
        return
    longest = max(
        (example for examples in prepared.units.values() for example in examples),
        key=lambda example: len(example.input),
    )
    length = prepared.counter.request(prepared.annotator.prompt.request(longest, extract))
    token_count.check_context(length, extract, context, longest.where)


def _refuse_other_config(prepared: Prepared) -> None:
    """Raises InputError where the folder holds responses under other settings."""
    folder = prepared.folder
    if (folder / CONFIG_FILE).exists() and store.has_completions(folder):
        changed = load.difference(load.read(folder), prepared.extraction)
        if changed:
            listed = ", ".join(f"{n}={old!r} (now {new!r})" for n, (old, new) in changed.items())
            raise InputError(
                f"{folder} holds an extraction with {listed}. Repeat the settings in its "
                "config.gin to continue it, or set another EXTRACT_DIR."
            )


async def _until_signal(extractor: Extractor) -> Ending:
    """Runs the extractor, which SIGTERM and Ctrl-C stop."""

    def stop() -> None:
        print(
            f"\nstopping: waiting up to {extractor.drain_seconds:g} s for requests in flight; a "
            "second signal stops at once",
            file=sys.stderr,
            flush=True,
        )
        extractor.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return await extractor.run()


def _end(prepared: Prepared, state: ResumeState, extractor: Extractor, ending: Ending) -> int:
    """Prints why it ended and what is left; returns the exit code."""
    extract, counts, share = prepared.extraction.extract, extractor.counts, prepared.share
    left = f"{counts.examples - counts.done:,} examples are left"
    if counts.lost:
        print(f"{counts.lost} requests in flight were abandoned; they may have been paid for")
    if ending == Ending.STOPPED:
        print(
            f"stopped: all responses are in {prepared.folder}, {left}; run the same command again "
            "to continue",
            file=sys.stderr,
        )
        return EXIT_PREEMPTED
    if ending == Ending.FAILED:
        print(f"error: {extractor.failure}", file=sys.stderr)
        print(f"all responses are in {prepared.folder}, {left}", file=sys.stderr)
        return EXIT_INCOMPLETE
    if ending == Ending.COST:
        hint = ""
        if prepared.tokenizer is None and not counts.received:
            # Nothing is known of the prompt's length yet.
            hint = ", or set TEACHER_TOKENIZER: without it a prompt first counts one token per byte"
        print(
            f"MAX_COST={extract.max_cost} has no room for another request: "
            f"{extractor.budget.cost:.6f} is spent, {left}; raise it to continue{hint}"
        )
        return EXIT_INCOMPLETE
    if share.workers > 1:
        print(
            f"{counts.received:,} responses from the teacher, {counts.cached:,} from the cache, "
            f"{counts.errors:,} requests failed\n"
            f"worker {share.worker} of {share.workers} is done; when all are done: python -m "
            f"launch.extract --merge {prepared.folder}"
        )
    if state.beyond:
        print(
            f"MAX_ROWS={extract.max_rows} is reached: {state.beyond:,} examples are left; raise it "
            "to continue"
        )
        return EXIT_INCOMPLETE
    return 0
