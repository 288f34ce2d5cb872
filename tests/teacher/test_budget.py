"""Sums and bounds of what a teacher costs."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from stepdistill_jax.teacher import budget
from stepdistill_jax.teacher.budget import Bounds, Budget, Prices, Tokens
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    ANSWER,
    HINT,
    Completion,
    Decoding,
    Message,
    Request,
    RequestError,
)


def extract(**fields):
    return ExtractConfig(extract_dir="x", teacher_model="m", **fields)


def request(text, purpose=ANSWER):
    messages = (Message("user", "exemplar " * 50), Message("user", text))
    return Request("1", purpose, 0, "m", messages, "", (), Decoding(max_new_tokens=7))


def test_costs_are_exact():
    # In floats a third of these sums would be off by a unit in the last place.
    prices = Prices.of(extract(price_input=0.15, price_output=0.6))
    assert prices.cost(Tokens(1, 0)) == Decimal("0.00000015")
    assert prices.cost(Tokens(1_000_000, 1_000_000)) == Decimal("0.75")
    assert Prices.of(extract(price_input=0.15)).cost(Tokens(1, 1)) is None


def test_the_cap_itself_is_allowed_and_not_a_token_more():
    held = Budget(
        Prices.of(extract(price_input=0.1, price_output=0.1)), Decimal("3e-6"), Tokens(0, 0)
    )
    assert held.reserve(Tokens(10, 10))
    assert not held.reserve(Tokens(10, 1))
    assert held.reserve(Tokens(10, 0))
    assert not held.reserve(Tokens(0, 1))
    held.settle(Tokens(10, 10), Tokens(10, 4))
    assert not held.reserve(Tokens(7, 0))
    assert held.reserve(Tokens(0, 6))
    assert held.cost == Decimal("1.4e-6")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))))
def test_spent_and_reserved_never_exceed_the_cap(asked):
    prices = Prices(Decimal("0.3"), Decimal("1.1"))
    held = Budget(prices, Decimal("0.0001"), Tokens(0, 0))
    flying = []
    for prompt, written, used in asked:
        bound = Tokens(prompt, written)
        if held.reserve(bound):
            flying.append((bound, Tokens(prompt, int(written * used))))
        elif flying:
            held.settle(*flying.pop(0))
        total = prices.cost(held.spent.plus(held.reserved))
        assert total is not None
        assert total <= Decimal("0.0001")


def test_a_tokenizer_gives_exact_bounds():
    assert Bounds(lambda asked: len(asked.text.split())).of(request("a b c")) == (53, 7)


def test_an_endpoint_that_goes_beyond_a_bound_is_expected_to_do_so_again():
    bounds = Bounds(lambda asked: len(asked.text.split()))
    bounds.learn(request("a b c"), 58, 5)
    assert bounds.of(request("a")) == (51 + 5, 7)
    bounds.learn(request("a b c"), 53, 9)
    bounds.learn(request("a b c"), None, None)
    assert bounds.of(request("a")) == (51 + 5, 9)


def test_bounds_without_a_tokenizer_grow_tighter_with_answers():
    bounds = Bounds(None)
    first = request("é is a letter")
    # A token a byte: 450 and 14 and the line between, and a template's share for each message.
    assert bounds.of(first) == (450 + 1 + 14 + 3 * 16, 7)
    bounds.learn(first, 60, 3)
    assert bounds.of(request("é is a number, or not")) == (60 + len("number, or not"), 7)
    bounds.learn(request("longer than that"), 70, 3)
    bounds.learn(request("x"), None, None)
    assert bounds.of(first) == (60, 7)
    # Hints have exemplars of their own.
    assert bounds.of(request("x", HINT)).prompt > 450


def test_what_the_endpoint_does_not_count_is_charged_at_its_bound():
    bound = Tokens(100, 7)
    assert budget.charge(Completion("x", "stop", 40, 3, "m", 0.1), bound) == (40, 3)
    assert budget.charge(Completion("x", "stop", None, None, "m", 0.1), bound) == (100, 7)
    assert budget.charge(RequestError("empty completion", "", 40, 0), bound) == (40, 0)
