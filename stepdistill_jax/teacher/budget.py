"""What an extraction costs: prices, tokens spent and reserved, worst-case tokens of a request.

Sums are exact decimals, so MAX_COST is kept to the token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import NamedTuple

from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Completion, Request, RequestError

_MILLION = 1_000_000
# Tokens that a chat template adds around one message: more than any template in use adds, and more
# than their default system prompts have over a whole prompt.
_PER_MESSAGE = 16


class Tokens(NamedTuple):
    """Tokens of prompts and of completions."""

    prompt: int
    written: int

    def plus(self, other: Tokens) -> Tokens:
        """The sums."""
        return Tokens(self.prompt + other.prompt, self.written + other.written)

    def minus(self, other: Tokens) -> Tokens:
        """The differences."""
        return Tokens(self.prompt - other.prompt, self.written - other.written)


NO_TOKENS = Tokens(0, 0)


def total(parts: Iterable[Tokens]) -> Tokens:
    """The sums over all parts."""
    result = NO_TOKENS
    for part in parts:
        result = result.plus(part)
    return result


@dataclasses.dataclass(frozen=True)
class Prices:
    """Of a million tokens each; None where unknown."""

    prompt: Decimal | None
    written: Decimal | None

    @classmethod
    def of(cls, extract: ExtractConfig) -> Prices:
        """PRICE_INPUT and PRICE_OUTPUT as they are written: 0.15 is 0.15."""
        prices = (extract.price_input, extract.price_output)
        return cls(*(None if price is None else Decimal(str(price)) for price in prices))

    def cost(self, tokens: Tokens) -> Decimal | None:
        """None where a price is unknown."""
        if self.prompt is None or self.written is None:
            return None
        return (tokens.prompt * self.prompt + tokens.written * self.written) / _MILLION


class Budget:
    """MAX_COST: spent and reserved tokens together never exceed it.

    Attributes:
        maximum: this worker's part of MAX_COST; None = no limit.
        spent: tokens paid for, over all calls.
        reserved: bounds of the requests in flight.
    """

    def __init__(self, prices: Prices, maximum: Decimal | None, spent: Tokens) -> None:
        self.prices = prices
        self.maximum = maximum
        self.spent = spent
        self.reserved = NO_TOKENS

    @property
    def cost(self) -> Decimal | None:
        """The cost of the tokens spent."""
        return self.prices.cost(self.spent)

    @property
    def left(self) -> Decimal | None:
        """What is left of `maximum`."""
        return None if self.maximum is None else self.maximum - (self.cost or Decimal(0))

    def reserve(self, bound: Tokens) -> bool:
        """Reserves tokens for a request; returns False where they exceed the budget."""
        cost = self.prices.cost(self.spent.plus(self.reserved).plus(bound))
        if self.maximum is not None and cost is not None and cost > self.maximum:
            return False
        self.reserved = self.reserved.plus(bound)
        return True

    def reserve_again(self, bound: Tokens) -> None:
        """Reserves the tokens of an earlier process's request, which count as spent until now."""
        self.spent = self.spent.minus(bound)
        self.reserved = self.reserved.plus(bound)

    def settle(self, bound: Tokens, charged: Tokens) -> None:
        """Replaces reserved tokens by charged ones."""
        self.reserved = self.reserved.minus(bound)
        self.spent = self.spent.plus(charged)


class Bounds:
    """Worst-case tokens of a request; the bounds get tighter with every response."""

    def __init__(self, count: Callable[[Request], int] | None) -> None:
        """`count` gives the exact tokens of a prompt, where a tokenizer is known."""
        self._count = count
        # Purpose -> tokens and text of the shortest prompt that the endpoint counted.
        self._shortest: dict[str, tuple[int, str]] = {}
        # Tokens that endpoints add to the tokenizer's count; the longest completion so far.
        self._excess = self._longest = 0

    def of(self, request: Request) -> Tokens:
        """The bound of a request.

        Exact with a tokenizer. Without one no token is shorter than a byte: the bound is the tokens
        of the shortest counted prompt, most of which are the exemplars, plus one for every byte in
        which this prompt differs. Before the first response it is one for every byte of the prompt.
        If an endpoint once reads or writes more than its bound, later bounds include the excess.
        """
        written = max(request.decoding.max_new_tokens, self._longest)
        if self._count is not None:
            return Tokens(self._count(request) + self._excess, written)
        text = request.text
        if request.purpose not in self._shortest:
            size = len(text.encode("utf-8", "replace"))
            return Tokens(size + _PER_MESSAGE * (1 + len(request.messages)), written)
        tokens, other = self._shortest[request.purpose]
        shared = shared_start(text, other)
        return Tokens(tokens + len(text[shared:].encode("utf-8", "replace")), written)

    def learn(self, request: Request, prompt_tokens: int | None, written: int | None) -> None:
        """Takes in the endpoint's counts of a request and its completion."""
        self._longest = max(self._longest, written or 0)
        if prompt_tokens and self._count is not None:
            self._excess = max(self._excess, prompt_tokens - self._count(request))
        shortest = self._shortest.get(request.purpose)
        if prompt_tokens and (shortest is None or prompt_tokens < shortest[0]):
            self._shortest[request.purpose] = (prompt_tokens, request.text)


def shared_start(one: str, other: str) -> int:
    """Number of characters with which both texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def charge(outcome: Completion | RequestError, bound: Tokens) -> Tokens:
    """Tokens that count as paid for: the endpoint's counts, or the bound where it reports none."""
    prompt, written = outcome.prompt_tokens, outcome.completion_tokens
    return Tokens(
        bound.prompt if prompt is None else prompt, bound.written if written is None else written
    )


def paid_rows(answered: int | None, requests: int | None, cached: int | None) -> float | None:
    """Examples that the paid requests make, at as many requests an example as on average.

    None where there are no such requests, or their number is unknown.
    """
    if not requests or not answered:
        return None
    return answered * requests / (requests + (cached or 0))
