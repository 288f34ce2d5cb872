"""Names of the batch features that the converter creates and the model reads.

The label stream has T5X's own names: T5X's initialization, prediction and scoring then read only
the label stream. The rationale stream has the same names with the prefix ``rationale_``.
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
    """One stream's features under T5X's names, including packing features if present."""
    prefix = PREFIXES[stream]
    names = (*MODEL_FEATURES, *PACKING_FEATURES)
    return {name: batch[prefix + name] for name in names if prefix + name in batch}
