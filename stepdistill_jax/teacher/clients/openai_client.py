"""Any endpoint that speaks OpenAI's protocol: vLLM, llama.cpp, TGI, Ollama, hosted models."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
import time
from collections.abc import Callable

import openai

from stepdistill_jax.teacher.clients import endpoint as endpoints
from stepdistill_jax.teacher.clients import failures, protocol
from stepdistill_jax.teacher.clients.failures import Again
from stepdistill_jax.teacher.clients.models import unknown_model
from stepdistill_jax.teacher.clients.rate_limit import RateLimiter
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Completion, EndpointError, Request, RequestError

# Seconds before the first retry; doubled for each, up to a minute, and drawn from the upper half.
BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
# Requests in a row, with no answer between them, that failed in a way that may be the endpoint's.
FAILED_IN_A_ROW = 3
# Seconds between two lines on what is waited for.
TOLD_EVERY = 60.0
# A glitch passes; a model that writes nothing at all writes nothing again, at the same price.
EMPTY_RETRIES = 1
# Of English text, to keep a minute's tokens before an answer tells how many they were.
_CHARACTERS_A_TOKEN = 3


class OpenAIClient:
    """Asks an endpoint, waits where it is busy, and tells a bad row from a bad endpoint.

    The library's own retries are off: they give up where Retry-After is over two minutes, take a
    spent quota for a busy moment, and do not see an answer that is cut off.

    A request is tried again after 429, 5xx, 408, 409, a dropped or refused connection, TIMEOUT
    seconds without a whole answer, and a body that is no answer: RETRIES times, at growing
    intervals, or when the endpoint asks for it. Out of tries, it is a `RequestError` as long as the
    endpoint answers others; an `EndpointError`

    - where nothing listens, and nothing was answered since the request was first sent;
    - where it is too busy (429): its tries count anew whenever another request is answered, so it
      fails only where none is;
    - at the `FAILED_IN_A_ROW`-th request that fails with no answer between them.

    An empty answer, which is paid for, is tried once more. Under MAX_COST it is not, and neither is
    a try that may have been paid for: one that came to TIMEOUT, was cut off, or was no answer.
    After an `EndpointError` nothing more is sent.

    Attributes:
        retries: tries after a first one, so far.
    """

    def __init__(
        self, extract: ExtractConfig, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        """`tell` gets a line on what is waited for, at the first retry and once a minute.

        Raises InputError where the endpoint's address or key is missing.
        """
        self.retries = 0
        self._tell = tell
        self._told = -math.inf
        self._extract = extract
        self._endpoint = endpoints.find(extract)
        self._client = openai.AsyncOpenAI(**self._endpoint.options(extract.timeout, retries=0))
        self._pace = RateLimiter(extract.requests_per_minute, extract.tokens_per_minute)
        self._answers = 0
        self._failed = 0
        self._broken: EndpointError | None = None

    async def complete(self, request: Request) -> Completion:
        """See `requests.Client`; `Completion.seconds` is of the last try.

        Token counts are the sum over tries, where an empty answer was paid for.
        """
        outcome = await self._ask(request)
        if isinstance(outcome, EndpointError):
            self._broken = outcome
        # Raised here, where no error of the library is being handled: it would come along as the
        # context, with the request and its headers.
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _ask(self, request: Request) -> Completion | RequestError | EndpointError:
        """Tries until there is an outcome."""
        estimate = len(request.text) // _CHARACTERS_A_TOKEN + request.decoding.max_new_tokens
        seen = self._answers
        tries = empty = 0
        read: int | None = 0
        written: int | None = 0
        is_capped = self._extract.max_cost is not None
        while True:
            ticket = await self._pace.enter(estimate)
            if self._broken is not None:
                return EndpointError(str(self._broken))
            outcome = await self._once(request)
            if isinstance(outcome, EndpointError):
                return outcome
            if isinstance(outcome, Completion | RequestError):
                read = _plus(read, outcome.prompt_tokens)
                written = _plus(written, outcome.completion_tokens)
                if outcome.prompt_tokens is not None:
                    self._pace.settle(
                        ticket, outcome.prompt_tokens + (outcome.completion_tokens or 0)
                    )
            if isinstance(outcome, Completion):
                self._note_answer()
                return dataclasses.replace(outcome, prompt_tokens=read, completion_tokens=written)
            if isinstance(outcome, RequestError):
                if outcome.reason != failures.EMPTY or is_capped or empty == EMPTY_RETRIES:
                    return self._row_failed(
                        RequestError(outcome.reason, outcome.detail, read, written)
                    )
                empty += 1
                again = Again(outcome.reason, outcome.detail)
            else:
                again = outcome
            if again.may_be_paid and is_capped:
                detail = f"{again.detail}; under MAX_COST it counts as paid for"
                return self._count_failure(RequestError(again.reason, detail, None, None))
            if again.busy and self._answers > seen:
                seen, tries = self._answers, 0
            if tries == self._extract.retries:
                return self._out_of_tries(again, self._answers > seen, read, written)
            await self._wait(again, tries)
            tries += 1
            self.retries += 1

    async def _once(self, request: Request) -> Completion | Again | RequestError | EndpointError:
        """One try."""
        start = time.monotonic()
        limit = self._extract.timeout
        try:
            # The library's own limit is on silence: a slow stream of bytes never reaches it.
            async with asyncio.timeout(limit):
                body = await self._client.post(
                    protocol.path(request),
                    cast_to=object,
                    body=protocol.body(request, self._endpoint.is_openai),
                    options={"headers": {"Idempotency-Key": request.key}},
                )
            return protocol.read(body, request.model, time.monotonic() - start)
        except (TimeoutError, openai.APITimeoutError):
            detail = f"no answer within TIMEOUT={limit:g} s"
            return Again(failures.UNAVAILABLE, detail, may_be_paid=True)
        except openai.APIConnectionError as error:
            return _connection_failure(error)
        except openai.APIStatusError as error:
            judged = failures.judge(
                error.status_code, error.body, error.response.headers, self._endpoint
            )
            if error.status_code != 404:
                return judged
            return await unknown_model(self._client, self._endpoint, request.model) or judged
        except (json.JSONDecodeError, UnicodeDecodeError):
            detail = "the answer is not JSON, or was cut off"
            return Again(failures.MALFORMED, detail, may_be_paid=True)
        except protocol.MalformedError as error:
            return Again(failures.MALFORMED, str(error), may_be_paid=True)
        except RequestError as error:
            return error

    async def _wait(self, again: Again, tries: int) -> None:
        """Waits before a retry; where the endpoint asked for it, so do all other requests."""
        if time.monotonic() - self._told > TOLD_EVERY:
            self._told = time.monotonic()
            self._tell(
                f"waiting for {self._endpoint.shown}: {again.detail}; try {tries + 1} of "
                f"{self._extract.retries + 1} failed"
            )
        backoff = min(BACKOFF * 2**tries, LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
        if again.wait is None:
            await asyncio.sleep(backoff)
            return
        self._pace.hold(again.wait)
        # Those that waited together do not come back together.
        await asyncio.sleep(again.wait + random.uniform(0, 0.1) * BACKOFF)

    def _note_answer(self) -> None:
        self._answers += 1
        self._failed = 0

    def _row_failed(self, error: RequestError) -> RequestError | EndpointError:
        """A refusal that is about the row shows that the endpoint works; another may be for all."""
        if error.reason != failures.REFUSED:
            self._note_answer()
            return error
        return self._count_failure(error)

    def _out_of_tries(
        self, again: Again, answered: bool, read: int | None, written: int | None
    ) -> RequestError | EndpointError:
        tries = self._extract.retries + 1
        if not again.connected and not answered:
            return EndpointError(
                f"{self._endpoint.shown}: no connection in {tries} tries ({again.detail}); start "
                "the endpoint, or correct TEACHER_URL"
            )
        if again.busy:
            return EndpointError(
                f"{self._endpoint.shown} is too busy: nothing was answered in {tries} tries "
                f"({again.detail}); lower CONCURRENCY, REQUESTS_PER_MINUTE or TOKENS_PER_MINUTE, "
                "or raise RETRIES"
            )
        detail = f"{tries} tries, the last: {again.detail}"
        return self._count_failure(RequestError(again.reason, detail, read, written))

    def _count_failure(self, error: RequestError) -> RequestError | EndpointError:
        self._failed += 1
        if self._failed < FAILED_IN_A_ROW:
            return error
        return EndpointError(
            f"{self._endpoint.shown}: {self._failed} requests in a row had no answer; the last: "
            f"{error}; look at the endpoint's log, and start again when it answers",
            may_be_paid=error.prompt_tokens is None,
        )


def _connection_failure(error: openai.APIConnectionError) -> Again:
    """Names what lies under the library's "Connection error."."""
    cause = error.__cause__
    detail = failures.one_line(f"{type(cause).__name__}: {cause}" if cause else error)
    # Of the HTTP library, whichever version of it: nothing listens, or there is no way to it.
    connected = "ConnectError" not in type(cause).__name__
    return Again(failures.UNAVAILABLE, detail, connected=connected, may_be_paid=connected)


def _plus(one: int | None, other: int | None) -> int | None:
    """The sum; None where a part of it is not known."""
    return None if one is None or other is None else one + other
