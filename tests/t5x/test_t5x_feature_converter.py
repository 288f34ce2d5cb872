"""Batch features of hand-made pairs, packed and not; this needs SeqIO, not T5X."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

import tasks.demo
from stepdistill_jax.spec import FEATURES, InputError
from stepdistill_jax.t5x.feature_converter import StepByStepFeatureConverter

PAIRS = (
    ([7, 8, 1], [3, 1], [6, 8, 1], [5, 2, 1]),
    ([9, 1], [4, 1], [6, 1], [1]),
    ([9, 9, 9, 1], [4, 1], [6, 9, 9, 1], [5, 5, 1]),
)
LENGTHS = dict(zip(FEATURES, (5, 4, 5, 4), strict=True))


def dataset(pairs=PAIRS, weights=None):
    signature = {name: tf.TensorSpec([None], tf.int32) for name in FEATURES}
    rows = [dict(zip(FEATURES, pair, strict=True)) for pair in pairs]
    if weights is not None:
        names = ("label_weight", "rationale_weight")
        signature |= {name: tf.TensorSpec([], tf.float32) for name in names}
        rows = [
            row | dict(zip(names, pair, strict=True))
            for row, pair in zip(rows, weights, strict=True)
        ]
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)


def convert(pack, lengths=LENGTHS, **arguments):
    converted = StepByStepFeatureConverter(pack=pack)(dataset(**arguments), lengths)
    return list(converted.as_numpy_iterator())


def test_packed_pairs_stay_together():
    first, second = convert(pack=True)
    expected = {
        "encoder_input_tokens": [7, 8, 1, 9, 1],
        "encoder_segment_ids": [1, 1, 1, 2, 2],
        "encoder_positions": [0, 1, 2, 0, 1],
        "decoder_target_tokens": [3, 1, 4, 1],
        "decoder_input_tokens": [0, 3, 0, 4],
        "decoder_loss_weights": [1, 1, 1, 1],
        "decoder_segment_ids": [1, 1, 2, 2],
        "decoder_positions": [0, 1, 0, 1],
        "rationale_encoder_input_tokens": [6, 8, 1, 6, 1],
        "rationale_encoder_segment_ids": [1, 1, 1, 2, 2],
        "rationale_encoder_positions": [0, 1, 2, 0, 1],
        "rationale_decoder_target_tokens": [5, 2, 1, 1],
        "rationale_decoder_input_tokens": [0, 5, 2, 0],
        "rationale_decoder_loss_weights": [1, 1, 1, 0],
        "rationale_decoder_segment_ids": [1, 1, 1, 2],
        "rationale_decoder_positions": [0, 1, 2, 0],
    }
    assert {name: value.tolist() for name, value in first.items()} == expected
    assert second["encoder_input_tokens"].tolist() == [9, 9, 9, 1, 0]
    assert second["rationale_decoder_loss_weights"].tolist() == [1, 1, 1, 0]
    assert second["rationale_decoder_segment_ids"].tolist() == [1, 1, 1, 0]


def test_a_pair_goes_to_a_new_row_when_any_of_its_features_is_full():
    # All but the rationale targets would fit.
    roomy = dict.fromkeys(FEATURES, 20) | {"rationale_targets": 6}
    rows = convert(pack=True, lengths=roomy)
    assert [row["decoder_segment_ids"].max() for row in rows] == [2, 1]
    for row in rows:
        assert len({int(v.max()) for name, v in row.items() if name.endswith("segment_ids")}) == 1


def test_unpacked_rows_hold_one_pair():
    rows = convert(pack=False)
    assert len(rows) == 3
    assert {name: value.tolist() for name, value in rows[1].items()} == {
        "encoder_input_tokens": [9, 1, 0, 0, 0],
        "decoder_target_tokens": [4, 1, 0, 0],
        "decoder_input_tokens": [0, 4, 1, 0],
        "decoder_loss_weights": [1, 1, 0, 0],
        "rationale_encoder_input_tokens": [6, 1, 0, 0, 0],
        "rationale_decoder_target_tokens": [1, 0, 0, 0],
        "rationale_decoder_input_tokens": [0, 1, 0, 0],
        "rationale_decoder_loss_weights": [0, 0, 0, 0],
    }


@pytest.mark.parametrize("pack", [False, True])
def test_weights_of_the_task_survive_as_they_are(pack):
    weights = [(0.1, 1e-30), (0.0, 0.0), (2.5, 1.0)]
    rows = convert(pack, weights=weights)
    for stream, column in (("", 0), ("rationale_", 1)):
        actual = np.concatenate(
            [
                row[f"{stream}decoder_loss_weights"][row[f"{stream}decoder_target_tokens"] > 0]
                for row in rows
            ]
        )
        counts = [len(pair[2 * column + 1]) for pair in PAIRS]
        expected = np.repeat(np.array(weights, np.float32)[:, column], counts)
        np.testing.assert_array_equal(actual, expected)
        assert not np.signbit(actual).any()


def test_the_standard_task_gives_rationales_no_weight():
    task = seqio.get_mixture_or_task(tasks.demo.NAMES[0])
    lengths = dict(zip(FEATURES, (18, 2, 18, 25), strict=True))
    converted = StepByStepFeatureConverter(pack=True)(
        task.get_dataset(lengths, split="validation", shuffle=False).take(8), lengths
    )
    for row in converted.as_numpy_iterator():
        assert row["rationale_decoder_target_tokens"].any()
        assert not row["rationale_decoder_loss_weights"].any()
        assert row["decoder_loss_weights"].all()


def test_a_mixture_keeps_its_pairs_and_their_weights():
    name = "two_demos"
    if name not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(name, list(tasks.demo.NAMES), default_rate=1.0)
    lengths = dict(zip(FEATURES, (18, 2, 18, 25), strict=True))
    rows = seqio.get_dataset(
        name,
        lengths,
        StepByStepFeatureConverter(pack=False),
        dataset_split="validation",
        shuffle=False,
        num_epochs=1,
        seed=0,
    )
    with_rationale = 0
    for row in rows.take(40).as_numpy_iterator():
        tokens = row["rationale_decoder_target_tokens"] > 0
        missing = tokens.sum() == 1
        with_rationale += not missing
        np.testing.assert_array_equal(
            row["rationale_decoder_loss_weights"], np.where(missing, 0, tokens)
        )
    assert 0 < with_rationale < 40


def test_a_pair_longer_than_the_row_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="label_inputs"):
        convert(pack=False, lengths=LENGTHS | {"label_inputs": 3})


def test_custom_packing_operations_are_refused():
    with pytest.raises(InputError, match="use_custom_packing_ops"):
        StepByStepFeatureConverter(use_custom_packing_ops=True)
