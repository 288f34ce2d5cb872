"""Pairs -> a SeqIO task of four token features: prefix, tokenise, truncate, EOS.

Files and vocabulary are read on first use, so a task can be registered where they are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_text

from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.join import DataConfig, load_pairs
from stepdistill_jax.data.sources.base import SPLITS
from stepdistill_jax.data.token_shards import FULL_LENGTH
from stepdistill_jax.data.vocabulary import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    load_vocabulary,
)
from stepdistill_jax.records import Pair
from stepdistill_jax.spec import EOS_ID, FEATURES, SEPARATOR, STREAMS, UNK_ID

LoadPairs = Callable[[DataConfig, str], list[Pair]]
MetricFn = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]

_TEXTS_A_CALL = 256


class SeqioVocabulary(seqio.Vocabulary):
    """A `Vocabulary` for SeqIO programs: the same ids, by TensorFlow operations.

    No file is read before its first use.
    """

    def __init__(self, name: str) -> None:
        super().__init__(extra_ids=0)
        self.name = name

    @property
    def ours(self) -> Vocabulary:
        """The vocabulary itself.

        Raises:
            InputError: it cannot be loaded.
        """
        return load_vocabulary(self.name)

    @property
    def bos_id(self) -> int | None:
        """None: T5 starts decoding with padding."""
        return None

    @property
    def eos_id(self) -> int:
        """T5's EOS."""
        return EOS_ID

    @property
    def unk_id(self) -> int:
        """T5's unknown."""
        return UNK_ID

    @property
    def _base_vocab_size(self) -> int:
        return self.ours.size

    def _encode(self, s: str) -> list[int]:
        return self.ours.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.ours.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """Int32 ids [T] of one text, or ragged [N, T] of texts [N]."""
        if s.shape.rank == 0:
            return self._encode_tf(s[tf.newaxis])[0]
        parts = tf.strings.split(s, SEPARATOR)
        ends = tf.fill([tf.size(parts.flat_values), 1], EOS_ID)
        ids = tf.concat([self._tokenize(parts.flat_values), ends], axis=1)
        # EOS separates the parts: the last one is too many.
        return parts.with_flat_values(ids).merge_dims(1, 2)[:, :-1]

    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        vocabulary = self.ours
        if isinstance(vocabulary, SentencePieceVocabulary):
            return tensorflow_text.SentencepieceTokenizer(model=vocabulary.model).tokenize(texts)
        assert isinstance(vocabulary, ByteVocabulary)
        split = tf.strings.bytes_split(texts)
        values = tf.reshape(tf.io.decode_raw(split.flat_values, tf.uint8), [-1])
        return split.with_flat_values(tf.cast(values, tf.int32) + vocabulary.offset)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def texts(rows: np.ndarray) -> np.ndarray:
            flat = [self.ours.decode(row).encode() for row in rows.reshape(-1, rows.shape[-1])]
            return np.array(flat, object).reshape(rows.shape[:-1])

        return tf.numpy_function(texts, [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.name == other.name

    def __str__(self) -> str:
        return f"SeqioVocabulary({self.name!r})"


def seqio_vocabulary(name: str = "") -> seqio.Vocabulary:
    """The vocabulary of a name (see `load_vocabulary`) for SeqIO; no file is read yet."""
    return SeqioVocabulary(name)


def seqio_task(
    name: str,
    data: DataConfig,
    tokens: TokenConfig,
    *,
    metric_fns: Sequence[MetricFn] = (),
    load: LoadPairs = lambda data, split: load_pairs(data, split)[0],
) -> seqio.Task:
    """A task of the four features of `spec.FEATURES`, rank-1 int32, each ending in EOS.

    An example also has what evaluation and the token cache need: ``id``, ``input`` (no prefix),
    ``label``, ``rationale``, ``gold`` and ``choices`` as texts, ``has_gold`` and ``has_rationale``,
    ``label_weight`` and ``rationale_weight`` (a missing rationale is EOS alone with weight 0), each
    feature's length before truncation (``<feature>_full_length``), and the gold label again as
    ``label_targets_pretokenized`` for SeqIO's evaluator.

    Args:
        name: the task's; it is not registered here.
        data: what to read; splits ``train``, ``validation`` and ``test``.
        tokens: vocabulary, prefixes and lengths. A shorter `sequence_length` of the SeqIO program
            applies too; EOS stays last.
        metric_fns: ``(targets, predictions) -> {name: value}`` over label texts.
    """

    def dataset_fn(
        split: str, shuffle_files: bool = False, seed: int | None = None
    ) -> tf.data.Dataset:
        del shuffle_files, seed  # a list in memory; SeqIO shuffles the examples
        return _pairs_dataset(load(data, split))

    vocabulary = SeqioVocabulary(tokens.vocabulary)
    feature = seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32, rank=1)
    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(dataset_fn, splits=SPLITS),
        output_features=dict.fromkeys(FEATURES, feature),
        preprocessors=[_Tokenize(vocabulary, tokens)],
        postprocess_fn=_label_text,
        metric_fns=list(metric_fns),
    )


def _label_text(text: str, **unused: Any) -> str:
    """Target or prediction as the metrics expect it: without surrounding white space."""
    return text.strip()


def _pairs_dataset(pairs: Sequence[Pair]) -> tf.data.Dataset:
    choices = tf.RaggedTensor.from_row_lengths(
        tf.constant([choice for pair in pairs for choice in pair.choices], tf.string),
        tf.constant([len(pair.choices) for pair in pairs], tf.int64),
    )

    def texts(values: Iterable[str | None]) -> tf.Tensor:
        return tf.constant([value or "" for value in values], tf.string)

    return tf.data.Dataset.from_tensor_slices(
        {
            "id": texts(pair.id for pair in pairs),
            "input": texts(pair.input for pair in pairs),
            "label": texts(pair.label for pair in pairs),
            "rationale": texts(pair.rationale for pair in pairs),
            "gold": texts(pair.gold for pair in pairs),
            "has_gold": tf.constant([pair.gold is not None for pair in pairs], tf.bool),
            "has_rationale": tf.constant([pair.rationale is not None for pair in pairs], tf.bool),
            "choices": choices,
            "label_weight": tf.constant([pair.label_weight for pair in pairs], tf.float32),
            "rationale_weight": tf.constant(
                [0.0 if pair.rationale is None else pair.rationale_weight for pair in pairs],
                tf.float32,
            ),
        }
    )


class _Tokenize:
    """The task's one preprocessor: text fields -> the four features and their full lengths."""

    def __init__(self, vocabulary: seqio.Vocabulary, tokens: TokenConfig) -> None:
        self._vocabulary = vocabulary
        self._prefixes = tokens.prefix_texts()
        self._lengths = tokens.feature_lengths()

    def __call__(
        self, dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None = None
    ) -> tf.data.Dataset:
        limits = dict(self._lengths)
        for feature in limits.keys() & (sequence_length or {}).keys():
            limits[feature] = min(limits[feature], (sequence_length or {})[feature])

        def tokenize(examples: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            texts = {"label_targets": examples["label"], "rationale_targets": examples["rationale"]}
            for stream in STREAMS:
                texts[f"{stream}_inputs"] = self._prefixes[stream] + examples["input"]
            ends = tf.fill([tf.size(examples["id"]), 1], EOS_ID)
            features = {"label_targets_pretokenized": examples["gold"]}
            for feature in FEATURES:
                ids = self._vocabulary.encode_tf(texts[feature])
                features[feature] = tf.concat([ids[:, : limits[feature] - 1], ends], axis=1)
                features[feature + FULL_LENGTH] = tf.cast(ids.row_lengths(), tf.int32) + 1
            return {**examples, **features}

        # Many texts an operation: one by one costs several times as much.
        batches = dataset.ragged_batch(_TEXTS_A_CALL)
        return batches.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
