"""Limits requests and tokens per minute.

Our own, since limiter libraries take no later correction of a request's tokens, and no wait that
the endpoint asks for.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Awaitable, Callable

SECONDS = 60.0


@dataclasses.dataclass
class Ticket:
    """A request that was let through: when, and with how many tokens."""

    at: float
    tokens: int


class RateLimiter:
    """Lets requests through, first come first served, under limits per minute.

    Any 60 seconds have at most `requests` requests and at most `tokens` tokens. The minute slides,
    so there is no burst when a new one starts. A request with more tokens than a minute allows
    waits for an empty minute.
    """

    def __init__(
        self,
        requests: int = 0,
        tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """A limit of 0 is no limit; `clock` and `sleep` are in seconds."""
        self._requests = requests
        self._tokens = tokens
        self._clock = clock
        self._sleep = sleep
        self._recent: collections.deque[Ticket] = collections.deque()
        self._held_until = 0.0
        self._turn = asyncio.Lock()

    async def enter(self, tokens: int) -> Ticket:
        """Waits until a request may be sent; `tokens` is an estimate."""
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                await self._sleep(wait)
            ticket = Ticket(self._clock(), tokens)
            if self._requests or self._tokens:
                self._recent.append(ticket)
            return ticket

    def settle(self, ticket: Ticket, tokens: int) -> None:
        """Replaces the estimate of a request by its tokens."""
        ticket.tokens = tokens

    def hold(self, seconds: float) -> None:
        """Lets no request through for so long, as the endpoint asked."""
        self._held_until = max(self._held_until, self._clock() + seconds)

    def _wait(self, tokens: int) -> float:
        """Seconds until the next check; 0 or less = go."""
        now = self._clock()
        while self._recent and self._recent[0].at + SECONDS <= now:
            self._recent.popleft()
        wait = self._held_until - now
        if self._requests and len(self._recent) >= self._requests:
            wait = max(wait, self._recent[0].at + SECONDS - now)
        if self._tokens and self._recent:
            excess = sum(ticket.tokens for ticket in self._recent) + tokens - self._tokens
            for ticket in self._recent if excess > 0 else ():
                excess -= ticket.tokens
                if excess <= 0 or ticket is self._recent[-1]:
                    wait = max(wait, ticket.at + SECONDS - now)
                    break
        return wait
