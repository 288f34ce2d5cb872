"""Token views: what each method reads of the same token cache.

A token cache holds four features, enough for every method. `standard` and `step_by_step` read them
unchanged. With the marker ids 21 22 and EOS 1, the pair

    label_inputs       11 12 1      weight of the label      1
    label_targets      31 1
    rationale_targets  41 42 43 1   weight of the rationale  0.5

is to ``single_task`` (the paper's Eq. 5: the rationale and then the label in one target)

    label_inputs   11 12  1
    label_targets  41 42 43 21 22 31  1
    label_weight   .5 .5 .5  1  1  1  1

The marker has the label's weight: where a rationale is missing or weighs less, the student must
still learn the start of an answer. Nothing is cut, so a long rationale never costs the label.

To ``rationale_as_input`` (Eq. 2: the label from the input and the teacher's rationale, at test too)

    label_inputs   11 12  1 41 42 43  1
    label_targets  31  1

The EOS between them is T5's ``</s>``, which also separates premise and hypothesis.

``pinto`` (Wang et al. 2022, arXiv 2211.01562) reads that too. Its second stream has the same label
with smoothed targets, but a perturbed rationale: a student that answers just as confidently does
not read the rationale. With equal probability the rationale is removed, or some of its tokens are
replaced by random ones (here 43 became 57):

    counterfactual_inputs   11 12  1      or   11 12  1 41 42 57  1
    counterfactual_targets  31  1              31  1

From the authors' released code come the probability of either (0.5), the share of tokens replaced
(0.3, rounded down), the smoothing (0.1, `ObjectiveConfig`), and equal weights of both losses. There
are three differences. A pair's perturbation is drawn once a run, not every time. Their teacher
writes a rationale for every choice, and the student scores choices and smooths over them; ours
reads one rationale, writes the label and smooths over the vocabulary. And random ids are never
padding, EOS or unknown.

A missing rationale is EOS alone in the cache. Then ``single_task`` trains on marker and label, a
reader's input is the input alone, and the counterfactual stream has weight 0.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from stepdistill_jax.data.pipeline import SplitCache
from stepdistill_jax.data.token_shards import Manifest
from stepdistill_jax.data.vocabulary import Vocabulary
from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import (
    COUNTERFACTUAL,
    LABEL,
    READER_METHODS,
    SEPARATOR,
    UNK_ID,
    InputError,
)

# Padding, EOS and unknown come first in every vocabulary.
_FIRST_ID = UNK_ID + 1


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """How METHOD arranges the tokens of a pair."""

    HEADING = "Method"

    answer_marker: str = setting(
        "So the answer is",
        "METHOD 'single_task': the words between rationale and label. No label contains them.",
    )
    counterfactual_masked: float = setting(
        0.5,
        "METHOD 'pinto': probability that a perturbed rationale is removed.",
        at_least=0,
        at_most=1,
    )
    counterfactual_replaced: float = setting(
        0.3,
        "METHOD 'pinto': share of tokens replaced by random ones in the other perturbed "
        "rationales.",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.answer_marker.strip() or SEPARATOR in self.answer_marker:
            raise InputError(
                f"ANSWER_MARKER: got {self.answer_marker!r}, expected words without {SEPARATOR!r} "
                "that no label contains."
            )


def marker_ids(marker: str, vocabulary: Vocabulary) -> list[int]:
    """The tokens of ANSWER_MARKER; they decode to a text that contains it.

    Raises:
        InputError: the vocabulary has no tokens for it.
    """
    # The spaces separate it from its neighbours if a vocabulary does not begin words with one.
    ids = vocabulary.encode(f" {marker.strip()} ")
    if UNK_ID in ids or label_after_marker(vocabulary.decode(ids), marker) is None:
        raise InputError(
            f"ANSWER_MARKER={marker!r}: VOCABULARY lacks tokens for it and decodes it to "
            f"{vocabulary.decode(ids)!r}. Set ANSWER_MARKER to known words, or another VOCABULARY."
        )
    return ids


def label_after_marker(text: str, marker: str) -> str | None:
    """The text after the last marker, in any white space; None without a marker."""
    pattern = r"\s+".join(map(re.escape, marker.split()))
    matches = list(re.finditer(pattern, text))
    return text[matches[-1].end() :].strip() if matches else None


def token_view(
    cache: SplitCache, method: str, config: ViewConfig, vocabulary: Vocabulary, seed: int
) -> SplitCache:
    """What a method reads of a split, with the features and weights of its streams.

    Args:
        method: a key of `spec.METHOD_STREAMS`.
        seed: of the perturbation.

    Raises:
        InputError: the vocabulary lacks tokens for the marker, a label contains it, or a method
            that reads rationales has none.
    """
    if method == "single_task":
        _refuse_marker_in_labels(cache, config.answer_marker, vocabulary)
        return SingleTask(cache, marker_ids(config.answer_marker, vocabulary))
    if method in READER_METHODS:
        _refuse_without_rationales(cache, method)
    if method == "rationale_as_input":
        return RationaleAsInput(cache)
    if method == "pinto":
        return Pinto(cache, config, vocabulary.size, seed)
    return cache


class _View:
    """Another view of a token cache; picklable if the cache is."""

    def __init__(self, cache: SplitCache) -> None:
        self._cache = cache

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def manifest(self) -> Manifest:
        """The cache's."""
        return self._cache.manifest

    @property
    def lengths(self) -> Mapping[str, np.ndarray]:
        """Feature -> int32 [pairs]: tokens, EOS included."""
        return self._cache.lengths

    def example(self, index: int) -> Mapping[str, Any]:
        """The pair with its texts."""
        return {**self._cache.example(index), **self[index]}

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._cache[index]


class SingleTask(_View):
    """The rationale and then the label in one target (Hsieh et al. 2023, Eq. 5)."""

    def __init__(self, cache: SplitCache, marker: list[int]) -> None:
        super().__init__(cache)
        self._marker = np.array(marker, np.int32)

    @functools.cached_property
    def lengths(self) -> Mapping[str, np.ndarray]:
        """See `_View.lengths`."""
        lengths = self._cache.lengths
        added = lengths["rationale_targets"] - 1 + len(self._marker)
        return {**lengths, "label_targets": lengths["label_targets"] + added}

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The pair; ``label_weight`` is float32, one for each token of ``label_targets``."""
        pair = self._cache[index]
        rationale, label = pair["rationale_targets"][:-1], pair["label_targets"]
        target = np.concatenate([rationale, self._marker, label])
        weight = np.full(len(target), pair["label_weight"], np.float32)
        weight[: len(rationale)] = pair["rationale_weight"]
        return {**pair, "label_targets": target, "label_weight": weight}


class RationaleAsInput(_View):
    """The label from the input and the teacher's rationale (Hsieh et al. 2023, Eq. 2)."""

    @functools.cached_property
    def lengths(self) -> Mapping[str, np.ndarray]:
        """See `_View.lengths`."""
        lengths = self._cache.lengths
        return {**lengths, "label_inputs": lengths["label_inputs"] + _rationale_lengths(lengths)}

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        pair = self._cache[index]
        return {**pair, "label_inputs": _with_rationale(pair, pair["rationale_targets"])}

    def example(self, index: int) -> Mapping[str, Any]:
        """The pair with its texts; ``read`` is what the student reads, the rationale included."""
        example = super().example(index)
        texts = [example["input"], *filter(None, [example["rationale"]])]
        return {**example, "read": SEPARATOR.join(texts)}


class Pinto(RationaleAsInput):
    """`RationaleAsInput` and a second stream with perturbed rationales (see the module)."""

    def __init__(
        self, cache: SplitCache, config: ViewConfig, vocabulary_size: int, seed: int
    ) -> None:
        super().__init__(cache)
        self._replaced = config.counterfactual_replaced
        self._vocabulary_size = vocabulary_size
        self._seed = seed
        draws = np.random.default_rng([seed, 0]).random(len(cache))
        self._masked = draws < config.counterfactual_masked

    @functools.cached_property
    def lengths(self) -> Mapping[str, np.ndarray]:
        """See `_View.lengths`."""
        lengths = self._cache.lengths
        rationales = _rationale_lengths(lengths)
        return {
            **lengths,
            f"{LABEL}_inputs": lengths["label_inputs"] + rationales,
            f"{COUNTERFACTUAL}_inputs": lengths["label_inputs"] + rationales * ~self._masked,
            f"{COUNTERFACTUAL}_targets": lengths["label_targets"],
        }

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        pair = self._cache[index]
        rationale = pair["rationale_targets"]
        return {
            **pair,
            f"{LABEL}_inputs": _with_rationale(pair, rationale),
            f"{COUNTERFACTUAL}_inputs": _with_rationale(pair, self._perturbed(rationale, index)),
            f"{COUNTERFACTUAL}_targets": pair["label_targets"],
            f"{COUNTERFACTUAL}_weight": pair["label_weight"] if len(rationale) > 1 else 0.0,
        }

    def _perturbed(self, rationale: np.ndarray, index: int) -> np.ndarray:
        """The rationale with all of its tokens removed, or some replaced; EOS stays."""
        if self._masked[index]:
            return rationale[-1:]
        random = np.random.default_rng([self._seed, 1 + index])
        words = len(rationale) - 1
        places = random.choice(words, int(words * self._replaced), replace=False)
        perturbed = rationale.copy()
        perturbed[places] = random.integers(_FIRST_ID, self._vocabulary_size, len(places))
        return perturbed


def _rationale_lengths(lengths: Mapping[str, np.ndarray]) -> np.ndarray:
    """Tokens that a rationale adds to an input, EOS included; 0 if it is missing."""
    counts = lengths["rationale_targets"]
    return counts * (counts > 1)


def _with_rationale(pair: Mapping[str, Any], rationale: np.ndarray) -> np.ndarray:
    """The label's input followed by a rationale, unless that is EOS alone."""
    inputs: np.ndarray = pair["label_inputs"]
    return np.concatenate([inputs, rationale]) if len(rationale) > 1 else inputs


def _refuse_marker_in_labels(cache: SplitCache, marker: str, vocabulary: Vocabulary) -> None:
    """Refuses a label that contains the marker; reads only pairs that are long enough."""
    shortest = len(vocabulary.encode(marker.strip()))
    for index in np.flatnonzero(cache.lengths["label_targets"] > shortest):
        example = cache.example(int(index))
        if label_after_marker(example["label"], marker) is not None:
            raise InputError(
                f"ANSWER_MARKER={marker!r} occurs in the label {example['label']!r} of "
                f"{cache.manifest.split} example {example['id']}, so its start would be ambiguous. "
                "Set ANSWER_MARKER to words that are in no label."
            )


def _refuse_without_rationales(cache: SplitCache, method: str) -> None:
    if not (cache.lengths["rationale_targets"] > 1).any():
        name = f"split {cache.manifest.split} of {cache.manifest.dataset!r}"
        raise InputError(
            f"METHOD={method!r} reads the teacher's rationale, at test time too, but none of the "
            f"{len(cache)} examples of {name} has one. Supply teacher outputs for it, remove it "
            "from EVAL_SPLITS, or set another METHOD."
        )
