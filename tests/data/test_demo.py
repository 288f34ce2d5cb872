import collections
import json
import re
import subprocess
import sys

import pytest
from etils import epath

from stepdistill_jax.data.sources import SOURCES, Options, demo

NOWHERE = epath.Path("/nowhere")
INPUT = re.compile(
    r"(\w+) , (\w+) and (\w+) go into a (iron|glass|stone|wooden) pot \. what colour comes out \?"
)
RATIONALE = re.compile(
    r"the first is (\w+) , the second is (\w+) and the third is (\w+) , "
    r"so it goes (\w+) , (\w+) and (\w+) \."
)


def load(split, seed=0):
    return demo.SOURCE.load(NOWHERE, split, Options(seed=seed))


def test_the_word_list_is_96_distinct_single_words_of_the_vocabulary():
    assert len(set(demo.INGREDIENTS)) == 96
    assert all(re.fullmatch("[a-z]+", word) for word in demo.INGREDIENTS)
    others = set(demo.words()) - set(demo.INGREDIENTS)
    assert len(others) == len(demo.words()) - 96  # no ingredient is a word of the grammar


def test_each_kind_has_32_ingredients_and_another_seed_is_another_world():
    kinds = demo.kinds(5)
    assert collections.Counter(kinds.values()) == {0: 32, 1: 32, 2: 32}
    assert sorted(kinds) == sorted(demo.INGREDIENTS)
    assert kinds != demo.kinds(6)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_row_follows_from_the_rule(split):
    """Recomputes label and rationale from the input and the hidden kinds alone."""
    kinds = demo.kinds(3)
    names = ["calm", "lively", "wild"]
    wheel = ["red", "green", "blue"]
    for example in load(split, seed=3):
        *triple, pot = INPUT.fullmatch(example.input).groups()
        assert len(set(triple)) == 3
        if pot == "iron":
            assert example.label == "black"
            assert example.explanation == "an iron pot spoils every potion ."
            continue
        steps = [kinds[ingredient] for ingredient in triple]
        colours = [wheel[sum(steps[: i + 1]) % 3] for i in range(3)]
        assert example.label == colours[-1]
        assert RATIONALE.fullmatch(example.explanation).groups() == (
            *(names[step] for step in steps),
            *colours,
        )


def test_a_rationale_names_no_ingredient():
    """Else shuffled rationales would still state true facts and be no control."""
    for example in load("train"):
        assert not set(example.explanation.split()) & set(demo.INGREDIENTS)


@pytest.mark.parametrize("seed", [0, 1, 8])
def test_splits_have_their_sizes_and_share_no_unordered_triple(seed):
    triples = {}
    for split, size in (("test", 1000), ("train", 4000), ("validation", 1000)):
        rows = load(split, seed)
        assert len({row.input for row in rows}) == len({row.id for row in rows}) == size
        triples[split] = {frozenset(INPUT.fullmatch(row.input).groups()[:3]) for row in rows}
    assert not triples["test"] & triples["train"]
    assert not triples["test"] & triples["validation"]
    assert not triples["train"] & triples["validation"]


def test_labels_are_drawn_as_designed():
    """A quarter black, the wheel's colours equally often (4,000 rows: four standard errors)."""
    counts = collections.Counter(row.label for row in load("train", seed=2))
    assert abs(counts["black"] / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    for colour in ("red", "green", "blue"):
        assert abs(counts[colour] / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert demo.COLOURS == load("test")[0].choices == SOURCES["demo"].labels


def test_the_same_seed_gives_the_same_rows_in_another_process():
    program = (
        "import json; from stepdistill_jax.data.sources import demo, Options;"
        "print(json.dumps([[e.id, e.input, e.label, e.explanation] for e in"
        " demo.SOURCE.load(None, 'train', Options(seed=4))]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout
    here = [[e.id, e.input, e.label, e.explanation] for e in load("train", seed=4)]
    assert json.loads(output) == here


def test_the_best_guess_that_ignores_the_kinds_is_right_half_the_time():
    rows = load("test", seed=1)
    best = max(
        sum(row.label == ("black" if " iron " in row.input else guess) for row in rows)
        for guess in ("red", "green", "blue")
    )
    assert 0.45 < best / 1000 < 0.55
