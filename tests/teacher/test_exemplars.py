"""The shipped exemplars: balanced, readable, true, and in no data set of the project."""

import collections
import importlib.resources
import itertools
import json
import re

import pytest
from etils import epath

from stepdistill_jax.data import parse as parser
from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.data.equation import evaluate
from stepdistill_jax.data.parse import parse, parse_release
from stepdistill_jax.data.sources import SOURCES, Options, demo
from stepdistill_jax.data.teacher_outputs import output_files, read_outputs
from stepdistill_jax.records import Annotation
from stepdistill_jax.spec import SEPARATOR
from stepdistill_jax.teacher import prompts
from stepdistill_jax.teacher.config import ExtractConfig

SHIPPED = ("esnli", "anli", "cqa", "svamp", "demo")
RELEASED = SHIPPED[:4]
SPLITS = {
    "esnli": ("validation", "test"),
    "anli": ("validation", "test"),
    "cqa": ("train", "test"),
    "svamp": ("train", "test"),
    "asdiv": ("train",),
}
EXTRACT = ExtractConfig(extract_dir="x", teacher_model="m", prompt_form="completion")


def load(name):
    return prompts.load(EXTRACT, DataConfig(name))


def words(text):
    return re.findall(r"\w+", text.casefold())


def shingles(text, size=3):
    found = words(text)
    return {tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))}


@pytest.mark.parametrize("name", SHIPPED)
def test_there_are_about_ten_and_their_labels_are_balanced(name):
    prompt = load(name)
    assert 9 <= len(prompt.exemplars) <= 12
    examples = [exemplar.example for exemplar in prompt.exemplars]
    if name == "svamp":
        counts = collections.Counter(sign for e in examples for sign in e.label if sign in "+-*/")
        assert set(counts) == set("+-*/")
    elif name == "cqa":
        counts = collections.Counter(e.choices.index(e.label) for e in examples)
        assert len(counts) == 5
    else:
        counts = collections.Counter(e.label for e in examples)
        assert set(counts) == set(SOURCES[name].labels)
    assert max(counts.values()) - min(counts.values()) <= 1
    # Nor does a label follow itself so often that it could be guessed from the one before.
    labels = [str(e.label) for e in examples]
    assert sum(a == b for a, b in itertools.pairwise(labels)) <= 1


@pytest.mark.parametrize("name", SHIPPED)
def test_each_answer_is_read_as_its_label_even_with_a_run_on(name):
    prompt = load(name)
    for exemplar, following in itertools.pairwise([*prompt.exemplars, prompt.exemplars[0]]):
        example, answer = exemplar.example, prompt.answer(exemplar)
        expected = Annotation(example.id, exemplar.rationale, example.label, repaired=False)
        question = prompt.text(following.example).removeprefix(prompt.prefix_text())
        run_on = f"{answer}\n\n{question} {prompt.answer(following)}"
        for raw in (answer, f" {answer}", run_on):
            assert parse(name, example, raw, complete=True) == expected
            if name in RELEASED:
                rationale, label = parse_release(name, raw)
                assert (rationale.strip(), label) == (exemplar.rationale, example.label)
        # What an endpoint would cut itself.
        assert run_on.partition(prompt.stop[0])[0].rstrip() == answer
        # A cut in the middle is a failure or the same label, never another one.
        for end in range(len(answer)):
            cut = parse(name, example, answer[:end])
            assert not isinstance(cut, Annotation) or cut.label == example.label


@pytest.mark.parametrize("name", SHIPPED)
def test_exemplars_differ_from_each_other(name):
    exemplars = load(name).exemplars
    for one, other in itertools.combinations(exemplars, 2):
        assert one.rationale != other.rationale or name == "demo"
        if name != "demo":
            a, b = shingles(one.example.input), shingles(other.example.input)
            assert len(a & b) <= 0.2 * min(len(a), len(b))


def test_arithmetic_of_the_rationales_is_right():
    sums = 0
    for exemplar in load("svamp").exemplars:
        stated = re.findall(r"([\d*/+ -]+\d) (?:is|=) (\d+)", exemplar.rationale)
        assert stated
        for left, right in stated:
            assert evaluate(left) == int(right)
            sums += 1
        assert evaluate(exemplar.example.label) == int(stated[-1][1])
        for number in re.findall(r"\d+", exemplar.example.label):
            assert number in words(exemplar.example.input)
    assert sums >= 12


def test_exemplars_of_the_demo_are_true_of_its_world_and_in_no_split():
    likes = demo.favourites(0)
    prompt = load("demo")
    for drink in demo.DRINKS:
        listed = re.search(rf"{drink.capitalize()}: ([^.]*)\.", prompt.instruction)[1].split(", ")
        assert listed == [name for name in demo.NAMES if likes[name] == drink]
    rows = [row for split in demo.SIZES for row in SOURCES["demo"].load(None, split, Options())]
    groups = {frozenset(w for w in row.input.split() if w in likes) for row in rows}
    vocabulary = set(demo.words())
    for exemplar in prompt.exemplars:
        group = tuple(word for word in exemplar.example.input.split() if word in likes)
        assert frozenset(group) not in groups
        made = demo._example(group, likes, "x")
        assert (made.input, made.label) == (exemplar.example.input, exemplar.example.label)
        assert made.explanation == exemplar.rationale
        assert set(exemplar.rationale.split()) <= vocabulary


def _texts(shared):
    """Every input of the data, and every question that a released output runs on into."""
    data_dir = epath.Path(shared) / "data"
    found = set()
    for name, splits in SPLITS.items():
        for split in splits:
            source = SOURCES[name]
            for example in source.load(data_dir, split, Options()):
                texts = example.input.split(SEPARATOR)
                found.update(texts if name == "esnli" else (" ".join(texts), texts[0]))
            for path in output_files(source, data_dir, split):
                for raw in read_outputs(path):
                    # The rationale is about the row; what follows are the teacher's exemplars.
                    found.update(re.split(r"\b(?:Premise|Hypothesis|Reasonings|Q|A|Answer):", raw))
    return {text.split("\nAnswer Choices:")[0] for text in found}


def _shown(name):
    for exemplar in load(name).exemplars:
        yield from exemplar.example.input.split("\nAnswer Choices:")[0].split(SEPARATOR)
        yield exemplar.rationale


def test_no_exemplar_is_in_the_data_or_near_to_anything_there(shared):
    texts = _texts(shared)
    assert len(texts) > 50_000
    keys = {" ".join(words(text)) for text in texts}
    by_shingle = collections.defaultdict(set)
    listed = list(keys)
    for place, key in enumerate(listed):
        for shingle in shingles(key):
            by_shingle[shingle].add(place)

    def nearest(text):
        """The largest share of a text's word triples, of the shorter text's, found together."""
        own = shingles(text)
        shared_with = collections.Counter(
            place for shingle in own for place in by_shingle.get(shingle, ())
        )
        return max(
            (
                (count / max(6, min(len(own), len(shingles(listed[place])))), listed[place])
                for place, count in shared_with.items()
                if count >= 3
            ),
            default=(0.0, ""),
        )

    for name in RELEASED:
        for text in _shown(name):
            assert " ".join(words(text)) not in keys
            share, other = nearest(text)
            assert share < 0.5, (text, other)
    # The measure finds what is there with two words changed.
    row = next(key for key in listed if 14 <= len(key.split()) <= 16)
    changed = row.split()
    changed[2], changed[-1] = "zebra", "quagga"
    assert nearest(" ".join(changed))[0] >= 0.5


def test_the_files_are_plain_json_that_ships():
    folder = importlib.resources.files("stepdistill_jax.teacher") / "exemplars"
    assert {path.name for path in folder.iterdir()} == {f"{name}.json" for name in SHIPPED}
    for name in SHIPPED:
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert content["instruction"].strip()
    assert set(parser.RELEASED) == set(RELEASED)
