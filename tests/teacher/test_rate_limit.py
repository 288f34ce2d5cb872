"""The pace of requests, on a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdistill_jax.teacher.clients.rate_limit import RateLimiter


class Clock:
    """Time passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps = 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self.now += seconds
        await asyncio.sleep(0)


def times(pace: RateLimiter, clock: Clock, tokens: list[int]) -> list[float]:
    """When each request is let through, counted from the first moment."""

    async def run():
        start = clock.now
        return [(await pace.enter(count)).at - start for count in tokens]

    return asyncio.run(run())


def paced(**limits: int) -> tuple[RateLimiter, Clock]:
    clock = Clock()
    return RateLimiter(**limits, clock=clock, sleep=clock.sleep), clock


def test_no_limit_never_waits():
    pace, clock = paced()
    assert times(pace, clock, [10**9] * 5) == [0.0] * 5
    assert clock.sleeps == 0


def test_requests_a_minute_slide():
    pace, clock = paced(requests=3)
    assert times(pace, clock, [1] * 7) == [0, 0, 0, 60, 60, 60, 120]


def test_tokens_a_minute_wait_for_as_many_as_needed():
    pace, clock = paced(tokens=100)
    assert times(pace, clock, [60, 40, 10]) == [0, 0, 60]
    assert times(pace, clock, [100]) == [60]


def test_a_request_over_the_limit_has_a_minute_of_its_own():
    pace, clock = paced(tokens=100)
    assert times(pace, clock, [50, 500, 50]) == [0, 60, 120]


def test_settling_gives_back_what_was_not_used():
    pace, _ = paced(tokens=100)

    async def run():
        first = await pace.enter(90)
        pace.settle(first, 20)
        return (await pace.enter(80)).at - first.at

    assert asyncio.run(run()) == 0


def test_hold_keeps_back_every_request():
    pace, clock = paced()
    pace.hold(7)
    pace.hold(2)
    assert times(pace, clock, [1, 1]) == [7, 7]


@given(
    st.integers(1, 5),
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(1, 30), st.floats(0, 40)), max_size=25),
)
def test_no_minute_has_more_than_its_limits(requests, tokens, asked):
    """Whatever is asked when: in no 60 seconds too many requests, or tokens of several."""
    pace, clock = paced(requests=requests, tokens=tokens)

    async def run():
        let_through = []
        for count, pause in asked:
            clock.now += pause
            let_through.append(((await pace.enter(count)).at, count))
        return let_through

    let_through = asyncio.run(run())
    for start, _ in let_through:
        minute = [count for at, count in let_through if start <= at < start + 60]
        assert len(minute) <= requests
        assert sum(minute) <= tokens or len(minute) == 1


@pytest.mark.parametrize("workers", [1, 16])
def test_first_come_first_served(workers):
    pace, _ = paced(requests=2)
    order = []

    async def enter(number):
        await pace.enter(1)
        order.append(number)

    async def run():
        await asyncio.gather(*map(enter, range(workers)))

    asyncio.run(run())
    assert order == list(range(workers))
