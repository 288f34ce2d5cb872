"""The embedded demo: potions on a colour wheel, generated from a seed.

Every ingredient has a hidden kind that no input names. A rationale names the kinds and the
intermediate colours, but never the ingredients. Labels alone reveal almost nothing about the kinds,
because the colour is a sum modulo three; rationales reveal everything. The generator is the
teacher, so `Example.explanation` is the teacher's rationale.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator

from etils import epath

from stepdistill_jax.data.sources.base import Options, Source
from stepdistill_jax.records import Example
from stepdistill_jax.spec import PREFIXES

INGREDIENTS = tuple(
    """
    acorn almond amber anise apple apricot ash basil bean berry birch bread butter carrot cedar
    celery chalk cherry chive cinnamon clay clover cocoa coral corn cotton cream dill elder fennel
    fern fig flax garlic ginger grape hazel heather holly honey ivy jasmine juniper kelp lavender
    leek lemon lilac lily lime linen maple mint moss mud mushroom mustard nettle nutmeg oat olive
    onion orange oregano parsley peach pear pearl pepper pine plum poppy pumpkin quartz quince
    radish resin rice rose rosemary saffron sage salt sand sesame silver sorrel spinach sugar
    sulphur tea thistle thyme turnip vanilla walnut
    """.split()  # noqa: SIM905 (a list of words reads better as words)
)
KINDS = ("calm", "lively", "wild")
WHEEL = ("red", "green", "blue")
SPOILT = "black"
SPOILING_POT = "iron"
POTS = ("glass", "stone", "wooden")
COLOURS = (*WHEEL, SPOILT)
SIZES = {"test": 1000, "train": 4000, "validation": 1000}

_INPUT = "{0} , {1} and {2} go into a {pot} pot . what colour comes out ?"
_RATIONALE = (
    "the first is {0} , the second is {1} and the third is {2} , so it goes {3} , {4} and {5} ."
)
_SPOILT_RATIONALE = "an iron pot spoils every potion ."
_SPOILING_PROBABILITY = 0.25

_Triple = tuple[str, str, str]


def words() -> tuple[str, ...]:
    """Every word of the demo under any seed, task prefixes included, sorted."""
    texts = [_INPUT, _RATIONALE, _SPOILT_RATIONALE, *itertools.chain(*PREFIXES.values())]
    template_words = {w for text in texts for w in text.split() if not w.startswith("{")}
    return tuple(sorted(template_words.union(INGREDIENTS, KINDS, COLOURS, POTS, (SPOILING_POT,))))


class _Draw:
    """Choices from `random.random` alone: the only stream that Python keeps stable."""

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self._generator.random() < probability

    def pick(self, items: tuple[str, ...]) -> str:
        return items[int(self._generator.random() * len(items))]

    def shuffled(self, items: tuple[str, ...]) -> list[str]:
        return sorted(items, key=lambda _: self._generator.random())

    def triple(self) -> _Triple:
        while True:
            first, second, third = (self.pick(INGREDIENTS) for _ in range(3))
            if len({first, second, third}) == 3:
                return first, second, third


def kinds(seed: int) -> dict[str, int]:
    """Ingredient -> steps on the wheel (0 calm, 1 lively, 2 wild); 32 of each."""
    order = _Draw(seed).shuffled(INGREDIENTS)
    return {ingredient: place % len(KINDS) for place, ingredient in enumerate(order)}


def _path(triple: _Triple, steps: dict[str, int]) -> list[str]:
    """The colour after each ingredient; the potion starts with the wheel's first colour."""
    places = itertools.accumulate(steps[ingredient] for ingredient in triple)
    return [WHEEL[place % len(WHEEL)] for place in places]


def _potions(seed: int) -> Iterator[tuple[_Triple, str]]:
    """The seed's endless stream of (ingredients, pot), repeats included."""
    steps = kinds(seed)
    # A separate stream: the world must not depend on how many draws `kinds` takes.
    draw = _Draw(seed + 0x9E3779B9)
    while True:
        spoilt = draw.chance(_SPOILING_PROBABILITY)
        target = draw.pick(WHEEL)
        triple = draw.triple()
        while not spoilt and _path(triple, steps)[-1] != target:
            triple = draw.triple()
        yield triple, SPOILING_POT if spoilt else draw.pick(POTS)


def _example(triple: _Triple, pot: str, steps: dict[str, int], id_: str) -> Example:
    colours = _path(triple, steps)
    if pot == SPOILING_POT:
        label, rationale = SPOILT, _SPOILT_RATIONALE
    else:
        label = colours[-1]
        rationale = _RATIONALE.format(*(KINDS[steps[i]] for i in triple), *colours)
    return Example(
        id=id_,
        input=_INPUT.format(*triple, pot=pot),
        label=label,
        explanation=rationale,
        choices=COLOURS,
        where=f"demo:{id_}",
    )


@functools.lru_cache(maxsize=4)
def _world(seed: int) -> dict[str, tuple[Example, ...]]:
    """All splits of a seed.

    Test is the first 1,000 distinct inputs, train the next 4,000, validation the next 1,000. No
    unordered triple occurs in two splits, so memorising one split does not help on another.
    """
    steps = kinds(seed)
    potions = _potions(seed)
    seen: set[tuple[_Triple, str]] = set()
    taken: set[frozenset[str]] = set()
    splits: dict[str, tuple[Example, ...]] = {}
    for split, size in SIZES.items():
        examples: list[Example] = []
        triples: set[frozenset[str]] = set()
        while len(examples) < size:
            triple, pot = next(potions)
            if (triple, pot) in seen or frozenset(triple) in taken:
                continue
            seen.add((triple, pot))
            triples.add(frozenset(triple))
            examples.append(_example(triple, pot, steps, f"{split}-{len(examples)}"))
        taken |= triples
        splits[split] = tuple(examples)
    return splits


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """The examples of a split of the world of ``options.seed``; `data_dir` is not read."""
    return list(_world(options.seed)[split])


SOURCE = Source(
    name="demo",
    load=load,
    files=lambda *unused: [],
    splits=("train", "validation", "test"),
    labels=COLOURS,
    needs_data_dir=False,
)
