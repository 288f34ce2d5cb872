"""An extraction as a program: prepared, planned, run under a progress bar, summed up, merged."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import pathlib
import signal
import sys
from collections.abc import Awaitable, Mapping, Sequence

import tqdm

from stepdistill_jax import records
from stepdistill_jax.data import inputs
from stepdistill_jax.records import Example
from stepdistill_jax.spec import CONFIG_FILE, EXIT_INCOMPLETE, EXIT_PREEMPTED, InputError
from stepdistill_jax.teacher import (
    clients,
    cost_estimate,
    load,
    prompt_length,
    prompts,
    store,
    summary,
    tokens,
)
from stepdistill_jax.teacher import resume as planned
from stepdistill_jax.teacher.budget import NOTHING, Bounds, Prices
from stepdistill_jax.teacher.clients.batch import Batch
from stepdistill_jax.teacher.extractor import Counts, Ending, Extractor
from stepdistill_jax.teacher.load import Extraction
from stepdistill_jax.teacher.progress_bar import ProgressBar
from stepdistill_jax.teacher.response_cache import DEFAULT_FOLDER, NONE, ResponseCache
from stepdistill_jax.teacher.resume import Annotator, ResumeState
from stepdistill_jax.teacher.store import Share, Store

# Answers of earlier calls that tell how long prompts are.
_LEARNT = 50


@dataclasses.dataclass
class Prepared:
    """What is asked, about which rows: all that needs no endpoint.

    Attributes:
        extraction: the configuration.
        share: this worker's.
        prompt: with the exemplars.
        teaching: prompt, teacher and metric.
        units: name -> rows.
        count: TEACHER_TOKENIZER's, where there is one.
        prefix_tokens: of the prompt before the row; None = not counted, or nothing counts it.
    """

    extraction: Extraction
    share: Share
    prompt: prompts.Prompt
    teaching: Annotator
    units: Mapping[str, Sequence[Example]]
    count: tokens.Counter | None
    prefix_tokens: int | None = None

    @property
    def folder(self) -> pathlib.Path:
        """EXTRACT_DIR."""
        return pathlib.Path(self.extraction.extract.extract_dir)

    def load(self) -> ResumeState:
        """What lies in the folder, and what is left to do."""
        return planned.load(self.folder, self.units, self.teaching, self.share)

    def shown_prompt(self) -> str:
        """The prompt before the row, and how long it is."""
        return prompt_length.shown(self.prompt, self.extraction.extract, self.count)

    def measure_prompt(self, *asked: pathlib.Path) -> None:
        """Finds `prefix_tokens`: as counted when these folders were asked, else by counting."""
        known = prompt_length.written(asked, self.teaching.prompt_hash)
        if known is None and not asked:
            known = prompt_length.before_row(self.prompt, self.extraction.extract, self.count)
        self.prefix_tokens = known

    def plan(self) -> str:
        """What is left to ask, and what it will cost."""
        _warn(*clients.doubts(self.extraction.extract))
        progress = self.load()
        extract = self.extraction.extract
        if self.count is None:
            count, how = prompt_length.request_count(extract), "counted by the endpoint"
            if count is not None:
                most = cost_estimate.COUNTED + (
                    cost_estimate.HINTS_COUNTED if extract.hint_wrong else 0
                )
                _warn(f"counting the tokens of up to {most} prompts at the endpoint ...")
        else:
            count, how = self.count.request, "counted"
        cache, bounds = _cache(self.extraction), _bounds(self, progress)
        made = cost_estimate.make(progress.rows, self.teaching, cache, bounds, count, how)
        left = planned.make_budget(extract, progress, self.share).left
        lines = [*_begun(self, progress), *cost_estimate.told(made, len(progress.rows), left)]
        return "\n".join([*lines, "nothing was asked"])


def prepare(extraction: Extraction, share: Share) -> Prepared:
    """Reads prompt and data.

    Raises:
        InputError: one of them is wrong, or EXTRACT_DIR is no folder on a disk.
    """
    extract, data = extraction.extract, extraction.run.data
    if "://" in extract.extract_dir:
        raise InputError(
            f"EXTRACT_DIR={extract.extract_dir!r}: name a folder on a disk, where lines can be "
            "added to a file; machines that share an extraction mount it, or are merged"
        )
    prompt = prompts.load(extract, data)
    units = inputs.load(data, extract.extract_splits, extract.extract_inputs)
    held = store.units(pathlib.Path(extract.extract_dir))
    evaluated = inputs.evaluated(data, {*units, *held})
    teaching = Annotator(extract, prompt, data.metric, evaluated)
    return Prepared(extraction, share, prompt, teaching, units, tokens.counter(extract))


def run(asked: Prepared) -> int:
    """Asks, with a progress bar, and writes what training reads; returns the exit code.

    Raises:
        InputError: a question is too long, the folder is another extraction's or locked, or a disk
            takes no more.
        EndpointError: the endpoint fails before anything is asked.
    """
    try:
        return _run(asked)
    except OSError as error:
        if not error.filename:
            raise
        raise InputError(
            f"{error.filename}: {error.strerror}; free or unlock the disk, or choose other folders "
            "with EXTRACT_DIR and ANSWER_CACHE; all answers before are safe"
        ) from error


def _run(asked: Prepared) -> int:
    extract, data = asked.extraction.extract, asked.extraction.run.data
    _check_length(asked)
    asked.measure_prompt()
    _warn(*clients.doubts(extract))
    client = None if extract.client == "batch" else clients.open(extract, data, _warn)
    batch = Batch(extract, asked.folder) if client is None else None
    opened = Store(asked.folder, tuple(asked.units), asked.share)
    try:
        _refuse_other_config(asked)
        progress = asked.load()
        describe(asked)
        for line in [*opened.torn, *_begun(asked, progress)]:
            print(line, flush=True)
        budget = planned.make_budget(extract, progress, asked.share)
        cache = _cache(asked.extraction)
        with ProgressBar(len(progress.rows), budget) as bar:
            extractor = Extractor(
                asked.teaching,
                progress.rows,
                opened,
                cache,
                budget,
                _bounds(asked, progress),
                bar.show,
            )
            if client is not None:
                ending = asyncio.run(_watched(extractor, extractor.run(client)))
            else:
                assert batch is not None
                work = extractor.run_batch(batch, progress.in_flight)
                ending = asyncio.run(_watched(extractor, work))
    finally:
        opened.close()
    if extractor.counts.cached:
        print(
            f"{extractor.counts.cached:,} answers came from {cache.folder}, where equal questions "
            "to a model of that name were answered before, or from equal rows"
        )
    if cache.damaged:
        print(f"{cache.damaged} damaged entries in {cache.folder} were asked again and replaced")
    if asked.share.workers == 1:
        print(summarise(asked, progress), flush=True)
    return _end(asked, progress, extractor, ending)


def summarise(asked: Prepared, progress: ResumeState) -> str:
    """Writes rationales, rows to look at and the summary; returns the table.

    Of all units that were ever asked about in the folder, whichever this call names.
    """
    paid = planned.read_paid(asked.folder, asked.extraction.extract)
    prices = Prices.of(asked.extraction.extract)
    sums = summary.totals(paid, prices)
    notes = summary.told(sums)
    held = summary.read_units(asked.folder)
    if prices.cost(NOTHING) is None and any(unit.get("cost") for unit in held.values()):
        notes.append("cost: not known of this call's units, as PRICE_INPUT and PRICE_OUTPUT lack")
    found = {}
    for name in store.in_order([*asked.units, *store.units(asked.folder)]):
        own = [row for row in progress.rows if row.unit == name]
        rows, gone = planned.answered(
            asked.folder, name, own, asked.teaching, functools.partial(_find, asked, name)
        )
        if gone and name in held and name not in asked.units:
            # Of an earlier call whose rows are not to be found: as that call left it.
            found[name] = held[name]
            continue
        if gone:
            notes.append(f"{name}: {gone:,} answered rows are not in the data as it is now")
        unit = summary.write_unit(
            asked.folder, name, asked.teaching, rows, paid.answers.get(name, ())
        )
        if name not in asked.units:
            unit["rows"] = max(unit["rows"], held.get(name, {}).get("rows") or 0)
        found[name] = unit
    extract = asked.extraction.extract
    content = {
        "dataset": asked.extraction.run.data.name,
        "model": extract.teacher_model or extract.replay,
        "client": extract.client,
        "prompt": {
            "hash": asked.teaching.prompt_hash,
            "exemplars": len(asked.prompt.exemplars),
            "tokens": asked.prefix_tokens,
        },
        "units": found,
        **sums,
    }
    written = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    records.write_atomic(asked.folder / store.SUMMARY_FILE, written)
    shown = "\n".join([summary.table(found), *notes])
    return f"{shown}\nrationales, summary and rows to look at are in {asked.folder}"


def _find(asked: Prepared, unit: str) -> Sequence[Example]:
    """All rows that a unit can have; none where the data that it was of is not named now."""
    extraction = asked.extraction
    try:
        return inputs.of_unit(extraction.run.data, unit, extraction.extract.extract_inputs)
    except InputError:
        return ()


def _warn(*lines: str) -> None:
    """Says something on stderr, above the bar where there is one."""
    for line in lines:
        tqdm.tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def _check_length(asked: Prepared) -> None:
    """Raises InputError where the longest question does not fit the teacher's context."""
    extract = asked.extraction.extract
    context = extract.context_length or clients.context_length(extract)
    count = prompt_length.request_count(extract) if asked.count is None else asked.count.request
    if not context or count is None:
        return
    longest = max(
        (example for examples in asked.units.values() for example in examples),
        key=lambda example: len(example.input),
    )
    length = count(asked.prompt.request(longest, extract))
    tokens.check_context(length, extract, context, longest.where)


def _cache(extraction: Extraction) -> ResponseCache:
    given = extraction.extract.answer_cache
    if given == NONE or extraction.extract.client == "replay":
        return ResponseCache(None, "")
    default = extraction.run.tokens.local_root() / DEFAULT_FOLDER
    folder = pathlib.Path(given).expanduser() if given else default
    return ResponseCache(folder, clients.source(extraction.extract))


def _bounds(asked: Prepared, progress: ResumeState) -> Bounds:
    """How long prompts are, by a tokenizer, else by what was answered so far."""
    bounds = Bounds(None if asked.count is None else asked.count.request)
    learnt = 0
    for row in progress.rows:
        for slot, answer in row.answers.items():
            if answer.prompt_tokens and not answer.error and learnt < _LEARNT:
                request = asked.teaching.request(row, *slot)
                bounds.learn(request, answer.prompt_tokens, answer.completion_tokens)
                learnt += 1
    return bounds


def _refuse_other_config(asked: Prepared) -> None:
    """Raises InputError where the folder holds answers under other settings."""
    path = asked.folder / CONFIG_FILE
    if path.exists() and store.has_answers(asked.folder):
        changed = load.difference(load.read(asked.folder), asked.extraction)
        if changed:
            listed = ", ".join(f"{n}={old!r} (now {new!r})" for n, (old, new) in changed.items())
            raise InputError(
                f"{asked.folder} holds an extraction with {listed}; repeat the settings in its "
                "config.gin to continue it, or choose another EXTRACT_DIR"
            )


def describe(asked: Prepared) -> None:
    """Writes ``config.gin`` and ``prompt.json``."""
    prompt_length.write(asked.folder, asked.prompt, asked.teaching.prompt_hash, asked.prefix_tokens)
    records.write_atomic(asked.folder / CONFIG_FILE, load.dump(asked.extraction))


def _begun(asked: Prepared, progress: ResumeState) -> list[str]:
    """What is asked, and what an earlier call left."""
    extract, share = asked.extraction.extract, asked.share
    answered = sum(bool(row.answers) for row in progress.rows)
    of = f", worker {share.worker} of {share.workers}" if share.workers > 1 else ""
    lines = [
        f"{extract.teacher_model or extract.replay} about {len(progress.rows):,} rows of "
        f"{asked.extraction.run.data.name} ({', '.join(asked.units)}){of}, "
        f"{answered:,} of them answered so far; answers go to {asked.folder}"
    ]
    if progress.passing:
        lines.append(f"{progress.passing:,} requests failed in a way that may pass: asked again")
    batched = len(progress.in_flight) - len(planned.lost_of(progress.in_flight, extract))
    if batched:
        lines.append(f"{batched:,} requests are in batches that were submitted")
    if progress.asked_again:
        lines.append(
            f"up to {progress.asked_again:,} requests were in flight when earlier calls were "
            "killed, or failed: they are asked again, and count as paid for"
        )
    return lines


async def _watched(extractor: Extractor, work: Awaitable[Ending]) -> Ending:
    """Runs `work`, which SIGTERM and Ctrl-C end."""

    def stop() -> None:
        seconds = extractor.teaching.extract.timeout
        print(
            f"\nstopping: waiting up to {seconds:g} s for what is in flight; a second signal stops "
            "at once",
            file=sys.stderr,
            flush=True,
        )
        extractor.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return await work


def _end(asked: Prepared, progress: ResumeState, extractor: Extractor, ending: Ending) -> int:
    """Says why it ended and what is left; returns the exit code."""
    extract, counts = asked.extraction.extract, extractor.counts
    left = f"{counts.rows - counts.done:,} rows are left"
    if counts.lost:
        print(f"{counts.lost} requests in flight were given up; they may have been paid for")
    if ending == Ending.STOPPED:
        print(
            f"stopped: all answers are in {asked.folder}, {left}; run the same command again to "
            "continue",
            file=sys.stderr,
        )
        return EXIT_PREEMPTED
    if ending == Ending.FAILED:
        print(f"error: {extractor.failure}", file=sys.stderr)
        print(f"all answers are in {asked.folder}, {left}", file=sys.stderr)
        return EXIT_INCOMPLETE
    if ending == Ending.COST:
        print(
            f"MAX_COST={extract.max_cost} leaves no room for another request: "
            f"{extractor.budget.cost:.6f} is spent, {left}; raise it to go on"
            f"{_tighter(asked, counts)}"
        )
        return EXIT_INCOMPLETE
    if asked.share.workers > 1:
        print(
            f"{counts.asked:,} answers asked for, {counts.cached:,} from the cache, "
            f"{counts.errors:,} requests failed"
        )
        print(
            f"worker {asked.share.worker} of {asked.share.workers} is done; when all are: python "
            f"-m launch.extract --merge {asked.folder}"
        )
    if progress.beyond:
        print(
            f"MAX_ROWS={extract.max_rows} is reached: {progress.beyond:,} rows are left; raise it "
            "to go on"
        )
        return EXIT_INCOMPLETE
    return 0


def _tighter(asked: Prepared, counts: Counts) -> str:
    """What lets a small MAX_COST go further, where nothing is known of the prompt's length yet."""
    if asked.count is not None or counts.asked:
        return ""
    return ", or set TEACHER_TOKENIZER: without it a prompt counts as a token a byte at first"
