"""One declaration per setting: a dataclass field with its default, limits and documentation.

    @dataclasses.dataclass(frozen=True)
    class OptimizerConfig:
        HEADING = "Optimizer"
        learning_rate: float = setting(5e-5, "Peak learning rate.", at_least=0)

        def __post_init__(self) -> None:
            check(self)

A gin file sets it by its macro, the field's name in capitals (``LEARNING_RATE = 1e-4``). The
resolved ``config.gin``, ``--help`` and every range and choice error are made from the field.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from stepdistill_jax.spec import InputError

Choices = tuple[Any, ...] | Mapping[Any, str]

_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text in quotes",
}
# Characters of a value in a message.
_SHOWN = 100
_ITEMS: dict[Any, str] = {str: "texts", int: "whole numbers", float: "numbers"}


def setting(
    default: Any,
    doc: str,
    *,
    macro: str = "",
    heading: str = "",
    choices: Choices = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declares a dataclass field that a gin file sets.

    Args:
        default: its value where no file or flag sets it.
        doc: what it means, with its unit, as sentences.
        macro: its name in gin files; "" = the field's name in capitals.
        heading: heading of this field and the fields after it; "" = as before, first `HEADING`.
        choices: the values allowed, or value -> its meaning. A tuple field holds only these. A
            choice that ends in ``PATH`` allows any text that begins as it does.
        at_least, above, at_most, below: limits of a number; None, where allowed, has none.
    """
    limits = (at_least, above, at_most, below)
    return dataclasses.field(
        default=default,
        metadata={
            "doc": doc, "macro": macro, "heading": heading, "choices": choices, "limits": limits
        },
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Macro:
    """A setting as gin files and ``--help`` see it.

    Attributes:
        name: in gin files.
        heading: that it is listed under.
        config: the dataclass that declares it.
        field: its name there.
        hint: its type.
        default: its value where nothing sets it.
        doc: what it means, with its limits, and a line for each choice.
    """

    name: str
    heading: str
    config: type
    field: str
    hint: Any
    default: Any
    doc: str


def macros(configs: Iterable[type]) -> dict[str, Macro]:
    """Every setting of some dataclasses by macro name, in the order of declaration."""
    declared = {}
    for config in configs:
        hints = typing.get_type_hints(config)
        heading = getattr(config, "HEADING", "")
        for field in _fields(config):
            heading = field.metadata["heading"] or heading
            name = macro_name(field)
            doc = field.metadata["doc"] + _limits_doc(field)
            declared[name] = Macro(
                name, heading, config, field.name, hints[field.name], field.default, doc
            )
    return declared


def macro_name(field: dataclasses.Field[Any]) -> str:
    """The name by which gin files set a field."""
    return field.metadata["macro"] or field.name.upper()


def check(config: Any) -> None:
    """Checks every setting of a dataclass against its choices and limits.

    Raises:
        InputError: naming the macro, its value and what is allowed.
    """
    for field in _fields(config):
        value = getattr(config, field.name)
        expected = _violated(field, value)
        if expected:
            raise InputError(f"{macro_name(field)}: got {short(value)}, expected {expected}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a field's declared type; int passes for float, bool for no number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(fits, value, args))
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def kind(hint: Any) -> str:
    """A declared type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(kind, args)))
    if origin is tuple:
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        # Pairs are written as a dict.
        return f"a tuple of {_ITEMS[inner]}" if inner in _ITEMS else "a dict"
    return "None" if hint is type(None) else _KINDS.get(hint) or str(hint)


def short(value: Any) -> str:
    """A value for a message, as Python writes it; long ones are cut."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _fields(config: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(config) if "doc" in field.metadata]


def _violated(field: dataclasses.Field[Any], value: Any) -> str:
    """What was expected instead of `value`; "" = it is allowed."""
    choices = field.metadata["choices"]
    if choices:
        values = value if isinstance(value, tuple) else (value,)
        if any(not any(_matches(item, choice) for choice in choices) for item in values):
            return _choices_text(choices, some=isinstance(value, tuple))
        return ""
    at_least, above, at_most, below = field.metadata["limits"]
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if field.metadata["limits"] == (None,) * 4 or value is None:
        return ""
    allowed = (
        (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    return "" if allowed else _range_text(*field.metadata["limits"])


def _matches(value: Any, choice: Any) -> bool:
    if isinstance(choice, str) and choice.endswith("PATH") and isinstance(value, str):
        prefix = choice.removesuffix("PATH")
        return value.startswith(prefix) and value != prefix
    return bool(value == choice)


def _choices_text(choices: Choices, *, some: bool) -> str:
    listed = ", ".join(map(repr, choices))
    return f"some of {listed}" if some else f"one of {listed}"


def _range_text(
    at_least: float | None, above: float | None, at_most: float | None, below: float | None
) -> str:
    low, high = at_least if above is None else above, at_most if below is None else below
    if high is None:
        return f"at least {_number(low)}" if above is None else f"more than {_number(low)}"
    brackets = "[" if above is None else "(", "]" if below is None else ")"
    return f"a number in {brackets[0]}{_number(low)}, {_number(high)}{brackets[1]}"


def _number(value: float | None) -> str:
    # :g would round a large whole number.
    return str(value) if isinstance(value, int) else f"{value:g}"


def _limits_doc(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata["choices"]
    if isinstance(choices, Mapping):
        return "".join(f"\n{choice!r}: {meaning}" for choice, meaning in choices.items())
    if choices:
        text = _choices_text(choices, some=isinstance(field.default, tuple))
    elif field.metadata["limits"] != (None,) * 4:
        text = _range_text(*field.metadata["limits"])
    else:
        return ""
    return f" {text[0].upper()}{text[1:]}."
