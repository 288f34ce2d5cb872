"""The built-in demo: what does a group of people drink? Generated from a seed.

Each person has a favourite drink, which no input names; a group drinks what most of its members
like. A rationale lists the favourites of a group but names no person, so another example's
rationale states no fact about them. The generator is the teacher: `Example.explanation` is the
teacher's rationale.
"""

from __future__ import annotations

import bisect
import collections
import functools
import importlib.resources
import itertools
import random
from collections.abc import Iterator

from etils import epath

from stepdistill_jax.data.sources.base import Options, Source
from stepdistill_jax.records import Example
from stepdistill_jax.spec import PREFIXES

NAMES = tuple((importlib.resources.files(__package__) / "demo_names.txt").read_text().split())
DRINKS = ("tea", "coffee", "cocoa")
SIZES = {"test": 1000, "train": 2000, "validation": 1000}

# The text after a single-task rationale (ANSWER_MARKER of gin/demo.gin) is part of the vocabulary.
_MARKER = "so it is"
_GROUP = 5
_INPUT = "what do {0} , {1} , {2} , {3} and {4} drink ?"
_RATIONALE = "they like {0} , {1} , {2} , {3} and {4} , so most like {5} ."
# A person of rank r (0 to 599) is drawn with a probability proportional to 1 / (r + 11).
_RANK_OFFSET = 11


def words() -> tuple[str, ...]:
    """Every word of the demo under any seed, task prefixes included, sorted."""
    texts = [_INPUT, _RATIONALE, _MARKER, *itertools.chain(*PREFIXES.values())]
    template_words = {w for text in texts for w in text.split() if not w.startswith("{")}
    return tuple(sorted(template_words.union(NAMES, DRINKS)))


def _shuffled(items: tuple[str, ...], draw: random.Random) -> list[str]:
    """A random order from `random.random` alone: the only stream that Python keeps stable."""
    return sorted(items, key=lambda _: draw.random())


def favourites(seed: int) -> dict[str, str]:
    """Name -> favourite drink, from the most frequent name to the rarest.

    Every three consecutive ranks have the three drinks, so each frequency band is balanced.
    """
    draw = random.Random(seed)
    ranked = _shuffled(NAMES, draw)
    drinks = itertools.chain.from_iterable(_shuffled(DRINKS, draw) for _ in ranked[:: len(DRINKS)])
    return dict(zip(ranked, drinks, strict=True))


def majority(drinks: list[str]) -> str | None:
    """The most frequent drink, or None if two are equally frequent (2-2-1)."""
    (drink, count), *others = collections.Counter(drinks).most_common(2)
    return None if others and others[0][1] == count else drink


def _groups(likes: dict[str, str], draw: random.Random) -> Iterator[tuple[str, ...]]:
    """An endless stream of groups with a majority, repeats included; each drink equally often."""
    ranked = tuple(likes)
    total = list(itertools.accumulate(1 / (rank + _RANK_OFFSET) for rank in range(len(ranked))))
    while True:
        target = DRINKS[int(draw.random() * len(DRINKS))]
        while True:
            places = [bisect.bisect(total, draw.random() * total[-1]) for _ in range(_GROUP)]
            group = tuple(ranked[place] for place in places)
            if len(set(group)) == _GROUP and majority([likes[n] for n in group]) == target:
                yield group
                break


@functools.lru_cache(maxsize=4)
def _world(seed: int) -> dict[str, tuple[Example, ...]]:
    """All splits of a seed: the first 1,000 distinct groups are test, then train, then validation.

    No two examples have the same five people, in any order.
    """
    likes = favourites(seed)
    # A separate stream: the groups must not depend on how many draws `favourites` takes.
    groups = _groups(likes, random.Random(seed + 0x9E3779B9))
    seen: set[frozenset[str]] = set()
    splits: dict[str, tuple[Example, ...]] = {}
    for split, size in SIZES.items():
        examples: list[Example] = []
        while len(examples) < size:
            group = next(groups)
            if frozenset(group) in seen:
                continue
            seen.add(frozenset(group))
            examples.append(_example(group, likes, f"{split}-{len(examples)}"))
        splits[split] = tuple(examples)
    return splits


def _example(group: tuple[str, ...], likes: dict[str, str], id_: str) -> Example:
    drinks = [likes[name] for name in group]
    label = majority(drinks)
    assert label is not None
    return Example(
        id=id_,
        input=_INPUT.format(*group),
        label=label,
        explanation=_RATIONALE.format(*drinks, label),
        choices=DRINKS,
        where=f"demo:{id_}",
    )


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The examples of a split of the world of ``options.seed``; `data_dir` is not read."""
    return list(_world(options.seed)[split])


SOURCE = Source(
    name="demo",
    load=load,
    files=lambda *unused: [],
    splits=("train", "validation", "test"),
    labels=DRINKS,
    needs_data_dir=False,
)
