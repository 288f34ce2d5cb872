"""Endpoints of OpenAI's protocol: vLLM, llama.cpp, TGI, Ollama, hosted models."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import random
import time
from collections.abc import Callable

import openai

from stepdistill_jax.teacher.clients import endpoint as endpoints
from stepdistill_jax.teacher.clients import failures, protocol
from stepdistill_jax.teacher.clients.endpoint_info import EndpointInfo
from stepdistill_jax.teacher.clients.failures import Again
from stepdistill_jax.teacher.clients.rate_limit import RateLimiter
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    Client,
    Completion,
    EndpointError,
    Request,
    RequestError,
)

# Seconds before the first retry; doubled for each, up to a minute, and drawn from the upper half.
BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
# Consecutive requests without a completion that may have failed because of the endpoint.
FAILED_IN_A_ROW = 3
# Seconds between two lines about waits.
NOTIFY_SECONDS = 60.0
# One retry may help; a model that writes nothing again would do so at the same price.
EMPTY_RETRIES = 1
# Of English text, to limit a minute's tokens before the response reports their number.
_CHARACTERS_PER_TOKEN = 3


class OpenAIClient(Client):
    """Sends requests, waits where the endpoint is busy, tells a bad request from a bad endpoint.

    The retries are our own, since MAX_COST is exact only if every try is counted: the library's, or
    a retry library's, would pay for tries unseen.

    A request is tried again after 429, 5xx, 408, 409, a dropped or refused connection, TIMEOUT
    seconds without a whole response, and a malformed body: RETRIES times, at growing intervals, or
    when the endpoint asks for it. After the last try it is a `RequestError` as long as the endpoint
    completes others; an `EndpointError`

    - where nothing listens, and nothing was completed since the request was first sent;
    - where the endpoint is busy (429): its tries start anew whenever another request is completed,
      so it fails only where none is;
    - at the `FAILED_IN_A_ROW`-th request that fails with no completion between them.

    An empty completion, which is paid for, is tried once more, unless it reached MAX_NEW_TOKENS: it
    would do so again. With MAX_COST set it is not tried again, and neither is a try that may have
    been paid for: one that reached TIMEOUT, was cut off, or was malformed. After an `EndpointError`
    nothing more is sent. A field that the endpoint does not take is left out of all requests, or
    renamed, and `notify` gets a line.
    """

    def __init__(
        self, extract: ExtractConfig, notify: Callable[[str], None] = lambda line: None
    ) -> None:
        """`notify` gets a line about waits, at the first retry and once a minute.

        Raises InputError where the endpoint's address or key is missing.
        """
        self._notify = notify
        self._notified = -math.inf
        self._extract = extract
        self._endpoint = endpoints.find(extract)
        self._client = openai.AsyncOpenAI(**self._endpoint.options(extract.timeout, retries=0))
        self._dialect = protocol.Dialect(extract, self._endpoint.is_openai)
        self._limiter = RateLimiter(extract.requests_per_minute, extract.tokens_per_minute)
        self._completed = 0
        self._failed = 0
        self._broken: EndpointError | None = None

    async def complete(self, request: Request) -> Completion:
        """See `Client`; `Completion.seconds` is of the last try.

        Token counts are summed over the tries, where an empty completion was paid for.
        """
        outcome = await self._try(request)
        if isinstance(outcome, EndpointError):
            self._broken = outcome
        # Raised here, where no error of the library is handled: as the context it would carry the
        # request and its headers along.
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _try(self, request: Request) -> Completion | RequestError | EndpointError:
        """Tries until there is an outcome."""
        estimate = len(request.text) // _CHARACTERS_PER_TOKEN + request.decoding.max_new_tokens
        completed = self._completed
        tries = empty = 0
        prompt: int | None = 0
        written: int | None = 0
        is_capped = self._extract.max_cost is not None
        while True:
            ticket = await self._limiter.enter(estimate)
            if self._broken is not None:
                return EndpointError(str(self._broken))
            outcome = await self._try_once(request)
            if outcome is None:  # Sent again at once, without the field that was rejected.
                continue
            if isinstance(outcome, EndpointError):
                return outcome
            if isinstance(outcome, Completion | RequestError):
                prompt = _plus(prompt, outcome.prompt_tokens)
                written = _plus(written, outcome.completion_tokens)
                if outcome.prompt_tokens is not None:
                    tokens = outcome.prompt_tokens + (outcome.completion_tokens or 0)
                    self._limiter.settle(ticket, tokens)
            if isinstance(outcome, Completion):
                self._note_completion()
                return dataclasses.replace(outcome, prompt_tokens=prompt, completion_tokens=written)
            if isinstance(outcome, RequestError):
                failure = RequestError(outcome.reason, outcome.detail, prompt, written)
                if outcome.reason == failures.REFUSED:
                    # The request may be wrong, or all of them.
                    return self._count_failure(failure)
                empty_retries = min(EMPTY_RETRIES, self._extract.retries)
                if outcome.reason != failures.EMPTY or is_capped or empty == empty_retries:
                    # A failure of this request alone shows that the endpoint works.
                    self._note_completion()
                    return failure
                empty += 1
                again = Again(outcome.reason, outcome.detail)
            else:
                again = outcome
            if again.may_be_paid and is_capped:
                detail = f"{again.detail}; charged in full, as MAX_COST is set"
                return self._count_failure(RequestError(again.reason, detail, None, None))
            if again.busy and self._completed > completed:
                completed, tries = self._completed, 0
            if tries == self._extract.retries:
                return self._out_of_tries(again, self._completed > completed, prompt, written)
            await self._wait(again, tries)
            tries += 1

    async def _try_once(
        self, request: Request
    ) -> Completion | Again | RequestError | EndpointError | None:
        """The outcome of one try; None where the endpoint did not take a field of the request."""
        sent = protocol.body(request, self._dialect)
        omitted = self._dialect.text
        start = time.monotonic()
        limit = self._extract.timeout
        try:
            # The library's own timeout is for silence: a slow stream of bytes never reaches it.
            async with asyncio.timeout(limit):
                body = await self._client.post(
                    protocol.path(request),
                    cast_to=object,
                    body=sent,
                    options={"headers": {"Idempotency-Key": request.key}},
                )
            completion = protocol.read(body, request.model, time.monotonic() - start)
            return dataclasses.replace(protocol.cut(completion, request.stop), omitted=omitted)
        except (TimeoutError, openai.APITimeoutError):
            detail = f"no response within TIMEOUT={limit:g} s"
            return Again(failures.UNAVAILABLE, detail, may_be_paid=True)
        except openai.APIConnectionError as error:
            return _connection_failure(error)
        except openai.APIStatusError as error:
            field = failures.unsupported_field(error.status_code, error.body)
            if (line := self._dialect.adapt(field, sent)) is not None:
                if line:
                    self._notify(f"{self._endpoint.shown} {line}")
                return None
            failure = failures.classify(
                error.status_code, error.body, error.response.headers, self._endpoint
            )
            if error.status_code != 404:
                return failure
            missing = await asyncio.to_thread(self._missing_model, request.model)
            return EndpointError(missing) if missing else failure
        except (json.JSONDecodeError, UnicodeDecodeError):
            detail = "the response is not JSON, or was cut off"
            return Again(failures.MALFORMED, detail, may_be_paid=True)
        except protocol.MalformedError as error:
            return Again(failures.MALFORMED, str(error), may_be_paid=True)
        except RequestError as error:
            return error

    def _missing_model(self, model: str) -> str:
        with contextlib.suppress(openai.APIConnectionError):
            return EndpointInfo(self._extract).missing(model)
        return ""

    async def _wait(self, again: Again, tries: int) -> None:
        """Waits before a retry; all other requests wait too, where the endpoint asked for it."""
        if time.monotonic() - self._notified > NOTIFY_SECONDS:
            self._notified = time.monotonic()
            self._notify(
                f"waiting for {self._endpoint.shown}: {again.detail}; try {tries + 1} of "
                f"{self._extract.retries + 1} failed"
            )
        if again.wait is None:
            backoff = min(BACKOFF * 2**tries, LONGEST_BACKOFF)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            return
        self._limiter.hold(again.wait)
        # Spread out the requests that waited together.
        await asyncio.sleep(again.wait + random.uniform(0, 0.1) * BACKOFF)

    def _note_completion(self) -> None:
        self._completed += 1
        self._failed = 0

    def _out_of_tries(
        self, again: Again, others_completed: bool, prompt: int | None, written: int | None
    ) -> RequestError | EndpointError:
        tries = self._extract.retries + 1
        if not again.connected and not others_completed:
            return EndpointError(
                f"{self._endpoint.shown}: no connection in {tries} tries ({again.detail}). Start "
                "the endpoint, or correct TEACHER_URL."
            )
        if again.busy:
            return EndpointError(
                f"{self._endpoint.shown} is too busy: no completion in {tries} tries "
                f"({again.detail}). Lower CONCURRENCY, REQUESTS_PER_MINUTE or TOKENS_PER_MINUTE, "
                "or raise RETRIES."
            )
        detail = f"{tries} tries, the last: {again.detail}"
        return self._count_failure(RequestError(again.reason, detail, prompt, written))

    def _count_failure(self, error: RequestError) -> RequestError | EndpointError:
        self._failed += 1
        if self._failed < FAILED_IN_A_ROW:
            return error
        return EndpointError(
            f"{self._endpoint.shown}: {self._failed} consecutive requests failed, the last with: "
            f"{error}. Check the endpoint's log, and start again when it responds.",
            may_be_paid=error.prompt_tokens is None,
        )


def _connection_failure(error: openai.APIConnectionError) -> Again:
    """Names the cause of the library's "Connection error."."""
    cause = error.__cause__
    detail = failures.one_line(f"{type(cause).__name__}: {cause}" if cause else error)
    # In any version of the HTTP library: nothing listens, or there is no route.
    connected = "ConnectError" not in type(cause).__name__
    return Again(failures.UNAVAILABLE, detail, connected=connected, may_be_paid=connected)


def _plus(one: int | None, other: int | None) -> int | None:
    """The sum; None where a part is unknown."""
    return None if one is None or other is None else one + other
