"""The rows of an extraction: which are asked about, what is still to be asked, what is kept."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Protocol

from stepdistill_jax.data import parse as parser
from stepdistill_jax.records import Example, ParseFailure
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import store
from stepdistill_jax.teacher.budget import NOTHING, Budget, Prices, Tokens
from stepdistill_jax.teacher.clients.failures import PASSING
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import ANSWER, HINT, Request
from stepdistill_jax.teacher.store import Response, Share
from stepdistill_jax.teacher.vote import Annotated, Outcome, annotate, is_right


class Asking(Protocol):
    """How rows become requests: `prompts.Prompt`."""

    @property
    def format(self) -> str:
        """How answers are read: a format of `teacher.parse`."""

    @property
    def hash(self) -> str:
        """Of all that decides a request's text but the row."""

    def request(
        self, example: Example, extract: ExtractConfig, purpose: str = ANSWER, sample: int = 0
    ) -> Request:
        """One question about one row."""


@dataclasses.dataclass(frozen=True)
class Annotator:
    """What all rows share: the teacher, its prompt and how its answers are judged.

    Attributes:
        extract: the teacher.
        prompt: makes requests.
        metric: of the data; a key of `eval.metrics.METRICS`.
        evaluated: unit -> ids of its rows that are validated or tested on: a teacher is never told
            their gold label, and what it said when told is not kept.
    """

    extract: ExtractConfig
    prompt: Asking
    metric: str
    evaluated: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def prompt_hash(self) -> str:
        """Of the prompt; made once."""
        return self.prompt.hash

    def request(self, row: ExampleState, purpose: str, sample: int) -> Request:
        """One question about a row."""
        return self.prompt.request(row.example, self.extract, purpose, sample)

    def read(self, row: ExampleState, answer: Response) -> Outcome:
        """An answer as parsed; a request that failed is a failure of that reason."""
        if answer.error:
            return ParseFailure(row.example.id, answer.error, "", "")
        # "stop": the teacher ended there of itself, so that nothing could have followed.
        complete = answer.finish_reason == "stop"
        return parser.parse(self.prompt.format, row.example, answer.text, complete)

    def annotated(self, row: ExampleState) -> Annotated | None:
        """What is kept of a row; None before its first answer."""
        samples = [
            self.read(row, answer)
            for (purpose, sample), answer in sorted(row.answers.items())
            if purpose == ANSWER and sample < self.extract.samples
        ]
        if not samples:
            return None
        # One that was paid for is kept, whatever HINT_WRONG is now.
        hint = row.answers.get((HINT, 0)) if self.may_hint(row) else None
        hinted = None if hint is None else self.read(row, hint)
        return annotate(row.example, samples, hinted, self.metric)

    def may_hint(self, row: ExampleState) -> bool:
        """Whether the teacher may be told the row's gold label."""
        evaluated = self.evaluated.get(row.unit, ())
        return row.example.label is not None and row.example.id not in evaluated

    def may_need_hint(self, row: ExampleState) -> bool:
        """Whether a hint is to be asked for, or may be when all samples are answered."""
        if not self.may_hint(row) or (HINT, 0) in row.answers:
            return False
        if not all((ANSWER, sample) in row.answers for sample in range(self.extract.samples)):
            return True
        found = self.annotated(row)
        return found is not None and not is_right(row.example, found.unhinted, self.metric)

    def open(self, row: ExampleState) -> Iterator[tuple[str, int]]:
        """(purpose, sample) that are still to be asked about a row; notes that they are."""
        extract = self.extract
        slots = [(ANSWER, sample) for sample in range(extract.samples)]
        if extract.hint_wrong and row.answers.keys() >= {*slots} and self.may_need_hint(row):
            slots.append((HINT, 0))
        for slot in slots:
            if slot not in row.answers and slot not in row.asked:
                row.asked.add(slot)
                yield slot


@dataclasses.dataclass
class ExampleState:
    """One row and its answers so far.

    Attributes:
        unit: that it is of.
        example: the row.
        answers: (purpose, sample) -> answer.
        asked: those that are queued, in flight, or answered in this process.
    """

    unit: str
    example: Example
    answers: dict[tuple[str, int], Response] = dataclasses.field(default_factory=dict)
    asked: set[tuple[str, int]] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class ResumeState:
    """Where an extraction is when it starts.

    Attributes:
        rows: this worker's, MAX_ROWS applied, in order.
        wanted: all rows that EXTRACT_SPLITS and EXTRACT_INPUTS name.
        beyond: of those, rows that MAX_ROWS leaves out.
        spent: tokens that this worker paid for; a lone process counts everybody's.
        before: tokens that were paid for before there were so many workers.
        in_flight: sendings of this worker's that were never answered; counted as paid for.
        asked_again: of those, sendings whose question has no answer yet; none in a batch that is
            still to be collected.
        passing: rows with a failure that may pass, which are asked about again.
    """

    rows: list[ExampleState]
    wanted: int
    beyond: int
    spent: Tokens
    before: Tokens
    in_flight: list[store.Sending]
    asked_again: int
    passing: int


def load(
    folder: pathlib.Path,
    units: Mapping[str, Sequence[Example]],
    teaching: Annotator,
    share: Share,
    remedy: str = "repeat its settings to continue it, or choose another EXTRACT_DIR",
) -> ResumeState:
    """Reads what lies in the folder and says what this worker is to do.

    Args:
        folder: of the extraction.
        units: name -> rows that are wanted.
        teaching: the teacher.
        share: this worker's.
        remedy: what to do where the folder is another teacher's.

    Raises:
        InputError: the folder holds answers to other questions: naming the line, both values and
            the remedy.
    """
    answers = {unit: store.read_answers(folder, unit) for unit in {*store.units(folder), *units}}
    everything = [answer for of_one in answers.values() for answer in of_one]
    for answer in everything:
        _check_identity(answer, teaching, folder, remedy)
    rows: list[ExampleState] = []
    outside = passing = 0
    for unit, examples in units.items():
        found = _of_rows(answers[unit])
        for example in examples:
            row = ExampleState(unit, example)
            for slot, answer in found.pop(example.id, {}).items():
                _check_question(answer, teaching, row, slot)
                if answer.error in PASSING:
                    passing += 1
                else:
                    row.answers[slot] = answer
            rows.append(row)
        outside += len(found)
    outside += sum(len(_of_rows(answers[unit])) for unit in answers if unit not in units)
    chosen = _within(rows, teaching.extract.max_rows, outside)
    unanswered = store.unanswered(folder, everything)
    in_flight = [sending for sending in unanswered if _is_own(sending.where, share)]
    keys = {answer.key for answer in everything if answer.error not in PASSING}
    # By sending: however many files hold a line, it was paid for once.
    paid = {a.send: (a.where, a.charged) for a in everything if a.send}
    paid |= {sending.send: (sending.where, sending.bound) for sending in unanswered}
    return ResumeState(
        rows=[row for row in chosen if share.has(row.example.id)],
        wanted=len(rows),
        beyond=len(rows) - len(chosen),
        spent=total(tokens for where, tokens in paid.values() if _is_own(where, share)),
        before=total(tokens for where, tokens in paid.values() if _is_older(where, share)),
        in_flight=in_flight,
        asked_again=sum(lost.key not in keys for lost in lost_of(in_flight, teaching.extract)),
        passing=passing,
    )


def answered(
    folder: pathlib.Path,
    unit: str,
    own: Sequence[ExampleState],
    teaching: Annotator,
    find: Callable[[], Sequence[Example]],
) -> tuple[list[ExampleState], int]:
    """All rows of a unit that were ever asked about, besides those that are wanted now.

    Args:
        folder: of the extraction.
        unit: name.
        own: rows that are wanted now, with their answers.
        teaching: the teacher.
        find: gives all rows that the unit can have; called where there are others than `own`.

    Returns:
        The rows in the order of `find`, and how many answered ones it does not have as they were
        asked about.
    """
    found = _of_rows(store.read_answers(folder, unit))
    rows = {row.example.id: row for row in own}
    others = found.keys() - rows.keys()
    if not others:
        return [*own], 0
    order = []
    for example in find():
        if example.id in others and _is_of(example, unit, found[example.id], teaching):
            slots = found[example.id].items()
            rows[example.id] = ExampleState(
                unit, example, {slot: a for slot, a in slots if a.error not in PASSING}
            )
        if example.id in rows:
            order.append(rows.pop(example.id))
    found_others = sum(row.example.id in others for row in order)
    return [*order, *rows.values()], len(others) - found_others


def _is_of(
    example: Example, unit: str, answers: Mapping[tuple[str, int], Response], teaching: Annotator
) -> bool:
    """Whether the answers are to questions about the row as it is now."""
    try:
        for slot, answer in answers.items():
            _check_question(answer, teaching, ExampleState(unit, example), slot)
    except InputError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Paid:
    """All that counts as paid for in a folder, of every call and worker.

    Attributes:
        answers: unit -> lines of its log for which something was sent, failures included.
        lost: sent and never answered; may have been paid for.
        waiting: in offline batches that are still to be collected; not paid for yet.
    """

    answers: Mapping[str, Sequence[Response]]
    lost: Sequence[store.Sending]
    waiting: Sequence[store.Sending]


def read_paid(folder: pathlib.Path, extract: ExtractConfig) -> Paid:
    """Reads it; what stands in several files was paid for once."""
    answers = {unit: store.read_answers(folder, unit) for unit in store.units(folder)}
    everything = [answer for of_one in answers.values() for answer in of_one]
    unanswered = store.unanswered(folder, everything)
    lost = lost_of(unanswered, extract)
    of_units = {
        unit: [*{answer.send: answer for answer in found if answer.send}.values()]
        for unit, found in answers.items()
    }
    names = {sending.send for sending in lost}
    return Paid(of_units, lost, [each for each in unanswered if each.send not in names])


def lost_of(unanswered: Sequence[store.Sending], extract: ExtractConfig) -> Sequence[store.Sending]:
    """Those that no batch will answer any more: another client does not look into batches."""
    return [each for each in unanswered if not (each.batch and extract.client == "batch")]


def total(parts: Iterable[Tokens]) -> Tokens:
    """The sums."""
    found = NOTHING
    for part in parts:
        found = found.plus(part)
    return found


def _is_own(where: str, share: Share) -> bool:
    return share.workers == 1 or store.share_of(where) == share


def _is_older(where: str, share: Share) -> bool:
    return share.workers > 1 and store.share_of(where).workers != share.workers


def _of_rows(answers: Sequence[Response]) -> dict[str, dict[tuple[str, int], Response]]:
    """Row id -> (purpose, sample) -> answer."""
    found: dict[str, dict[tuple[str, int], Response]] = {}
    for answer in store.answered(answers).values():
        found.setdefault(answer.id, {})[answer.purpose, answer.sample] = answer
    return found


def _check_identity(
    answer: Response, teaching: Annotator, folder: pathlib.Path, remedy: str
) -> None:
    """Raises InputError where a line is of another prompt, model or decoding."""
    extract = teaching.extract
    # Each sample has a seed of its own; the request's key holds it.
    decoding = dataclasses.replace(answer.decoding, seed=extract.sampling_seed)
    for what, held, asked in (
        ("prompt", answer.prompt_hash[:12], teaching.prompt_hash[:12]),
        ("TEACHER_MODEL", answer.model, extract.teacher_model),
        ("decoding", decoding, extract.decoding),
    ):
        if held != asked:
            raise InputError(
                f"{folder / answer.where}: EXTRACT_DIR holds an extraction with {what} {held!r}, "
                f"now {asked!r}; {remedy}"
            )


def _check_question(
    answer: Response, teaching: Annotator, row: ExampleState, slot: tuple[str, int]
) -> None:
    """Raises InputError where a row's answer is to another question than is asked now."""
    if slot[0] == HINT and row.example.label is None:
        return
    if teaching.request(row, *slot).key != answer.key:
        raise InputError(
            f"{answer.where}: row {answer.id} of {row.unit} was asked about with another text than "
            f"{row.example.where or 'the data'} has now; restore the data, or choose another "
            "EXTRACT_DIR"
        )


def _within(rows: list[ExampleState], most: int | None, outside: int) -> list[ExampleState]:
    """The rows that MAX_ROWS allows: those that were asked about, then the first of the others."""
    if most is None:
        return rows
    room = most - outside - sum(bool(row.answers) for row in rows)
    chosen = []
    for row in rows:
        if not row.answers:
            if room <= 0:
                continue
            room -= 1
        chosen.append(row)
    return chosen


def make_budget(extract: ExtractConfig, progress: ResumeState, share: Share) -> Budget:
    """This worker's part of MAX_COST, and what it has spent of it."""
    prices = Prices.of(extract)
    if extract.max_cost is None:
        return Budget(prices, None, progress.spent)
    before = prices.cost(progress.before) or Decimal(0)
    most = (Decimal(str(extract.max_cost)) - before) / share.workers
    return Budget(prices, most, progress.spent)
