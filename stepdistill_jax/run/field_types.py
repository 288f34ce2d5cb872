"""Whether a value from a gin file is of a field's declared type."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's declared type; int passes for float, bool for no number."""
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
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, hint)


def frozen(value: Any) -> Any:
    """Lists as tuples and dicts as tuples of pairs, at every depth."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value
