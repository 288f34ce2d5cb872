"""What an extraction may cost: prices, what is spent and reserved, and how long a request can be.

Sums are exact decimals: a stop at MAX_COST is a stop at MAX_COST.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Completion, Request, RequestError

_MILLION = 1_000_000
# Tokens around one message of a chat, by which its template tells who speaks: more than any
# template in use has, and more than their default system prompts come to over a whole prompt.
_PER_MESSAGE = 16


class Tokens(NamedTuple):
    """Tokens read and written."""

    prompt: int
    written: int

    def plus(self, other: Tokens) -> Tokens:
        """The sums."""
        return Tokens(self.prompt + other.prompt, self.written + other.written)


NOTHING = Tokens(0, 0)


@dataclasses.dataclass(frozen=True)
class Prices:
    """Of a million tokens each; None where it is not known."""

    prompt: Decimal | None
    written: Decimal | None

    @classmethod
    def of(cls, extract: ExtractConfig) -> Prices:
        """PRICE_INPUT and PRICE_OUTPUT as they are written: 0.15 is 0.15."""
        given = (extract.price_input, extract.price_output)
        return cls(*(None if price is None else Decimal(str(price)) for price in given))

    def cost(self, tokens: Tokens) -> Decimal | None:
        """Of some tokens; None where a price is not known."""
        if self.prompt is None or self.written is None:
            return None
        return (tokens.prompt * self.prompt + tokens.written * self.written) / _MILLION


class Budget:
    """MAX_COST, and what is left of it: spent and reserved together never exceed it.

    Attributes:
        spent: tokens paid for, over all calls.
        reserved: bounds of the requests in flight.
    """

    def __init__(self, prices: Prices, most: Decimal | None, spent: Tokens) -> None:
        self.prices = prices
        self.most = most
        self.spent = spent
        self.reserved = NOTHING

    @property
    def cost(self) -> Decimal | None:
        """Spent so far."""
        return self.prices.cost(self.spent)

    @property
    def left(self) -> Decimal | None:
        """Of MAX_COST; None without one."""
        return None if self.most is None else self.most - (self.cost or Decimal(0))

    def reserve(self, bound: Tokens) -> bool:
        """Sets tokens aside for a request, or says that they do not fit."""
        would = self.spent.plus(self.reserved).plus(bound)
        cost = self.prices.cost(would)
        if self.most is not None and cost is not None and cost > self.most:
            return False
        self.reserved = self.reserved.plus(bound)
        return True

    def take_back(self, bound: Tokens) -> None:
        """Reserves what counted as spent: a request of an earlier process, still to be answered."""
        self.spent = Tokens(self.spent.prompt - bound.prompt, self.spent.written - bound.written)
        self.reserved = self.reserved.plus(bound)

    def settle(self, bound: Tokens, charged: Tokens) -> None:
        """Replaces what was set aside by what was charged."""
        self.reserved = Tokens(
            self.reserved.prompt - bound.prompt, self.reserved.written - bound.written
        )
        self.spent = self.spent.plus(charged)


class Bounds:
    """How many tokens a request comes to at most, better known with every answer."""

    def __init__(self, count: Callable[[Request], int] | None) -> None:
        """`count` gives the exact number, where a tokenizer is known."""
        self._count = count
        # purpose -> the shortest prompt that was counted by the endpoint: its tokens and its text.
        self._shortest: dict[str, tuple[int, str]] = {}
        # What endpoints add to what a tokenizer knows of, and write beyond what they are asked for.
        self._excess = self._longest = 0

    def of(self, request: Request) -> Tokens:
        """The bound of a request: no token is shorter than a byte.

        Exact with a tokenizer. Else the tokens of the shortest prompt that was answered, of which
        the exemplars are the greater part, and a token for every byte in which this one differs;
        before the first answer a token for every byte of the prompt. An endpoint that was seen to
        read or write more than that is expected to do so again.
        """
        written = max(request.decoding.max_new_tokens, self._longest)
        if self._count is not None:
            return Tokens(self._count(request) + self._excess, written)
        text = request.text
        if request.purpose not in self._shortest:
            size = len(text.encode("utf-8", "replace"))
            return Tokens(size + _PER_MESSAGE * (1 + len(request.messages)), written)
        tokens, other = self._shortest[request.purpose]
        shared = _alike(text, other)
        return Tokens(tokens + len(text[shared:].encode("utf-8", "replace")), written)

    def learn(self, request: Request, prompt_tokens: int | None, written: int | None) -> None:
        """Takes note of the endpoint's own count of a request's tokens, and of its answer's."""
        self._longest = max(self._longest, written or 0)
        if prompt_tokens and self._count is not None:
            self._excess = max(self._excess, prompt_tokens - self._count(request))
        known = self._shortest.get(request.purpose)
        if prompt_tokens and (known is None or prompt_tokens < known[0]):
            self._shortest[request.purpose] = (prompt_tokens, request.text)


def _alike(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def charge(came: Completion | RequestError, bound: Tokens) -> Tokens:
    """What counts as paid for an answer: the endpoint's own count, where it says none the bound.

    A row that failed costs what the endpoint says it does.
    """
    prompt, written = came.prompt_tokens, came.completion_tokens
    return Tokens(
        bound.prompt if prompt is None else prompt, bound.written if written is None else written
    )
