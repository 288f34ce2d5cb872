"""Seeded choices among examples: validation carve, nested fractions, shuffled rationales.

Every choice ranks examples by a hash of the seed and the example's text or id. It depends neither
on the order of the file nor on a random generator's version, and a larger share always contains
the smaller ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from stepdistill_jax.records import Example
from stepdistill_jax.spec import InputError

VALIDATION_SHARE = 0.1


def content_key(text: str) -> str:
    """Case-folded, white space collapsed: equal for texts that differ in these only."""
    return " ".join(text.casefold().split())


def _rank(seed: int, purpose: str, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{purpose}\n{key}".encode()).digest()


def carve_validation(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Splits off a validation set of at least `VALIDATION_SHARE` of the examples.

    Examples with one input text (see `content_key`) stay on one side, so the two sets are disjoint
    by content as well as by id.

    Returns:
        (train, validation), each in the order of `examples`.

    Raises:
        InputError: fewer than two different inputs.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(content_key(example.input), []).append(example)
    if len(groups) < 2:
        raise InputError(
            f"Training data with {len(groups)} different inputs is too small to carve a validation "
            "set from, expected at least 2. Supply a validation file."
        )
    size = max(1, round(VALIDATION_SHARE * len(examples)))
    chosen: set[str] = set()
    taken = 0
    for key in sorted(groups, key=lambda key: _rank(seed, "validation", key)):
        if taken >= size:
            break
        chosen.add(key)
        taken += len(groups[key])
    validation = [example for example in examples if content_key(example.input) in chosen]
    return without(examples, validation), validation


def without(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """Those of `examples` whose input none of the others has, by `content_key`."""
    taken = {content_key(other.input) for other in others}
    return [example for example in examples if content_key(example.input) not in taken]


def take_fraction(examples: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    """``round(fraction * len(examples))`` examples, at least one, in their order.

    Nested: for one list and seed, a larger fraction contains a smaller one.
    """
    if fraction == 1.0 or not examples:
        return list(examples)
    order = sorted(examples, key=lambda example: _rank(seed, "fraction", example.id))
    chosen = {example.id for example in order[: max(1, round(fraction * len(order)))]}
    return [example for example in examples if example.id in chosen]


def derange(ids: Sequence[str], seed: int) -> dict[str, str]:
    """Id -> another id: one cycle through all of them, so that none maps to itself.

    Raises:
        InputError: there is a single id.
    """
    if len(ids) == 1:
        raise InputError(
            "RATIONALES='shuffled': got 1 example with a rationale, expected at least two. Set "
            "another RATIONALES or TRIAGE."
        )
    order = sorted(ids, key=lambda key: _rank(seed, "derangement", key))
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))
