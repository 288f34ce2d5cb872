"""Seeded choices among rows: validation carve, nested fractions, shuffled rationales.

Every choice ranks rows by a hash of the seed and the row's own text or id. It therefore depends
neither on the order of the file nor on a random generator's version, and a larger share always
holds the smaller ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from stepdistill_jax.records import Example
from stepdistill_jax.spec import InputError

VALIDATION_SHARE = 0.1


def content_key(text: str) -> str:
    """Equal for texts that differ in case or white space only."""
    return " ".join(text.casefold().split())


def _rank(seed: int, purpose: str, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{purpose}\n{key}".encode()).digest()


def carve_validation(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Splits off a validation set of at least `VALIDATION_SHARE` of the rows.

    Rows of one input text (up to case and white space) stay on one side, so the two are disjoint
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
            f"{len(groups)} different inputs are too few to carve a validation set from; supply a "
            "validation file"
        )
    wanted = max(1, round(VALIDATION_SHARE * len(examples)))
    chosen: set[str] = set()
    taken = 0
    for key in sorted(groups, key=lambda key: _rank(seed, "validation", key)):
        if taken >= wanted:
            break
        chosen.add(key)
        taken += len(groups[key])
    validation = [example for example in examples if content_key(example.input) in chosen]
    train = [example for example in examples if content_key(example.input) not in chosen]
    return train, validation


def without(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """Those of `examples` whose input is none of the others', up to case and white space."""
    taken = {content_key(other.input) for other in others}
    return [example for example in examples if content_key(example.input) not in taken]


def take_fraction(examples: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    """``round(fraction * len(examples))`` rows, at least one, in the order of `examples`.

    Nested: of one list and seed, a smaller fraction's rows are among a larger one's.
    """
    if fraction == 1.0 or not examples:
        return list(examples)
    order = sorted(examples, key=lambda example: _rank(seed, "fraction", example.id))
    chosen = {example.id for example in order[: max(1, round(fraction * len(order)))]}
    return [example for example in examples if example.id in chosen]


def derange(ids: Sequence[str], seed: int) -> dict[str, str]:
    """Id -> another id: one cycle through all of them, so that none maps to itself.

    Raises:
        InputError: a single id has no other to map to.
    """
    if len(ids) == 1:
        raise InputError("RATIONALES='shuffled' needs at least two rows with a rationale, found 1")
    order = sorted(ids, key=lambda row_id: _rank(seed, "derangement", row_id))
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))
