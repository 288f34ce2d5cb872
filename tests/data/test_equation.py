"""The safe evaluator: agrees with exact arithmetic, and nothing hostile gets past it."""

import contextlib
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdistill_jax.data.equation import MAX_CHARACTERS, EquationError, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 84.0 / 2.0 )", 42),
        ("( ( 17.0 + 15.0 ) + 2.0 )", 34),
        ("2 + 3 * 4", 14),
        ("20 - 3 - 4", 13),
        ("24 / 4 / 2", 3),
        ("24 / (4 / 2)", 12),
        ("-3 * -2", 6),
        ("2 - -3", 5),
        ("--4", 4),
        ("-(2 + 1)", -3),
        ("-2 * 3 + 1", -5),
        (".5 + 1.", Fraction(3, 2)),
        ("1 / 3 * 3", 1),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("  7  ", 7),
        ("007", 7),
    ],
)
def test_value(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("__import__('os').system('true')", "name"),
        ("print(1)", "name"),
        ("(1).real", "unexpected character"),
        ("x + 1", "name"),
        ("1e5", "name"),
        ("9**9**9", "power"),
        ("9 ** 9", "power"),
        ("(175, 5)", "unexpected character"),
        ("7 % 2", "unexpected character"),
        ("1 = 1", "unexpected character"),
        ("٣ + 1", "unexpected character"),
        ("((491 - 21", "unbalanced parentheses"),
        ("1)", "unbalanced parentheses"),
        ("()", "missing operand"),
        ("1 +", "missing operand"),
        ("* 2", "missing operand"),
        ("+ 2", "missing operand"),
        ("-", "missing operand"),
        ("7 // 2", "missing operand"),
        ("(1 + ) 2", "missing operand"),
        ("1 2", "missing operator"),
        ("2 (3)", "missing operator"),
        ("(2)(3)", "missing operator"),
        ("1.2.3", "missing operator"),
        ("1 / 0", "division by zero"),
        ("1 / (2 - 2)", "division by zero"),
        ("9" * 40, "overflow"),
        ("*".join(["9" * 20] * 10), "overflow"),
        ("(" * 10_000 + "1" + ")" * 10_000, "too long"),
        ("-" * 10_000 + "1", "too long"),
    ],
)
def test_hostile_or_broken_text_is_a_typed_failure(text, reason):
    with pytest.raises(EquationError, match=f"^{reason}: ") as caught:
        evaluate(text)
    assert caught.value.reason == reason


def test_deepest_allowed_nesting_neither_recurses_out_nor_takes_time():
    depth = (MAX_CHARACTERS - 1) // 2
    start = time.perf_counter()
    assert evaluate("(" * depth + "1" + ")" * depth) == 1
    assert evaluate("-" * (MAX_CHARACTERS - 1) + "1") == -1
    assert evaluate("/".join(["2"] * 90)) == Fraction(2, 2**89)
    assert time.perf_counter() - start < 1


def _combine(children):
    """(text, exact value or None where a division by zero makes it undefined)."""

    def apply(operator, left, right, brackets):
        (a, x), (b, y) = left, right
        text = f"({a}) {operator} ({b})"
        text = f"( {text} )" if brackets else text
        if x is None or y is None or (operator == "/" and y == 0):
            return text, None
        operations = {
            "+": lambda: x + y,
            "-": lambda: x - y,
            "*": lambda: x * y,
            "/": lambda: x / y,
        }
        return text, operations[operator]()

    negated = children.map(lambda c: (f"-({c[0]})", None if c[1] is None else -c[1]))
    return negated | st.builds(apply, st.sampled_from("+-*/"), children, children, st.booleans())


_NUMBERS = st.integers(0, 99).map(lambda n: (str(n), Fraction(n))) | st.decimals(
    0, 99, places=2
).map(lambda d: (str(d), Fraction(str(d))))


@given(st.recursive(_NUMBERS, _combine, max_leaves=6))
def test_agrees_with_fractions_on_random_trees(expression):
    text, value = expression
    if value is None:
        with pytest.raises(EquationError, match="division by zero"):
            evaluate(text)
    else:
        assert evaluate(text) == value


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_precedence_and_associativity_are_pythons(numbers, data):
    text = str(numbers[0])
    code = f"Fraction({numbers[0]})"
    for number in numbers[1:]:
        operator = data.draw(st.sampled_from("+-*/"))
        text += f" {operator} {number}"
        code += f" {operator} Fraction({number})"
    assert evaluate(text) == eval(code, {"Fraction": Fraction})  # noqa: S307 (the reference; the text is ours)


@given(st.text(alphabet="0123456789.+-*/() x_,=", max_size=60) | st.text(max_size=30))
def test_any_text_gives_a_value_or_a_typed_failure(text):
    # Any other exception fails the test.
    with contextlib.suppress(EquationError):
        assert isinstance(evaluate(text), Fraction)
