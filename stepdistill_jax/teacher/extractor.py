"""Asks a teacher about rows: many requests in flight, every answer on disk before the next step.

One loop in one thread decides what is sent: the cache of answers is looked into, the request's
bound is reserved in the budget and noted in the journal, then it is sent. What comes back is
logged first and counted then. No two requests of equal content are in flight at once where there
is a cache, so that rows of equal text are paid for once.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import enum
import time
from collections.abc import Callable, Iterable, Sequence

from stepdistill_jax.records import Annotation
from stepdistill_jax.teacher import budget as budgets
from stepdistill_jax.teacher.budget import NOTHING, Bounds, Budget, Tokens
from stepdistill_jax.teacher.clients.batch import Batch
from stepdistill_jax.teacher.requests import (
    Client,
    Completion,
    EndpointError,
    Request,
    RequestError,
)
from stepdistill_jax.teacher.response_cache import ResponseCache
from stepdistill_jax.teacher.resume import Annotator, ExampleState
from stepdistill_jax.teacher.store import Response, Sending, Store

# (row id, purpose, sample).
Slot = tuple[str, str, int]


class Ending(enum.Enum):
    """Why an extraction ended."""

    DONE = "all rows are done"
    COST = "MAX_COST"
    STOPPED = "stopped"
    FAILED = "the endpoint failed"


@dataclasses.dataclass
class Counts:
    """Of this process so far.

    Attributes:
        rows: this worker's rows.
        done: of those, rows that need nothing more.
        earlier: of `done`, rows that needed nothing when it started.
        parsed: of `done`, rows with a label.
        asked: answers that came from the teacher.
        cached: answers that came from the cache.
        errors: requests that failed, of their row alone.
        lost: requests that were given up in flight.
        submitted, returned: requests in offline batches, and those that the endpoint has done.
    """

    rows: int = 0
    done: int = 0
    earlier: int = 0
    parsed: int = 0
    asked: int = 0
    cached: int = 0
    errors: int = 0
    lost: int = 0
    submitted: int = 0
    returned: int = 0


@dataclasses.dataclass(frozen=True)
class _Question:
    row: ExampleState
    request: Request


class Extractor:
    """One process's part of an extraction.

    Attributes:
        counts: so far.
        budget: so far.
        failure: the message of the `EndpointError` that ended it, else "".
    """

    def __init__(
        self,
        teaching: Annotator,
        rows: Sequence[ExampleState],
        store: Store,
        cache: ResponseCache,
        budget: Budget,
        bounds: Bounds,
        watch: Callable[[Counts], None] = lambda counts: None,
    ) -> None:
        """`watch` is called after every answer."""
        self.teaching = teaching
        self.budget = budget
        self.failure = ""
        self.counts = Counts(rows=len(rows))
        self._store = store
        self._cache = cache
        self._bounds = bounds
        self._watch = watch
        self._rows = iter(rows)
        self._ready: collections.deque[_Question] = collections.deque()
        # Key of a request in flight -> those that wait for its answer.
        self._equals: dict[str, list[_Question]] = {}
        self._shares_answers = cache.folder is not None
        self._stop = asyncio.Event()
        self._hurry = False

    def stop(self) -> None:
        """Sends nothing more; a second time, waits for nothing either."""
        self._hurry = self._stop.is_set()
        self._stop.set()

    async def run(self, client: Client) -> Ending:
        """Asks until all is answered, the budget is spent, `stop` is called or the endpoint fails.

        What is in flight then is waited for, for TIMEOUT seconds.
        """
        in_flight: dict[asyncio.Task[Completion], tuple[_Question, Sending]] = {}
        most = self.teaching.extract.concurrency
        stopping = asyncio.create_task(self._stop.wait())
        ending = Ending.DONE
        try:
            while not self._is_ending:
                fits = True
                while fits and len(in_flight) < most and not self._is_ending:
                    question = self._next()
                    if question is None:
                        break
                    if self._answered_here(question):
                        # Signals and answers get their turn between two answers of the cache.
                        await asyncio.sleep(0)
                        self._settle(in_flight)
                        continue
                    sending = self._reserve(question.request)
                    fits = sending is not None
                    if sending is None:
                        self._ready.appendleft(question)
                        continue
                    task = asyncio.create_task(_ask(client, question.request))
                    in_flight[task] = (question, sending)
                if not in_flight:
                    ending = Ending.DONE if fits else Ending.COST
                    break
                await asyncio.wait([*in_flight, stopping], return_when=asyncio.FIRST_COMPLETED)
                self._settle(in_flight)
            await self._drain(in_flight, stopping)
        finally:
            stopping.cancel()
            for task, (_, sending) in in_flight.items():
                task.cancel()
                # It may have been paid for, and the next start counts it too.
                self.budget.settle(sending.bound, sending.bound)
            self._watch(self.counts)
            await asyncio.gather(*in_flight, return_exceptions=True)
            await client.close()
        if self.failure:
            return Ending.FAILED
        return Ending.STOPPED if self._stop.is_set() and not self._is_over(ending) else ending

    @property
    def _is_ending(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._stop.is_set() or bool(self.failure)

    def _is_over(self, ending: Ending) -> bool:
        """Whether nothing was left to do when the stop came."""
        return ending == Ending.DONE and self.counts.done == self.counts.rows

    async def _drain(
        self,
        in_flight: dict[asyncio.Task[Completion], tuple[_Question, Sending]],
        stopping: asyncio.Task[bool],
    ) -> None:
        """Waits for what is in flight, as long as a try may take."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.teaching.extract.timeout
        while in_flight and not self._hurry and loop.time() < end:
            # Short, for a second signal to be seen.
            await asyncio.wait(in_flight, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            self._settle(in_flight)
        self.counts.lost = len(in_flight)

    async def run_batch(self, batch: Batch, sent: Iterable[Sending]) -> Ending:
        """The same through offline batches, a round of all that can be asked after another.

        Args:
            batch: may hold what an earlier process submitted.
            sent: earlier, and not answered; those that were not meant for a batch stay paid.
        """
        waiting: dict[Slot, list[Sending]] = {}
        for sending in sent:
            if sending.batch:
                waiting.setdefault(sending.slot, []).append(sending)
        self._shares_answers = True
        try:
            while True:
                asked, fits = await self._batch_round(waiting)
                waiting = {}
                if not asked:
                    break
                batch.submit([question.request for question, _ in asked.values()])
                while not self._looked(batch) and not await self._paused():
                    pass
                if self._stop.is_set():
                    return Ending.STOPPED
                for key, came in batch.collect():
                    if key in asked:
                        question, sending = asked.pop(key)
                        self.take(question.row, question.request, came, sending)
        except EndpointError as error:
            self.failure = str(error)
            return Ending.FAILED
        finally:
            batch.close()
        if self._stop.is_set() and not self._is_over(Ending.DONE):
            return Ending.STOPPED
        return Ending.DONE if fits else Ending.COST

    async def _batch_round(
        self, waiting: dict[Slot, list[Sending]]
    ) -> tuple[dict[str, tuple[_Question, Sending]], bool]:
        """(key -> what is to be asked now, whether that is all).

        Beyond the budget only what is in `waiting` is taken up: a batch's answers are collected
        once.
        """
        asked: dict[str, tuple[_Question, Sending]] = {}
        beyond: list[_Question] = []
        while not self._stop.is_set() and (question := self._next()) is not None:
            if self._answered_here(question):
                await asyncio.sleep(0)
                continue
            request = question.request
            slot = (request.row_id, request.purpose, request.sample)
            sending: Sending | None
            if slot in waiting:
                sending = waiting[slot].pop()
                if not waiting[slot]:
                    del waiting[slot]
                # It counts as spent; from here on it is reserved.
                self.budget.take_back(sending.bound)
                self._equals[request.key] = []
            else:
                sending = None if beyond else self._reserve(request, batch=True)
            if sending is not None:
                asked[request.key] = (question, sending)
                continue
            beyond.append(question)
            if not waiting:
                break
        self._ready.extendleft(reversed(beyond))
        return asked, not beyond

    def _looked(self, batch: Batch) -> bool:
        """Asks how far the batches are; whether all of them are over."""
        at = batch.poll()
        self.counts.submitted = at.requests
        self.counts.returned = at.completed + at.failed
        self._watch(self.counts)
        return at.over

    async def _paused(self) -> bool:
        """Waits until it is time to look again; whether `stop` was called."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self.teaching.extract.batch_poll)
        return self._stop.is_set()

    def _next(self) -> _Question | None:
        """What to ask next; None where nothing is left but what waits for answers."""
        while not self._ready:
            row = next(self._rows, None)
            if row is None:
                return None
            questions = self._open(row)
            self._ready.extend(questions)
            if not questions:
                self.counts.earlier += 1
                self._count_done(row)
        return self._ready.popleft()

    def _open(self, row: ExampleState) -> list[_Question]:
        slots = self.teaching.open(row)
        return [_Question(row, self.teaching.request(row, *slot)) for slot in slots]

    def _count_done(self, row: ExampleState) -> None:
        """Counts a row about which nothing is asked any more."""
        found = self.teaching.annotated(row)
        self.counts.done += 1
        self.counts.parsed += found is not None and isinstance(found.outcome, Annotation)

    def _answered_here(self, question: _Question) -> bool:
        """Whether the cache, or an equal request in flight, will answer."""
        if not self._shares_answers:
            return False
        key = question.request.key
        if key in self._equals:
            self._equals[key].append(question)
            return True
        found = self._cache.get(key)
        if found is None:
            return False
        self.counts.cached += 1
        self._keep(question, found, cached=True)
        return True

    def _reserve(self, request: Request, batch: bool = False) -> Sending | None:
        """Sets the request's bound aside and notes that it is sent; None where it does not fit."""
        bound = self._bounds.of(request)
        if not self.budget.reserve(bound):
            return None
        sending = self._store.sending(request, bound, batch)
        if self._shares_answers:
            self._equals[request.key] = []
        return sending

    def _settle(self, in_flight: dict[asyncio.Task[Completion], tuple[_Question, Sending]]) -> None:
        """Takes in what has come back."""
        for task in [task for task in in_flight if task.done()]:
            question, sending = in_flight[task]
            error = task.exception()
            if isinstance(error, EndpointError):
                self.failure = self.failure or str(error)
                if not error.may_be_paid:
                    self._store.unpaid(sending)
                self.budget.settle(sending.bound, sending.bound if error.may_be_paid else NOTHING)
            elif error is None or isinstance(error, RequestError):
                self.take(question.row, question.request, error or task.result(), sending)
            else:
                # A defect: left in flight, it is raised when the answers of others are safe.
                continue
            del in_flight[task]
        for task in in_flight:
            if task.done():
                task.result()

    def take(
        self, row: ExampleState, request: Request, came: Completion | RequestError, sending: Sending
    ) -> None:
        """Logs and counts what came of a request that was sent."""
        question = _Question(row, request)
        charged = budgets.charge(came, sending.bound)
        self.budget.settle(sending.bound, charged)
        self.counts.asked += 1
        self.counts.errors += isinstance(came, RequestError)
        self._keep(question, came, charged, sending.send)
        if isinstance(came, Completion):
            self._bounds.learn(request, came.prompt_tokens, came.completion_tokens)
            self._cache.put(request.key, came)
        self._ready.extendleft(self._equals.pop(request.key, ()))
        self._watch(self.counts)

    def _keep(
        self,
        question: _Question,
        came: Completion | RequestError,
        charged: Tokens = NOTHING,
        send: str = "",
        cached: bool = False,
    ) -> None:
        """Writes the answer down, and queues what follows from it."""
        row, request = question.row, question.request
        answer = Response.of(
            request,
            self.teaching.prompt_hash,
            came,
            charged=charged,
            send=send,
            cached=cached,
            at=time.time(),
        )
        self._store.append(row.unit, answer)
        row.answers[request.purpose, request.sample] = answer
        self._ready.extendleft(self._open(row))
        if not row.asked - row.answers.keys():
            self._count_done(row)
        if cached:
            self._watch(self.counts)


async def _ask(client: Client, request: Request) -> Completion:
    return await client.complete(request)
