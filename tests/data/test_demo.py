import collections
import json
import re
import subprocess
import sys

import pytest
from etils import epath

from stepdistill_jax.data.sources import SOURCES, Options, demo

NOWHERE = epath.Path("/nowhere")
NAME, DRINK = r"([A-Z][a-z]+)", "(tea|coffee|cocoa)"
INPUT = re.compile(rf"what do {NAME} , {NAME} , {NAME} , {NAME} and {NAME} drink \?")
RATIONALE = re.compile(
    rf"they like {DRINK} , {DRINK} , {DRINK} , {DRINK} and {DRINK} , so most like {DRINK} \."
)


def load(split, seed=0):
    return demo.SOURCE.load(NOWHERE, split, Options(seed=seed))


def group(example):
    return INPUT.fullmatch(example.input).groups()


def test_there_are_600_distinct_names_of_one_word():
    assert len(set(demo.NAMES)) == len(demo.NAMES) == 600
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in demo.NAMES)


def test_three_consecutive_ranks_have_the_three_drinks_and_another_seed_is_another_world():
    likes = demo.favourites(5)
    assert sorted(likes) == sorted(demo.NAMES)
    drinks = list(likes.values())
    for block in zip(*[iter(drinks)] * 3, strict=True):
        assert sorted(block) == ["cocoa", "coffee", "tea"]
    other = demo.favourites(6)
    assert list(other) != list(likes)
    assert [other[name] for name in likes] != drinks


@pytest.mark.parametrize(
    ("drinks", "drink"),
    [
        ("tea tea coffee cocoa tea", "tea"),
        ("coffee coffee coffee coffee coffee", "coffee"),
        ("cocoa tea cocoa tea cocoa", "cocoa"),
        ("tea tea coffee coffee cocoa", None),
        ("cocoa tea tea coffee coffee", None),
    ],
)
def test_majority(drinks, drink):
    assert demo.majority(drinks.split()) == drink


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_row_follows_from_the_rule(split):
    """Recomputes label and rationale from the input and the hidden favourites alone."""
    likes = demo.favourites(3)
    for example in load(split, seed=3):
        names = group(example)
        assert len(set(names)) == 5
        drinks = [likes[name] for name in names]
        (label, most), *others = collections.Counter(drinks).most_common()
        assert all(count < most for _, count in others)
        assert example.label == label
        assert RATIONALE.fullmatch(example.explanation).groups() == (*drinks, label)


def test_a_rationale_names_nobody():
    """Else shuffled rationales would still state true facts and be no control."""
    for example in load("train"):
        assert not set(example.explanation.split()) & set(demo.NAMES)


@pytest.mark.parametrize("seed", [0, 1, 8])
def test_splits_have_their_sizes_and_no_group_occurs_twice(seed):
    sizes = {"test": 1000, "train": 2000, "validation": 1000}
    rows = {split: load(split, seed) for split in sizes}
    assert {split: len(rows[split]) for split in rows} == sizes
    for split in rows:
        assert len({row.id for row in rows[split]}) == sizes[split]
    groups = {frozenset(group(row)) for split in rows for row in rows[split]}
    assert len(groups) == 4000


def test_labels_are_equally_frequent():
    """4,000 rows: within four standard errors of a third."""
    counts = collections.Counter(row.label for split in demo.SIZES for row in load(split, seed=2))
    for drink in demo.DRINKS:
        assert abs(counts[drink] / 4000 - 1 / 3) < 4 * (2 / 9 / 4000) ** 0.5
    assert demo.DRINKS == load("test")[0].choices == SOURCES["demo"].labels


def test_a_person_of_rank_r_is_drawn_with_a_weight_of_1_over_r_plus_11():
    """Of all seats, the shares of three bands of ranks, within 1.5 points of the weights' shares.

    A group has no person twice, which takes a little from the most frequent names.
    """
    likes = demo.favourites(2)
    rank = {name: place for place, name in enumerate(likes)}
    seats = [rank[n] for split in demo.SIZES for row in load(split, seed=2) for n in group(row)]
    weights = [1 / (r + 11) for r in range(600)]
    for low, high in ((0, 50), (50, 200), (200, 600)):
        share = sum(low <= r < high for r in seats) / len(seats)
        assert share == pytest.approx(sum(weights[low:high]) / sum(weights), abs=0.015)


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


def test_no_single_name_tells_much():
    """The best rule on one word of the input is right for at most 40% of the test split."""
    rows = load("test", seed=1)
    labels = collections.Counter(row.label for row in rows)
    for name in demo.NAMES:
        inside = collections.Counter(row.label for row in rows if name in row.input.split())
        outside = labels - inside
        right = max(inside.values(), default=0) + max(outside.values())
        assert right / 1000 <= 0.4
