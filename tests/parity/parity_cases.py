"""Models, weights and inputs on which ours and PyTorch's T5 are compared, and our side of it.

Needs neither torch nor transformers, so that the committed goldens are checked without them.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from random_params import unstack_layers

from stepdistill_jax.checkpoint.fill import arrays
from stepdistill_jax.data.join import DataConfig, load_pairs
from stepdistill_jax.data.pipeline import (
    PipelineConfig,
    assemble,
    eval_batches,
    row_shape,
    train_iterator,
)
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import Transformer, abstract_params
from stepdistill_jax.objective import ObjectiveConfig, combine
from stepdistill_jax.spec import EOS_ID, EXAMPLE_INDEX, FEATURES, PREFIXES, STREAMS
from stepdistill_jax.train.step import batch_sums

# Written by golden/make_parity.py.
GOLDENS = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden" / "parity.json").read_text("utf-8")
)
# What "equal" means here, relative to the largest magnitude of the tensor compared.
TOLERANCE = 1e-4

# The real models' numbers of layers and heads, buckets and variant; all widths an eighth of
# theirs, ReLU's MLP a 32nd: of fewer ReLU inputs fewer lie so near 0 that rounding decides whether
# the gradient passes. FLAN-T5 is T5 1.1 trained further.
_V1_0 = {"mlp_activations": ("relu",), "logits_via_embedding": True, "dropout_rate": 0.0}
_V1_1 = {"mlp_activations": ("gelu", "linear"), "dropout_rate": 0.0}
# vocabulary, width, heads, width of a head, width of the MLP, layers of encoder and decoder
MODELS = {
    "t5-small": T5Config(96, 64, 8, 8, 64, 6, 6, **_V1_0),
    "t5-v1_1-base": T5Config(96, 96, 12, 8, 256, 12, 12, **_V1_1),
    "flan-t5-small": T5Config(96, 64, 6, 8, 128, 8, 8, **_V1_1),
}
T5_VOCAB_SIZE = 32128
# Seeds of the weights that keep clear of what rounding decides, by `LEAST_LEAD` and
# `LEAST_RELU_INPUT`; by number of layers.
_SEEDS = {6: 2, 12: 1, 8: 1}
_EOS_FACTOR = 3
_TIED_EMBEDDING = 0.25
OBJECTIVE = ObjectiveConfig(alpha=0.3)

DATASETS = ("esnli", "anli", "cqa", "svamp")
INPUTS_EACH = 50
MAX_INPUT_LENGTH = 1024
DECODE_LENGTH = 16
# Two float32 implementations may differ by some 1e-6 of the largest logit; a chosen token leads by
# more than this on every step compared, so that rounding decides none of them.
LEAST_LEAD = 1e-5
# Inputs of ReLU, of order one, differ by some 1e-7 between implementations.
LEAST_RELU_INPUT = 2e-6
EVAL_BATCH = 32


def with_t5_vocabulary(config):
    return dataclasses.replace(config, vocab_size=T5_VOCAB_SIZE)


def uniform(seed, shape):
    """Float32 in [-1, 1): PCG64's raw words, whose values numpy promises to keep."""
    words = np.random.PCG64(seed).random_raw(math.prod(shape))
    return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - 1).reshape(shape)


def _deviation(config, path, shape):
    """Standard deviations that keep activations of order one and make each token count.

    Attention looks at some positions, not at all alike; the decoder hears the input, and in T5 1.0
    its own earlier tokens, above the last one, which its tied output would repeat for ever. Larger
    factors would vary more still, and let float32's own rounding grow past the tolerance.
    """
    fan_in = shape[-2] if path.endswith("/kernel") else 1
    tied = config.logits_via_embedding
    factors = {
        "attention/query/kernel": 2 * config.head_dim**-0.5,
        "encoder_decoder_attention/out/kernel": 3,
        "/self_attention/out/kernel": 3 if tied else 1,
        "/embedding": _TIED_EMBEDDING if tied else 1,
        "/rel_embedding": 2 if tied else 0.5,
        "_norm/scale": 0.2,
    }
    matching = [factor for end, factor in factors.items() if path.endswith(end)]
    return (matching[0] if matching else 1) * fan_in**-0.5


def weights(config, seed=None):
    """Parameters as a tree of numpy arrays, stacked or unrolled: the same for both.

    Every array is uniform, seeded by `seed` and its path in the stacked tree, with the standard
    deviation of `_deviation`; norm scales vary about 1. The output's row of EOS is drawn wider, so
    that some sequences end.
    """
    stacked = dataclasses.replace(config, scan_layers=True)
    if seed is None:
        seed = _SEEDS[config.num_encoder_layers]

    def draw(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        entropy = [seed, zlib.crc32(path.encode())]
        value = uniform(entropy, leaf.shape)
        value *= np.float32(math.sqrt(3) * _deviation(config, path, leaf.shape))
        if path.endswith("/scale"):
            value += 1
        if config.logits_via_embedding and path == "decoder/decoder_norm/scale":
            value /= np.float32(_TIED_EMBEDDING)
        if config.logits_via_embedding and path == "token_embedder/embedding":
            value[EOS_ID] *= _EOS_FACTOR
        if path == "decoder/logits_dense/kernel":
            value[:, EOS_ID] *= _EOS_FACTOR
        return value

    params = jax.tree_util.tree_map_with_path(draw, abstract_params(stacked))
    return params if config.scan_layers else unstack_layers(params)


def state_dict(params):
    """Hugging Face's names and layouts."""
    return dict(arrays(params, "hf"))


# Synthetic ids: lengths on both sides of the relative-position buckets' borders 16, 32, 64 and
# 128, in one batch, so that all but the longest are followed by padding.
INPUT_LENGTHS = (300, 1, 17, 33, 65, 129)
TARGET_LENGTHS = (150, 1, 16, 32, 64, 128)


def synthetic(config, seed=0):
    """(inputs, input mask, decoder inputs, decoder mask), int32 [6, 300] and [6, 150]."""
    result = []
    for side, lengths in enumerate((INPUT_LENGTHS, TARGET_LENGTHS)):
        shape = (len(lengths), max(lengths))
        mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int32)
        words = np.random.PCG64([seed, side]).random_raw(math.prod(shape)).reshape(shape)
        ids = 2 + (words >> np.uint64(33)).astype(np.int64) % (config.vocab_size - 2)
        result += [ids.astype(np.int32) * mask, mask]
    result[2][:, 0] = 0
    return result


@functools.partial(jax.jit, static_argnums=0)
def our_logits(config, params, inputs, mask, decoder_inputs, decoder_mask):
    return Transformer(config).apply({"params": params}, inputs, mask, decoder_inputs, decoder_mask)


def synthetic_rows(config):
    """The inputs of `synthetic` as one array each."""
    inputs, mask, _, _ = synthetic(config)
    return [row[real > 0] for row, real in zip(inputs, mask, strict=True)]


class Pairs:
    """Token features of pairs, as the pipeline reads them of a token cache."""

    def __init__(self, pairs):
        self.pairs = pairs
        self.lengths = {
            feature: np.array([len(pair[feature]) for pair in pairs], np.int32)
            for feature in FEATURES
        }

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


# (inputs, label, rationale) of the synthetic pairs: CQA's lengths, and one beyond 128; the fifth
# has no rationale.
PAIR_LENGTHS = ((30, 2, 20), (45, 4, 35), (150, 1, 140), (20, 3, 50), (60, 2, 0), (25, 5, 17))
PACKED_ROWS = ((0, 1), (2, 3), (4, 5))
UNPACKED_ROWS = ((0,), (1,), (2,), (3,), (4,), (5,))


def synthetic_pairs(config):
    """Pairs of random tokens of `PAIR_LENGTHS`, before EOS."""
    words = iter(np.random.PCG64(3).random_raw(2_000) >> np.uint64(33))

    def ids(length):
        values = [2 + int(next(words)) % (config.vocab_size - 2) for _ in range(length)]
        return np.array([*values, EOS_ID], np.int32)

    pairs = []
    for inputs, label, rationale in PAIR_LENGTHS:
        text = ids(inputs)
        pairs.append(
            {
                "label_inputs": np.append(np.int32(3), text),
                "label_targets": ids(label),
                "rationale_inputs": np.append(np.int32(4), text),
                "rationale_targets": ids(rationale),
                "label_weight": 1.0,
                "rationale_weight": float(rationale > 0),
            }
        )
    return Pairs(pairs)


def batch_of_rows(pairs, groups):
    """A train batch with the given pairs in each row."""
    rows = []
    for group in groups:
        row = {EXAMPLE_INDEX: np.zeros(len(pairs), np.int32)}
        row[EXAMPLE_INDEX][: len(group)] = np.array(group) + 1
        for feature, lengths in pairs.lengths.items():
            widths = {f: max(sum(pairs.lengths[f][list(g)]) for g in groups) for f in FEATURES}
            # Both streams' inputs share a length.
            width = widths["label_inputs"] if feature.endswith("inputs") else widths[feature]
            segments = np.repeat(np.arange(1, len(group) + 1), lengths[list(group)])
            padding = np.zeros(width - len(segments))
            row[f"{feature}_segment_ids"] = np.append(segments, padding).astype(np.int32)
        rows.append(row)
    batch = assemble(pairs, rows, STREAMS)
    del batch[EXAMPLE_INDEX]
    return batch


def cqa_pairs(shared, spiece, count=4):
    """Real CQA training pairs with the teacher's rationales; the first of them lacks its own."""
    vocabulary = load_vocabulary(str(spiece))
    pairs, _ = load_pairs(DataConfig("cqa", str(shared / "data")), "train")

    def ids(text):
        return np.array([*vocabulary.encode(text), EOS_ID], np.int32)

    label, rationale = PREFIXES["release"]
    tokens = [
        {
            "label_inputs": ids(label + pair.input),
            "label_targets": ids(pair.label),
            "rationale_inputs": ids(rationale + pair.input),
            "rationale_targets": ids(pair.rationale if number else ""),
            "label_weight": 1.0,
            "rationale_weight": float(number > 0),
        }
        for number, pair in enumerate([pair for pair in pairs if pair.rationale][:count])
    ]
    return Pairs(tokens)


def train_batch(pairs, pack):
    """A train batch of the pipeline's, and the pairs in it."""
    config = PipelineConfig(batch_size=len(pairs), pack=pack, prefetch=0)
    if pack:
        config = dataclasses.replace(config, input_row_length=256)
    shape = row_shape(pairs.lengths, config, STREAMS)
    iterator = train_iterator(pairs, config, shape, STREAMS, process_index=0, process_count=1)
    batch = next(iterator)
    index = batch.pop(EXAMPLE_INDEX)
    return batch, [pairs[int(number) - 1] for number in index[index > 0]]


@functools.partial(jax.jit, static_argnums=0)
def our_losses(config, params, batch):
    """Metrics of `objective.combine` and the gradient of its loss."""

    def loss(params):
        return combine(batch_sums(config, OBJECTIVE, STREAMS, params, batch, None), OBJECTIVE.alpha)

    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return metrics, gradient


def real_inputs(shared, spiece):
    """Data set -> `INPUTS_EACH` label inputs of its test split, evenly spread."""
    vocabulary = load_vocabulary(str(spiece))
    prefix = PREFIXES["release"][0]
    inputs = {}
    for dataset in DATASETS:
        pairs, _ = load_pairs(DataConfig(dataset, str(shared / "data")), "test")
        chosen = [pairs[i * len(pairs) // INPUTS_EACH] for i in range(INPUTS_EACH)]
        inputs[dataset] = [
            np.array([*vocabulary.encode(prefix + pair.input), EOS_ID], np.int32) for pair in chosen
        ]
    return inputs


def extreme_inputs(shared, spiece):
    """Inputs at the limits: EOS alone, the prefix of an empty text, and 1024 tokens; and padding.

    The longest is ANLI's premises one after the other, cut as the tokeniser cuts: EOS stays last.
    """
    joined = np.concatenate([ids[:-1] for ids in real_inputs(shared, spiece)["anli"]])
    prefix = load_vocabulary(str(spiece)).encode(PREFIXES["release"][0])
    longest = np.append(joined[: MAX_INPUT_LENGTH - 1], EOS_ID)
    rows = [np.array([EOS_ID]), np.array([*prefix, EOS_ID]), longest, joined[:100]]
    return [row.astype(np.int32) for row in rows]


def halves(extreme):
    """`extreme_inputs` as two batches, both with padding: of 1 and 1024 tokens, of 3 and 100."""
    return extreme[::2], extreme[1::2]


def fingerprint(rows):
    """sha256 of token ids."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray([len(row), *row], "<i4").tobytes())
    return digest.hexdigest()


def padded(rows):
    """(ids, mask), int32 [B, longest]."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    ids = np.zeros(mask.shape, np.int32)
    ids[mask > 0] = np.concatenate(rows)
    return ids, mask


def trimmed(row):
    """A generated row as a list up to its EOS."""
    row = list(map(int, row))
    return row[: row.index(EOS_ID) + 1] if EOS_ID in row else row


def our_generation(config, params, rows):
    """Tokens of each input, through evaluation's batches: sorted by length, padded, filled up."""
    source = Pairs([dict.fromkeys(FEATURES, row) for row in rows])
    params = jax.tree.map(jnp.asarray, params)
    outputs = [None] * len(rows)
    for index, inputs, segment_ids in eval_batches(source, min(EVAL_BATCH, len(rows))):
        tokens = np.asarray(greedy(config, params, inputs, segment_ids, DECODE_LENGTH))
        for number, row in zip(index, tokens, strict=True):
            if number >= 0:
                outputs[number] = trimmed(row)
            else:
                assert not row.any(), "a row that fills a batch up must stay empty"
    return outputs


def difference(actual, expected):
    """Largest difference relative to the largest magnitude expected."""
    expected = np.asarray(expected, np.float64)
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


def sample(array):
    """What a golden keeps of an array: its norm, its largest magnitude, eight of its elements."""
    values = np.asarray(array, np.float64).ravel()
    spread = np.linspace(0, len(values) - 1, 8).astype(int)
    return {
        "norm": float(np.linalg.norm(values)),
        "max": float(np.abs(values).max()),
        "elements": values[spread].tolist(),
    }


def gradient_differences(gradient, expected):
    """Hugging Face's name -> `difference` of that parameter's gradient."""
    actual = state_dict(gradient)
    assert actual.keys() == expected.keys()
    return {name: difference(actual[name], expected[name]) for name in expected}
