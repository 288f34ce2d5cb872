"""What an extraction will ask and cost, from a sample of its rows and without sending any."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TypeVar

from stepdistill_jax.teacher.budget import Bounds, Prices, Tokens
from stepdistill_jax.teacher.requests import ANSWER, HINT, Request
from stepdistill_jax.teacher.response_cache import ResponseCache
from stepdistill_jax.teacher.resume import Annotator, ExampleState

SAMPLED = 200
# Of their requests, as many have their tokens counted: each may be a question to the endpoint.
COUNTED = 50
HINTS_COUNTED = 10
# English text, for want of a tokenizer.
_BYTES_A_TOKEN = 4
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class CostEstimate:
    """What is still to be asked.

    Attributes:
        rows: with something to ask.
        requests: about them, exactly, without hints.
        hints: requests with the gold label given, at most: one for each row that may be wrong.
        sure_hints: of those, rows that are known to be wrong; in `tokens`.
        sampled: rows that tokens were counted on.
        cached: share of the sampled requests that the cache will answer.
        tokens: estimate, of the requests that will be sent.
        most: the same at their bounds, with every answer as long as it may be and every hint;
            where prompts are counted, each as long as the longest of those.
        prompt_basis, written_basis: what the estimates rest on.
        cost, most_cost: None without prices.
    """

    rows: int
    requests: int
    hints: int
    sure_hints: int
    sampled: int
    cached: float
    tokens: Tokens
    most: Tokens
    prompt_basis: str
    written_basis: str
    cost: Decimal | None
    most_cost: Decimal | None


def make(
    rows: Sequence[ExampleState],
    teaching: Annotator,
    cache: ResponseCache,
    bounds: Bounds,
    count: Callable[[Request], int] | None,
    how: str = "counted",
) -> CostEstimate:
    """Estimates on evenly spaced rows.

    Args:
        rows: this worker's, with what is answered.
        teaching: the teacher.
        cache: looked into for the sampled rows.
        bounds: of what nothing counts.
        count: tokens of a request, where something counts them.
        how: they are counted.
    """
    extract = teaching.extract
    slots = [(ANSWER, sample) for sample in range(extract.samples)]
    to_ask = [row for row in rows if not row.answers.keys() >= {*slots}]
    requests = sum(slot not in row.answers for row in to_ask for slot in slots)
    sample = _spread(to_ask, SAMPLED)
    asked = [
        teaching.request(row, *slot) for row in sample for slot in slots if slot not in row.answers
    ]
    sent = [request for request in asked if cache.get(request.key) is None]
    cached = 1 - len(sent) / len(asked) if asked else 0.0
    number = round(requests * (1 - cached))
    prompt, longest_prompt, prompt_basis = _prompt_tokens(sent, rows, count, how)
    hinted = [row for row in rows if extract.hint_wrong and teaching.may_need_hint(row)]
    sure = sum(row.answers.keys() >= {*slots} for row in hinted)
    hints = [teaching.request(row, HINT, 0) for row in _spread(hinted, SAMPLED)]
    hint_prompt, longest_hint, hint_basis = _prompt_tokens(hints, rows, count, how)
    written, written_basis = _written_tokens([*sent, *hints], rows)
    tokens = Tokens(round(number * prompt + sure * hint_prompt), round((number + sure) * written))
    # Those that are not counted may be longer than the mean of those that are.
    read = (
        (longest_prompt, longest_hint)
        if count is not None
        else (_bound(sent, bounds), _bound(hints, bounds))
    )
    longest = max((bounds.of(request).written for request in (*sent[:1], *hints[:1])), default=0)
    most = Tokens(
        math.ceil(number * read[0] + len(hinted) * read[1]), (number + len(hinted)) * longest
    )
    prices = Prices.of(extract)
    return CostEstimate(
        rows=len(to_ask),
        requests=requests,
        hints=len(hinted),
        sure_hints=sure,
        sampled=len(sample),
        cached=cached,
        tokens=tokens,
        most=most,
        prompt_basis=prompt_basis if sent else hint_basis,
        written_basis=written_basis,
        cost=prices.cost(tokens),
        most_cost=prices.cost(most),
    )


def _bound(requests: Sequence[Request], bounds: Bounds) -> float:
    """Tokens that one of them comes to at most, over all of them."""
    return statistics.mean(bounds.of(each).prompt for each in requests) if requests else 0.0


def _spread(items: Sequence[_Item], most: int) -> Sequence[_Item]:
    """So many of them at most, evenly spaced."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _known(rows: Sequence[ExampleState], field: str) -> list[int]:
    """Of the answers that were paid for, the endpoint's counts."""
    answers = (answer for row in rows for answer in row.answers.values() if answer.send)
    counts = (getattr(answer, field) for answer in answers if not answer.error)
    return [count for count in counts if count is not None]


def _prompt_tokens(
    sent: Sequence[Request],
    rows: Sequence[ExampleState],
    count: Callable[[Request], int] | None,
    how: str,
) -> tuple[float, float, str]:
    """Mean and longest of the requests, and how they are known."""
    if not sent:
        return 0.0, 0.0, "nothing to count"
    if count is not None:
        counted = _spread(sent, HINTS_COUNTED if sent[0].purpose == HINT else COUNTED)
        sizes = [float(count(each)) for each in counted]
        basis = f"{how} on {len(counted)} requests of up to {max(sizes):,.0f}"
    elif sizes := [float(known) for known in _known(rows, "prompt_tokens")]:
        basis = f"the mean of {len(sizes)} answers so far"
    else:
        sizes = [len(request.text.encode()) / _BYTES_A_TOKEN for request in sent]
        basis = f"a guess at {_BYTES_A_TOKEN} bytes a token; TEACHER_TOKENIZER counts"
    return statistics.mean(sizes), max(sizes), basis


def _written_tokens(sent: Sequence[Request], rows: Sequence[ExampleState]) -> tuple[float, str]:
    if not sent:
        return 0.0, "nothing to count"
    most = sent[0].decoding.max_new_tokens
    if known := _known(rows, "completion_tokens"):
        return statistics.mean(known), f"the mean of {len(known)} answers so far"
    turns = [turn.content for turn in sent[0].messages if turn.role == "assistant"]
    if not turns:
        return most, "as long as MAX_NEW_TOKENS allows, for want of an answer to go by"
    size = statistics.mean(len(turn.encode()) / _BYTES_A_TOKEN for turn in turns)
    return min(most, size), f"as the exemplars' answers, at {_BYTES_A_TOKEN} bytes a token"


def told(plan: CostEstimate, extract_rows: int, left: Decimal | None) -> list[str]:
    """The plan for a reader.

    Args:
        plan: it.
        extract_rows: of this worker, answered ones included.
        left: of MAX_COST, for this worker; None without one.
    """
    lines = [
        f"to ask: {plan.rows:,} of {extract_rows:,} rows, {plan.requests:,} requests (exact)",
    ]
    if plan.hints:
        lines[0] += (
            f"; besides, a hint for each row that is wrong: {plan.sure_hints:,} known so far, "
            f"at most {plan.hints:,}"
        )
    if plan.cached:
        lines.append(f"from the cache: {plan.cached:.1%} of them, as {plan.sampled} rows show")
    lines += [
        f"tokens to read: about {plan.tokens.prompt:,} ({plan.prompt_basis}), at most "
        f"{plan.most.prompt:,}",
        f"tokens to write: about {plan.tokens.written:,} ({plan.written_basis}), at most "
        f"{plan.most.written:,}",
    ]
    if plan.cost is None or plan.most_cost is None:
        return [*lines, "cost: not known without PRICE_INPUT and PRICE_OUTPUT"]
    lines.append(f"cost: about {plan.cost:.4f}, at most {plan.most_cost:.4f}")
    if left is not None:
        fits = "holds" if plan.most_cost <= left else "may be reached before"
        lines[-1] += f"; what is left of MAX_COST, {left:.4f}, {fits} all of it"
    return lines
