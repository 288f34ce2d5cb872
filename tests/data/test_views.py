"""What each method reads of a token cache, by hand and against the cache's own rows."""

from __future__ import annotations

import pickle
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from stepdistill_jax import spec
from stepdistill_jax.data import pipeline
from stepdistill_jax.data.pipeline import PipelineConfig
from stepdistill_jax.data.views import (
    Pinto,
    RationaleAsInput,
    SingleTask,
    ViewConfig,
    label_after_marker,
    marker_ids,
    token_view,
)
from stepdistill_jax.data.vocabulary import ByteVocabulary, load_vocabulary

BYTES = ByteVocabulary()
MARKER = [21, 22]


class Cache:
    """Rows in memory, as a token cache gives them; a rationale of None is EOS alone."""

    manifest = types.SimpleNamespace(fingerprint="f", dataset="demo", split="test")

    def __init__(self, pairs: Sequence[Mapping[str, Any]], texts: Sequence[Mapping[str, Any]] = ()):
        self.pairs, self.texts = pairs, texts
        self.lengths = {
            name: np.array([len(pair[name]) for pair in pairs], np.int32) for name in spec.FEATURES
        }

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.pairs[index]

    def example(self, index: int) -> Mapping[str, Any]:
        return {**self.pairs[index], **self.texts[index]}


def pair(
    inputs: Sequence[int],
    label: Sequence[int],
    rationale: Sequence[int] | None,
    label_weight: float = 1.0,
    rationale_weight: float = 1.0,
) -> dict[str, Any]:
    features = (inputs, label, (7, *inputs), rationale or ())
    tokens = {
        name: np.array([*ids, spec.EOS_ID], np.int32)
        for name, ids in zip(spec.FEATURES, features, strict=True)
    }
    weight = 0.0 if rationale is None else rationale_weight
    return {**tokens, "label_weight": label_weight, "rationale_weight": weight}


# The pair of the module's docstring, and one without a rationale.
WORKED = Cache(
    [
        pair([11, 12], [31], [41, 42, 43], rationale_weight=0.5),
        pair([13], [32, 33], None),
    ]
)


def random_cache(count: int, seed: int = 0) -> Cache:
    random = np.random.default_rng(seed)

    def ids(least: int, most: int) -> list[int]:
        return list(random.integers(3, 100, random.integers(least, most + 1)))

    return Cache(
        [
            pair(ids(1, 9), ids(1, 3), None if random.random() < 0.2 else ids(1, 12))
            for _ in range(count)
        ]
    )


def assert_lengths_are_those_of_the_tokens(view: Any, features: Sequence[str]) -> None:
    for feature in features:
        result = np.array([len(view[row][feature]) for row in range(len(view))])
        np.testing.assert_array_equal(view.lengths[feature], result, err_msg=feature)


def test_single_task_of_the_docstring():
    view = SingleTask(WORKED, MARKER)
    first, second = view[0], view[1]
    assert first["label_inputs"].tolist() == [11, 12, 1]
    assert first["label_targets"].tolist() == [41, 42, 43, 21, 22, 31, 1]
    assert first["label_weight"].tolist() == [0.5, 0.5, 0.5, 1, 1, 1, 1]
    assert second["label_targets"].tolist() == [21, 22, 32, 33, 1]
    assert second["label_weight"].tolist() == [1] * 5
    assert first["label_targets"].dtype == np.int32
    assert first["label_weight"].dtype == np.float32


def test_single_task_without_a_label_trains_the_rationale_alone():
    unlabelled = Cache([pair([11], [], [41, 42], label_weight=0.0)])
    view = SingleTask(unlabelled, MARKER)
    assert view[0]["label_targets"].tolist() == [41, 42, 21, 22, 1]
    assert view[0]["label_weight"].tolist() == [1, 1, 0, 0, 0]


def test_rationale_as_input_of_the_docstring():
    view = RationaleAsInput(WORKED)
    assert view[0]["label_inputs"].tolist() == [11, 12, 1, 41, 42, 43, 1]
    assert view[0]["label_targets"].tolist() == [31, 1]
    assert view[1]["label_inputs"].tolist() == [13, 1]


def test_pinto_of_the_docstring_with_the_rationale_taken_out():
    view = Pinto(WORKED, ViewConfig(counterfactual_masked=1.0), vocabulary_size=58, seed=0)
    first, second = view[0], view[1]
    assert first["label_inputs"].tolist() == [11, 12, 1, 41, 42, 43, 1]
    assert first["counterfactual_inputs"].tolist() == [11, 12, 1]
    assert first["counterfactual_targets"].tolist() == first["label_targets"].tolist() == [31, 1]
    assert (first["label_weight"], first["counterfactual_weight"]) == (1.0, 1.0)
    # Nothing to perturb.
    assert second["label_inputs"].tolist() == second["counterfactual_inputs"].tolist() == [13, 1]
    assert second["counterfactual_weight"] == 0.0


def test_pinto_of_the_docstring_with_a_token_replaced():
    config = ViewConfig(counterfactual_masked=0.0, counterfactual_replaced=0.34)
    # A vocabulary of one word, so that a random id is that word.
    first = Pinto(WORKED, config, vocabulary_size=4, seed=0)[0]
    (place,) = np.flatnonzero(first["counterfactual_inputs"] != first["label_inputs"])
    assert place in (3, 4, 5)
    assert first["counterfactual_inputs"][place] == 3
    assert first["counterfactual_targets"].tolist() == [31, 1]


def test_pinto_perturbs_as_many_pairs_and_tokens_as_it_says():
    random = np.random.default_rng(3)
    cache = Cache([pair([5], [6], list(random.integers(3, 100, 10))) for _ in range(2000)])
    view = Pinto(cache, ViewConfig(), vocabulary_size=5000, seed=1)
    removed, changed = 0, []
    for row in range(len(view)):
        read, perturbed = view[row]["label_inputs"], view[row]["counterfactual_inputs"]
        if len(perturbed) == 2:
            removed += 1
            continue
        different = read != perturbed
        assert not different[:2].any()
        assert not different[-1]
        assert perturbed[different].min() >= 3
        assert perturbed.max() < 5000
        changed.append(different.sum())
    assert removed / 2000 == pytest.approx(0.5, abs=0.04)
    # Three of ten, but where chance deals a token to itself.
    assert max(changed) == 3
    assert np.mean(changed) > 2.95


def test_pinto_is_drawn_once_a_run():
    cache = random_cache(200)
    first, again, other = (Pinto(cache, ViewConfig(), 500, seed) for seed in (0, 0, 1))

    def drawn(view: Pinto) -> list[list[int]]:
        return [view[row]["counterfactual_inputs"].tolist() for row in reversed(range(200))]

    assert drawn(first) == drawn(again) == drawn(first)
    assert drawn(first) != drawn(other)
    assert drawn(pickle.loads(pickle.dumps(first))) == drawn(first)


def test_lengths_are_known_without_reading_a_row():
    cache = random_cache(300)
    views = {
        ("label",): [SingleTask(cache, MARKER), RationaleAsInput(cache)],
        ("label", "counterfactual"): [Pinto(cache, ViewConfig(), 500, seed=0)],
    }
    for streams, members in views.items():
        features = [f"{s}_{part}" for s in streams for part in ("inputs", "targets")]
        for view in members:
            assert_lengths_are_those_of_the_tokens(view, features)
            assert all(view.lengths[feature].dtype == np.int32 for feature in features)
            assert len(view) == 300


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("method", ["single_task", "rationale_as_input", "pinto"])
def test_batches_hold_the_views_tokens_and_weights(method, pack):
    cache = random_cache(120)
    view: Any = {
        "single_task": SingleTask(cache, MARKER),
        "rationale_as_input": RationaleAsInput(cache),
        "pinto": Pinto(cache, ViewConfig(), 500, seed=0),
    }[method]
    streams = spec.METHOD_STREAMS[method]
    config = PipelineConfig(batch_size=8, pack=pack, prefetch=0)
    shape = pipeline.row_shape(view.lengths, config, streams)
    batch = next(
        pipeline.train_iterator(view, config, shape, streams, process_index=0, process_count=1)
    )
    assert set(batch) == {*spec.batch_keys(streams), spec.EXAMPLE_INDEX}
    for row, index in enumerate(batch[spec.EXAMPLE_INDEX]):
        pairs = [view[int(position) - 1] for position in index[index > 0]]
        for stream in streams:
            for part in ("inputs", "targets"):
                ids = np.concatenate([p[f"{stream}_{part}"] for p in pairs])
                result = batch[f"{stream}_{part}"][row]
                np.testing.assert_array_equal(result, np.pad(ids, (0, len(result) - len(ids))))
            weights = np.concatenate(
                [np.broadcast_to(p[f"{stream}_weight"], len(p[f"{stream}_targets"])) for p in pairs]
            ).astype(np.float32)
            result = batch[f"{stream}_weights"][row]
            np.testing.assert_array_equal(result, np.pad(weights, (0, len(result) - len(weights))))


def test_a_row_length_for_labels_holds_for_both_streams_of_pinto():
    view = Pinto(random_cache(40), ViewConfig(), 500, seed=0)
    config = PipelineConfig(batch_size=8, label_row_length=16)
    shape = pipeline.row_shape(view.lengths, config, spec.METHOD_STREAMS["pinto"])
    assert shape.targets == {"label": 16, "counterfactual": 16}


def texts_of(label: str, rationale: str | None) -> dict[str, Any]:
    texts = {"id": "a7", "input": "a b", "label": label, "gold": label, "rationale": rationale}
    return {**texts, "choices": ()}


def written(label: str, rationale: str | None) -> Cache:
    tokens = pair(
        BYTES.encode("a b"),
        BYTES.encode(label),
        None if rationale is None else BYTES.encode(rationale),
    )
    return Cache([tokens], [texts_of(label, rationale)])


@pytest.mark.parametrize("name", ["bytes", "spiece"])
def test_a_single_task_target_reads_back_as_its_label(name, request):
    vocabulary = BYTES
    if name == "spiece":
        vocabulary = load_vocabulary(str(request.getfixturevalue("spiece")))
    marker = ViewConfig().answer_marker
    rationale = "They met. So the answer is not (a).\nBut (b) is near"
    for why in (rationale, None):
        for label in ("entailment", "( 84.0 / 2.0 )", "math problem"):
            tokens = pair([5], vocabulary.encode(label), why and vocabulary.encode(why))
            cache = Cache([tokens], [texts_of(label, why)])
            view = token_view(cache, "single_task", ViewConfig(), vocabulary, seed=0)
            text = vocabulary.decode(view[0]["label_targets"])
            assert label_after_marker(text, marker) == label


def test_a_long_rationale_never_costs_the_label():
    cache = written("yes", "because " * 40)
    view = token_view(cache, "single_task", ViewConfig(), BYTES, seed=0)
    text = BYTES.decode(view[0]["label_targets"])
    assert text == "because " * 40 + " So the answer is yes"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("it rains . so it is wet", "wet"),
        ("so it is wet", "wet"),
        ("so it is wet , so it is cold", "cold"),
        ("it rains ;  so\n it  is   very   wet ", "very   wet"),
        ("so it is", ""),
        ("it is wet", None),
        ("", None),
    ],
)
def test_the_label_is_what_follows_the_last_marker(text, label):
    assert label_after_marker(text, "so it is") == label


def test_the_demo_knows_its_marker():
    demo = load_vocabulary("demo")
    assert demo.decode(marker_ids("so it is", demo)) == "so it is"


def test_a_marker_that_the_vocabulary_cannot_write_is_refused():
    with pytest.raises(spec.InputError, match=r"ANSWER_MARKER='So the answer is': .* VOCABULARY"):
        marker_ids("So the answer is", load_vocabulary("demo"))


def test_a_label_that_holds_the_marker_is_refused():
    message = r"ANSWER_MARKER='So the answer is' .* 'No. So the  answer is no' of test example a7"
    cache = written("No. So the  answer is no", "why")
    with pytest.raises(spec.InputError, match=message):
        token_view(cache, "single_task", ViewConfig(), BYTES, seed=0)


@pytest.mark.parametrize("method", spec.READER_METHODS)
def test_a_split_without_rationales_cannot_be_read(method):
    with pytest.raises(spec.InputError, match=f"METHOD='{method}' .* 1 examples of split test"):
        token_view(written("yes", None), method, ViewConfig(), BYTES, seed=0)


@pytest.mark.parametrize("method", spec.READER_METHODS)
def test_what_a_reader_reads_is_what_its_tokens_say(method):
    view = token_view(written("yes", "since c"), method, ViewConfig(), BYTES, seed=0)
    row = view.example(0)
    assert (row["input"], row["read"]) == ("a b", "a b</s>since c")
    assert row["label_inputs"].tolist() == [*BYTES.encode(row["read"]), spec.EOS_ID]
    assert view.manifest is Cache.manifest


@pytest.mark.parametrize("method", ["standard", "step_by_step"])
def test_other_methods_read_the_cache_itself(method):
    assert token_view(WORKED, method, ViewConfig(), BYTES, seed=0) is WORKED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer_marker": " "}, "ANSWER_MARKER: got ' '"),
        ({"answer_marker": "so</s>"}, "ANSWER_MARKER: got 'so</s>'"),
        (
            {"counterfactual_masked": 1.5},
            r"COUNTERFACTUAL_MASKED: got 1.5, .* \[0, 1\]",
        ),
        ({"counterfactual_replaced": -0.1}, "COUNTERFACTUAL_REPLACED: got -0.1"),
    ],
)
def test_illegal_settings_name_their_macro(settings, message):
    with pytest.raises(spec.InputError, match=message):
        ViewConfig(**settings)
