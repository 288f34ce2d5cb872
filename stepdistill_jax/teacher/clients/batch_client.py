"""The client of offline batches: all requests of a round go out together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable

from stepdistill_jax.teacher.clients import protocol
from stepdistill_jax.teacher.clients.batches import Batches, Part
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Client, Completion, EndpointError, Request


class BatchClient(Client):
    """Submits at `flush` what was asked since the last one, and polls until all batches end."""

    keeps_requests = True

    def __init__(self, extract: ExtractConfig, notify: Callable[[str], None]) -> None:
        """Continues the batches in EXTRACT_DIR; `notify` gets a line when their counts change.

        Raises InputError where the endpoint's key is missing or the batches' state is damaged.
        """
        self._batches = Batches(extract)
        self._seconds = extract.batch_poll
        self._notify = notify
        self._requests: list[Request] = []
        self._futures: dict[str, asyncio.Future[Completion]] = {}
        self._delivered: list[Part] = []
        self._round: asyncio.Task[None] | None = None

    async def complete(self, request: Request) -> Completion:
        """See `Client`; `Completion.seconds` is 0."""
        self._requests.append(request)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        completion = await self._futures.setdefault(request.key, future)
        omitted = self._batches.dialect.text
        return dataclasses.replace(protocol.cut(completion, request.stop), omitted=omitted)

    def flush(self) -> None:
        """Starts a round; a batch counts as collected only here, when its responses are on disk."""
        for part in self._delivered:
            self._batches.mark_collected(part)
        self._delivered.clear()
        if self._round is None or self._round.done():
            # It runs after the tasks that were created before it, so their requests are known.
            self._round = asyncio.create_task(self._serve())

    async def close(self) -> None:
        """Stops polling; the batches go on."""
        if self._round is not None:
            self._round.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._round
        self._batches.close()

    async def _serve(self) -> None:
        """One round: submits, polls, and completes all requests at once."""
        if not self._requests:
            return
        try:
            requests, self._requests = self._requests, []
            self._batches.submit(requests)
            await self._wait()
            for part, outcomes in self._batches.collect():
                self._delivered.append(part)
                for key, outcome in outcomes.items():
                    self._answer(key, outcome)
        except Exception as error:  # every waiting request gets it
            failure = error
            if isinstance(error, EndpointError):
                # Requests in a batch may still be completed, and charged.
                failure = EndpointError(str(error), may_be_paid=True)
            for key in [*self._futures]:
                self._answer(key, failure)

    def _answer(self, key: str, outcome: Completion | Exception) -> None:
        future = self._futures.pop(key, None)
        if future is None or future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    async def _wait(self) -> None:
        """Polls until all batches have ended."""
        shown = ""
        while True:
            status = self._batches.poll()
            line = f"{status.finished:,} of {status.requests:,} requests in batches are finished"
            if line != shown:
                self._notify(line)
                shown = line
            if status.is_over:
                return
            await asyncio.sleep(self._seconds)
