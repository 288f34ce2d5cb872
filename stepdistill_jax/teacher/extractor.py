"""The loop that asks the teacher: many requests in flight, every response on disk at once.

One loop in one thread decides what is sent. It looks into the response cache, reserves the
request's worst-case cost in the budget, notes the request in the journal, and sends it. A response
is logged first and counted second. With a cache, or in offline batches, no two requests of equal
content are in flight together: examples of equal text are paid for once.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import enum
import math
import time
from collections.abc import Callable, Iterable, Sequence

from stepdistill_jax.records import Annotation
from stepdistill_jax.teacher import budget as budgets
from stepdistill_jax.teacher import clients
from stepdistill_jax.teacher.annotator import Annotator, ExampleState
from stepdistill_jax.teacher.budget import NO_TOKENS, Bounds, Budget, Tokens
from stepdistill_jax.teacher.cut_prompts import CutPrompts
from stepdistill_jax.teacher.failure_reasons import EqualFailures
from stepdistill_jax.teacher.requests import (
    Client,
    Completion,
    EndpointError,
    Request,
    RequestError,
)
from stepdistill_jax.teacher.response_cache import ResponseCache
from stepdistill_jax.teacher.store import Response, Sending, Store


class Ending(enum.Enum):
    """Why an extraction ended."""

    DONE = "all examples are done"
    COST = "MAX_COST"
    STOPPED = "stopped"
    FAILED = "the endpoint failed"


@dataclasses.dataclass
class Counts:
    """Numbers of this process so far.

    Attributes:
        done: examples that need no further request.
        earlier: of `done`, examples that needed none at the start.
        parsed: of `done`, examples with a label.
        received: responses from the teacher.
        cached: responses from the cache.
        errors: requests that failed alone.
        lost: requests that were abandoned in flight.
    """

    examples: int = 0
    done: int = 0
    earlier: int = 0
    parsed: int = 0
    received: int = 0
    cached: int = 0
    errors: int = 0
    lost: int = 0


@dataclasses.dataclass(frozen=True)
class _Pending:
    state: ExampleState
    request: Request


class Extractor:
    """One process's part of an extraction.

    Attributes:
        drain_seconds: how long requests in flight are waited for at the end.
        failure: the message of the `EndpointError` that ended the extraction, else "".
    """

    def __init__(
        self,
        annotator: Annotator,
        states: Sequence[ExampleState],
        store: Store,
        cache: ResponseCache,
        budget: Budget,
        bounds: Bounds,
        client: Client,
        unanswered: Iterable[Sending] = (),
        show: Callable[[Counts], None] = lambda counts: None,
    ) -> None:
        """Prepares `run`, which closes `client`; `show` is called after every response.

        `unanswered` are requests of earlier processes: those in offline batches are taken up.
        """
        self.annotator = annotator
        self.budget = budget
        self.failure = ""
        self.counts = Counts(examples=len(states))
        self.drain_seconds = 0.0 if client.keeps_requests else annotator.extract.timeout
        self._client = client
        self._store = store
        self._cache = cache
        self._bounds = bounds
        self._show = show
        self._states = iter(states)
        self._ready: collections.deque[_Pending] = collections.deque()
        self._in_flight: dict[asyncio.Task[Completion], tuple[_Pending, Sending]] = {}
        # Key of a request in flight -> pending requests of the same content.
        self._equals: dict[str, list[_Pending]] = {}
        self._shares_responses = cache.folder is not None or client.keeps_requests
        self._source = clients.source(annotator.extract)
        # Responses of a replay cost nothing, and those of a batch are paid for together.
        can_save = annotator.extract.client != "replay" and not client.keeps_requests
        self._equal_failures = EqualFailures(
            annotator.extract.stop_after_failures if can_save else 0
        )
        self._cut_prompts = CutPrompts()
        self._stop = asyncio.Event()
        self._hurry = False
        # Key -> a request that an earlier process put into a batch.
        self._in_batches = {s.key: s for s in unanswered if s.batch and client.keeps_requests}
        if self._in_batches:
            # They go first, since they are paid for whatever else fits the budget.
            pending = [*iter(self._next, None)]
            pending.sort(key=lambda each: each.request.key not in self._in_batches)
            self._ready.extend(pending)

    def stop(self) -> None:
        """Sends nothing more; called again, does not wait for requests in flight either."""
        self._hurry = self._stop.is_set()
        self._stop.set()

    async def run(self) -> Ending:
        """Asks until all is done, the budget is spent, `stop` is called or the endpoint fails."""
        stopping = asyncio.create_task(self._stop.wait())
        ending = Ending.DONE
        try:
            while not self._is_ending:
                fits = await self._send()
                self._client.flush()
                if not self._in_flight:
                    ending = Ending.DONE if fits else Ending.COST
                    break
                tasks = [*self._in_flight, stopping]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                self._settle()
            await self._drain()
            if not self._in_flight:
                self._client.flush()
        finally:
            stopping.cancel()
            for task, (_, sending) in self._in_flight.items():
                task.cancel()
                # It may have been paid for, and the next start counts it too.
                self.budget.settle(sending.bound, sending.bound)
            self._show(self.counts)
            await asyncio.gather(*self._in_flight, return_exceptions=True)
            await self._client.close()
        if self.failure:
            return Ending.FAILED
        is_complete = ending == Ending.DONE and self.counts.done == self.counts.examples
        return Ending.STOPPED if self._stop.is_set() and not is_complete else ending

    @property
    def _is_ending(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._stop.is_set() or bool(self.failure)

    async def _send(self) -> bool:
        """Sends all that may be in flight; returns False where the next one exceeds the budget."""
        limit = math.inf if self._client.keeps_requests else self.annotator.extract.concurrency
        while len(self._in_flight) < limit and not self._is_ending:
            pending = self._next()
            if pending is None:
                return True
            if self._is_shared(pending):
                # Signals and completions get their turn between two responses of the cache.
                await asyncio.sleep(0)
                self._settle()
                continue
            sending = self._reserve(pending.request)
            if sending is None:
                self._ready.appendleft(pending)
                return False
            task = asyncio.create_task(self._client.complete(pending.request))
            self._in_flight[task] = (pending, sending)
        return True

    async def _drain(self) -> None:
        """Waits for the requests in flight."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.drain_seconds
        while self._in_flight and not self._hurry and loop.time() < end:
            # Short, to notice a second signal.
            await asyncio.wait(self._in_flight, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            self._settle()
        self.counts.lost = 0 if self._client.keeps_requests else len(self._in_flight)

    def _next(self) -> _Pending | None:
        """The next request; None where all others wait for responses."""
        while not self._ready:
            state = next(self._states, None)
            if state is None:
                return None
            pending = self._open(state)
            self._ready.extend(pending)
            if not pending:
                self.counts.earlier += 1
                self._count_done(state)
        return self._ready.popleft()

    def _open(self, state: ExampleState) -> list[_Pending]:
        slots = self.annotator.open(state)
        return [_Pending(state, self.annotator.request(state, *slot)) for slot in slots]

    def _count_done(self, state: ExampleState) -> None:
        """Counts an example that needs no further request."""
        annotated = self.annotator.annotated(state)
        self.counts.done += 1
        self.counts.parsed += annotated is not None and isinstance(annotated.outcome, Annotation)

    def _is_shared(self, pending: _Pending) -> bool:
        """Whether the cache, or an equal request in flight, gives the response."""
        if not self._shares_responses:
            return False
        key = pending.request.key
        if key in self._equals:
            self._equals[key].append(pending)
            return True
        completion = self._cache.get(key)
        if completion is None:
            return False
        self.counts.cached += 1
        self._log(pending, completion, cached=True)
        self._show(self.counts)
        return True

    def _reserve(self, request: Request) -> Sending | None:
        """Reserves the worst-case cost and notes the request; None where it exceeds the budget."""
        sending = self._in_batches.pop(request.key, None)
        if sending is not None:
            self.budget.reserve_again(sending.bound)
        else:
            bound = self._bounds.of(request)
            if not self.budget.reserve(bound):
                return None
            sending = self._store.sending(request, bound, self._client.keeps_requests)
        if self._shares_responses:
            self._equals[request.key] = []
        return sending

    def _settle(self) -> None:
        """Takes in all that has come back."""
        for task in [task for task in self._in_flight if task.done()]:
            pending, sending = self._in_flight[task]
            error = task.exception()
            if isinstance(error, EndpointError):
                self.failure = self.failure or str(error)
                if not error.may_be_paid:
                    self._store.unpaid(sending)
                charged = sending.bound if error.may_be_paid else NO_TOKENS
                self.budget.settle(sending.bound, charged)
            elif error is None or isinstance(error, RequestError):
                self._take(pending, error or task.result(), sending)
            else:
                # A defect: it stays in flight and is raised when all other responses are safe.
                continue
            del self._in_flight[task]
        for task in self._in_flight:
            if task.done():
                task.result()

    def _take(
        self, pending: _Pending, outcome: Completion | RequestError, sending: Sending
    ) -> None:
        """Logs and counts the outcome of a request that was sent."""
        request = pending.request
        charged = budgets.charge(outcome, sending.bound)
        self.budget.settle(sending.bound, charged)
        self.counts.received += 1
        self.counts.errors += isinstance(outcome, RequestError)
        response = self._log(pending, outcome, charged, sending.send)
        read = self.annotator.read(pending.state, response)
        alike = self._equal_failures.add(read, response.detail)
        self.failure = self.failure or alike
        if isinstance(outcome, Completion):
            if self.annotator.extract.stop_after_failures:
                cut = self._cut_prompts.add(request.text, outcome.prompt_tokens)
                self.failure = self.failure or cut
            self._bounds.learn(request, outcome.prompt_tokens, outcome.completion_tokens)
            self._cache.put(request.key, outcome)
        self._ready.extendleft(self._equals.pop(request.key, ()))
        self._show(self.counts)

    def _log(
        self,
        pending: _Pending,
        outcome: Completion | RequestError,
        charged: Tokens = NO_TOKENS,
        send: str = "",
        cached: bool = False,
    ) -> Response:
        """Writes a response, and queues the requests that follow from it."""
        state, request = pending.state, pending.request
        response = Response.of(
            request,
            self.annotator.prompt_hash,
            outcome,
            charged=charged,
            send=send,
            cached=cached,
            at=time.time(),
            source=self._source,
        )
        self._store.append(state.unit, response)
        state.responses[request.purpose, request.sample] = response
        self._ready.extendleft(self._open(state))
        if not state.requested - state.responses.keys():
            self._count_done(state)
        return response
