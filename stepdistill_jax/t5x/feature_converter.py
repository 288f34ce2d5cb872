"""SeqIO feature converter: the four task features -> batch features under T5X's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

from stepdistill_jax.spec import EOS_ID, FEATURES, STREAMS, InputError
from stepdistill_jax.t5x.features import MODEL_FEATURES, PACKING_FEATURES, PREFIXES

_INT = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)
_FLOAT = seqio.FeatureConverter.FeatureSpec(dtype=tf.float32)


class StepByStepFeatureConverter(seqio.FeatureConverter):
    """Converts tasks with our four features for `StepByStepModel`.

    Two pairs, the second without a rationale (weight 0, only EOS), packed into one row with
    ``task_feature_lengths`` 5, 4, 5 and 4:

        label_inputs       7 8 1 | 9 1      rationale_inputs   6 8 1 | 6 1
        label_targets      3 1   | 4 1      rationale_targets  5 2 1 | 1

        encoder_input_tokens    7 8 1 9 1   rationale_encoder_input_tokens    6 8 1 6 1
        encoder_segment_ids     1 1 1 2 2   rationale_encoder_segment_ids     1 1 1 2 2
        encoder_positions       0 1 2 0 1   rationale_encoder_positions       0 1 2 0 1
        decoder_target_tokens   3 1 4 1     rationale_decoder_target_tokens   5 2 1 1
        decoder_input_tokens    0 3 0 4     rationale_decoder_input_tokens    0 5 2 0
        decoder_loss_weights    1 1 1 1     rationale_decoder_loss_weights    1 1 1 0
        decoder_segment_ids     1 1 2 2     rationale_decoder_segment_ids     1 1 1 2
        decoder_positions       0 1 0 1     rationale_decoder_positions       0 1 2 0

    SeqIO packs a pair into a row only if all four features fit: a pair is never split, and its
    features share one segment id. Without packing a row is one pair, without segment ids and
    positions.

    Weights come from the task's ``label_weight`` and ``rationale_weight``. A SeqIO mixture drops
    them: then a target of only EOS has weight 0 and any other 1, as in the registered tasks.

    ``task_feature_lengths`` are lengths of a row. No feature of a pair may be longer; the tasks
    truncate it and keep EOS.
    """

    TASK_FEATURES: ClassVar = dict.fromkeys(FEATURES, _INT)
    MODEL_FEATURES: ClassVar = {
        prefix + name: _FLOAT if name == "decoder_loss_weights" else _INT
        for prefix in PREFIXES.values()
        for name in MODEL_FEATURES
    }
    PACKING_FEATURE_DTYPES: ClassVar = {
        prefix + name: tf.int32 for prefix in PREFIXES.values() for name in PACKING_FEATURES
    }

    def __init__(
        self,
        pack: bool = True,
        use_custom_packing_ops: bool = False,
        apply_length_check: bool = True,
    ) -> None:
        """Takes the arguments of T5X's `DatasetConfig`.

        Args:
            pack: several pairs a row.
            use_custom_packing_ops: must be False.
            apply_length_check: see `seqio.FeatureConverter`.

        Raises:
            InputError: `use_custom_packing_ops` is True.
        """
        if use_custom_packing_ops:
            raise InputError(
                "DatasetConfig.use_custom_packing_ops=True: only SeqIO's own packing is supported. "
                "Set it to False."
            )
        super().__init__(pack=pack, apply_length_check=apply_length_check)

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        lengths = dict(task_feature_lengths)
        for stream in STREAMS:
            lengths[f"{stream}_weights"] = lengths[f"{stream}_targets"]
        ds = ds.map(_with_weights, num_parallel_calls=tf.data.AUTOTUNE)
        ds = self._pack_or_pad(ds, lengths)
        return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        converted: dict[str, tf.Tensor] = {}
        for stream, prefix in PREFIXES.items():
            targets = features[f"{stream}_targets"]
            values = {
                "encoder_input_tokens": features[f"{stream}_inputs"],
                "decoder_target_tokens": targets,
                "decoder_input_tokens": seqio.autoregressive_inputs(
                    targets,
                    sequence_id=features.get(f"{stream}_targets_segment_ids"),
                    bos_id=self.bos_id,
                ),
                "decoder_loss_weights": _decode_weights(features[f"{stream}_weights"]),
            }
            if self.pack:
                for ours, coder in (("inputs", "encoder"), ("targets", "decoder")):
                    for kind in ("segment_ids", "positions"):
                        values[f"{coder}_{kind}"] = features[f"{stream}_{ours}_{kind}"]
            converted |= {prefix + name: value for name, value in values.items()}
        return converted

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Batch feature -> length of its row; see `seqio.FeatureConverter`."""
        names = (*MODEL_FEATURES, *(PACKING_FEATURES if self.pack else ()))
        return {
            prefix + name: task_feature_lengths[
                f"{stream}_{'inputs' if name.startswith('encoder') else 'targets'}"
            ]
            for stream, prefix in PREFIXES.items()
            for name in names
        }


def _with_weights(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The four features, and each stream's weight, encoded, at every token of its target."""
    kept = {feature: features[feature] for feature in FEATURES}
    for stream in STREAMS:
        targets = features[f"{stream}_targets"]
        if f"{stream}_weight" in features:
            weight = tf.cast(features[f"{stream}_weight"], tf.float32)
        else:
            weight = tf.cast(tf.not_equal(targets[0], EOS_ID), tf.float32)
        kept[f"{stream}_weights"] = tf.fill([tf.size(targets)], _encode_weight(weight))
    return kept


# SeqIO packs only int32 and treats 0 as padding, so weights are packed as the bits of a float32.
# A weight of 0 becomes -0.0, whose bits are not 0.
def _encode_weight(weight: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.where(tf.equal(weight, 0.0), -0.0, weight), tf.int32)


def _decode_weights(encoded: tf.Tensor) -> tf.Tensor:
    return tf.abs(tf.bitcast(encoded, tf.float32))
