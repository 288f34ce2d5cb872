"""Safe arithmetic: the value of a model's equation, without running it as code.

A shunting-yard evaluator over exact fractions. It neither recurses nor exponentiates, so time and
memory are linear in the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

# Increase it whenever a text would have another value, or a failure another reason.
VERSION = 1

MAX_CHARACTERS = 1000
# Larger than any word problem's answer; keeps every value convertible to a float.
MAX_MAGNITUDE = Fraction(10**30)

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)|(?P<symbol>[-+*/()]))", re.ASCII)
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negate": 3}


class EquationError(ValueError):
    """The text has no arithmetic value.

    Attributes:
        reason: one of the constants ``empty``, ``too long``, ``name``, ``power``,
            ``unexpected character``, ``unbalanced parentheses``, ``missing operand``,
            ``missing operator``, ``division by zero``, ``overflow``.
    """

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {text!r:.60}")


def evaluate(text: str) -> Fraction:
    """The exact value of an expression of numbers, ``+ - * /``, parentheses and unary minus.

    ``evaluate("( 84.0 / 2.0 )")`` is ``Fraction(42)``. Numbers are decimal without exponent or
    thousands separators.

    Raises:
        EquationError: with a reason; no other exception.
    """
    if len(text) > MAX_CHARACTERS:
        raise EquationError("too long", text)
    values: list[Fraction] = []
    operators: list[str] = []
    after_operand = False
    for token in _tokens(text):
        if token[0].isdigit() or token[0] == ".":
            if after_operand:
                raise EquationError("missing operator", text)
            values.append(_bounded(Fraction(token.rstrip(".")), text))
            after_operand = True
        elif token == "(":
            if after_operand:
                raise EquationError("missing operator", text)
            operators.append(token)
        elif token == ")":
            if not after_operand:
                raise EquationError("missing operand", text)
            while operators and operators[-1] != "(":
                _apply(operators.pop(), values, text)
            if not operators:
                raise EquationError("unbalanced parentheses", text)
            operators.pop()
        elif after_operand:
            while operators and _PRECEDENCE.get(operators[-1], 0) >= _PRECEDENCE[token]:
                _apply(operators.pop(), values, text)
            operators.append(token)
            after_operand = False
        elif token == "-":
            operators.append("negate")
        else:
            raise EquationError("missing operand", text)
    if not after_operand:
        raise EquationError("missing operand" if operators or values else "empty", text)
    while operators:
        operator = operators.pop()
        if operator == "(":
            raise EquationError("unbalanced parentheses", text)
        _apply(operator, values, text)
    return values[0]


def _tokens(text: str) -> list[str]:
    """Numbers and symbols, in order."""
    if "**" in text:
        raise EquationError("power", text)
    tokens, position, end = [], 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            name = re.search(r"\S", text[position:])
            is_name = name is not None and (name[0].isalpha() or name[0] == "_")
            raise EquationError("name" if is_name else "unexpected character", text)
        tokens.append(match["number"] or match["symbol"])
        position = match.end()
    return tokens


def _apply(operator: str, values: list[Fraction], text: str) -> None:
    """Replaces the operator's operands, last in `values`, by its result."""
    right = values.pop()
    if operator == "negate":
        values.append(-right)
        return
    left = values.pop()
    if operator == "/" and not right:
        raise EquationError("division by zero", text)
    result = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
    }[operator]()
    values.append(_bounded(result, text))


def _bounded(value: Fraction, text: str) -> Fraction:
    if abs(value) > MAX_MAGNITUDE:
        raise EquationError("overflow", text)
    return value
