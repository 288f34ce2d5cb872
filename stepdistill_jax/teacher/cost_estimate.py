"""What an extraction will ask and cost, estimated from a sample of its examples."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TypeVar

from stepdistill_jax.teacher.annotator import Annotator, ExampleState
from stepdistill_jax.teacher.budget import Bounds, Prices, Tokens
from stepdistill_jax.teacher.requests import HINT, Request
from stepdistill_jax.teacher.response_cache import ResponseCache

_SAMPLED = 200
# Of the sampled requests, those whose tokens are counted: each may be a request to the endpoint.
MAX_COUNTED = 50
MAX_HINTS_COUNTED = 10
# Of English text, where nothing counts tokens.
_BYTES_PER_TOKEN = 4
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class _Prompts:
    """Tokens of prompts: mean, upper bound, and how they are known."""

    mean: float = 0.0
    bound: float = 0.0
    basis: str = "nothing to count"


def describe(
    states: Sequence[ExampleState],
    annotator: Annotator,
    cache: ResponseCache,
    bounds: Bounds,
    count: Callable[[Request], int] | None,
    method: str,
    left: Decimal | None,
) -> list[str]:
    """What is left to ask and what it costs, estimated on evenly spaced examples.

    Numbers of requests are exact. The maximum assumes that every completion is as long as allowed,
    every hint is needed, and every prompt is as long as its bound or the longest counted one.

    Args:
        bounds: of prompts, where nothing counts them.
        count: tokens of a request, where something counts them.
        method: how `count` does it, for the reader.
        left: of MAX_COST, for this worker; None without one.
    """
    to_ask = [state for state in states if annotator.missing(state)]
    requests = sum(len(annotator.missing(state)) for state in to_ask)
    sample = _spread(to_ask, _SAMPLED)
    sampled = [
        annotator.request(each, *slot) for each in sample for slot in annotator.missing(each)
    ]
    sent = [request for request in sampled if cache.get(request.key) is None]
    cached = 1 - len(sent) / len(sampled) if sampled else 0.0
    lines = [f"to ask: {len(to_ask):,} of {len(states):,} examples, {requests:,} requests (exact)"]
    hinted = [s for s in states if annotator.extract.hint_wrong and annotator.may_need_hint(s)]
    wrong = sum(not annotator.missing(state) for state in hinted)
    if hinted:
        lines[0] += (
            f"; plus a hint for each wrong example: {wrong:,} known so far, at most {len(hinted):,}"
        )
    if cached:
        lines.append(f"from the cache: {cached:.1%} of the requests about {len(sample)} examples")
    hints = [annotator.request(state, HINT, 0) for state in _spread(hinted, _SAMPLED)]
    number = round(requests * (1 - cached))
    prompts, hint_prompts = (
        _prompts(each, states, bounds, count, method) for each in (sent, hints)
    )
    written, written_basis = _written(sent or hints, states)
    tokens = Tokens(
        round(number * prompts.mean + wrong * hint_prompts.mean), round((number + wrong) * written)
    )
    longest = max((bounds.of(request).written for request in (*sent[:1], *hints[:1])), default=0)
    maximum = Tokens(
        math.ceil(number * prompts.bound + len(hinted) * hint_prompts.bound),
        (number + len(hinted)) * longest,
    )
    basis = (prompts if sent else hint_prompts).basis
    return [
        *lines,
        f"prompt tokens: about {tokens.prompt:,} ({basis}), at most {maximum.prompt:,}",
        f"completion tokens: about {tokens.written:,} ({written_basis}), at most "
        f"{maximum.written:,}",
        _cost(tokens, maximum, Prices.of(annotator.extract), left),
    ]


def _cost(tokens: Tokens, maximum: Tokens, prices: Prices, left: Decimal | None) -> str:
    cost, highest = prices.cost(tokens), prices.cost(maximum)
    if cost is None or highest is None:
        return "cost: unknown without PRICE_INPUT and PRICE_OUTPUT"
    line = f"cost: about {cost:.4f}, at most {highest:.4f}"
    if left is not None:
        fits = "suffices" if highest <= left else "may not suffice"
        line += f"; the {left:.4f} left of MAX_COST {fits}"
    return line


def _spread(items: Sequence[_Item], maximum: int) -> Sequence[_Item]:
    """At most `maximum` of the items, evenly spaced."""
    count = min(maximum, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _reported(states: Sequence[ExampleState], field: str) -> list[int]:
    """The endpoint's counts for the responses that were paid for."""
    responses = (each for state in states for each in state.responses.values() if each.send)
    counts = (getattr(response, field) for response in responses if not response.error)
    return [count for count in counts if count is not None]


def _prompts(
    sent: Sequence[Request],
    states: Sequence[ExampleState],
    bounds: Bounds,
    count: Callable[[Request], int] | None,
    method: str,
) -> _Prompts:
    if not sent:
        return _Prompts()
    if count is not None:
        counted = _spread(sent, MAX_HINTS_COUNTED if sent[0].purpose == HINT else MAX_COUNTED)
        sizes = [count(request) for request in counted]
        basis = f"{method} on {len(counted)} requests of up to {max(sizes):,}"
        # Prompts that are not counted may be longer than the mean of those that are.
        return _Prompts(statistics.mean(sizes), max(sizes), basis)
    bound = statistics.mean(bounds.of(request).prompt for request in sent)
    if reported := _reported(states, "prompt_tokens"):
        basis = f"the mean of {len(reported)} responses so far"
        return _Prompts(statistics.mean(reported), bound, basis)
    mean = statistics.mean(len(request.text.encode()) / _BYTES_PER_TOKEN for request in sent)
    basis = f"assuming {_BYTES_PER_TOKEN} bytes per token; set TEACHER_TOKENIZER to count them"
    return _Prompts(mean, bound, basis)


def _written(sent: Sequence[Request], states: Sequence[ExampleState]) -> tuple[float, str]:
    """Mean tokens of a completion, and how they are known."""
    if not sent:
        return 0.0, "nothing to count"
    if reported := _reported(states, "completion_tokens"):
        return statistics.mean(reported), f"the mean of {len(reported)} responses so far"
    maximum = sent[0].decoding.max_new_tokens
    turns = [turn.content for turn in sent[0].messages if turn.role == "assistant"]
    if not turns:
        return maximum, "MAX_NEW_TOKENS, as there is no response yet"
    size = statistics.mean(len(turn.encode()) / _BYTES_PER_TOKEN for turn in turns)
    return min(maximum, size), f"as the exemplars, at {_BYTES_PER_TOKEN} bytes per token"
