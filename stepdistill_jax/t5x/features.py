"""Names of the batch features that the converter makes and the model reads.

The label stream has T5X's own names, so that all of T5X that reads an encoder-decoder batch
(initialisation, prediction, scoring) reads the label stream alone; the rationale stream has the
same names behind ``rationale_``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepdistill_jax.spec import LABEL, RATIONALE

PREFIXES = {LABEL: "", RATIONALE: "rationale_"}

MODEL_FEATURES = (
    "encoder_input_tokens",
    "decoder_target_tokens",
    "decoder_input_tokens",
    "decoder_loss_weights",
)
PACKING_FEATURES = (
    "encoder_segment_ids",
    "decoder_segment_ids",
    "encoder_positions",
    "decoder_positions",
)


def stream_features(batch: Mapping[str, Any], stream: str) -> dict[str, Any]:
    """One stream's part of a batch, under T5X's names; packing features where there are any."""
    prefix = PREFIXES[stream]
    names = (*MODEL_FEATURES, *PACKING_FEATURES)
    return {name: batch[prefix + name] for name in names if prefix + name in batch}
