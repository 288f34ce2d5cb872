"""Model FLOPs of a train step and of a prediction: what the method needs, not what is executed."""

from __future__ import annotations

from collections.abc import Mapping

from stepdistill_jax.model.config import T5Config


def train_flops(config: T5Config, rows: int, inputs: int, targets: Mapping[str, int]) -> float:
    """FLOPs of the matrix products of one step, forward and backward (twice the forward).

    A multiply-add counts as 2. Recomputation by remat, softmax, norms and the optimizer do not
    count; attention over a packed row counts masked positions too.

    Args:
        rows: packed rows B of the global batch.
        inputs: input positions L of a row, of each stream.
        targets: target positions of a row, by stream.
    """
    forward = sum(_forward(config, inputs, length, length) for length in targets.values())
    return 3.0 * rows * forward


def serving_flops(config: T5Config, inputs: float, outputs: float) -> float:
    """FLOPs of one prediction: the encoder over the input, the decoder with a key-value cache.

    Args:
        inputs: tokens of the input, prefix and EOS included; may be a mean.
        outputs: tokens written, EOS included.
    """
    # Token number t attends to t positions, so the mean is (1 + outputs) / 2.
    return _forward(config, inputs, outputs, (1 + outputs) / 2)


def _forward(config: T5Config, inputs: float, outputs: float, attended: float) -> float:
    """FLOPs of one row's forward pass; each output position attends to `attended` of them."""
    width, heads = config.emb_dim, config.num_heads * config.head_dim
    projection = 2 * width * heads
    feed_forward = 2 * width * config.mlp_dim * (len(config.mlp_activations) + 1)
    encoder_token = config.num_encoder_layers * (
        4 * projection + 2 * 2 * inputs * heads + feed_forward
    )
    decoder_token = config.num_decoder_layers * (
        6 * projection + 2 * 2 * (attended + inputs) * heads + feed_forward
    )
    # Keys and values of the cross attention are projected once for each input position.
    cross = config.num_decoder_layers * 2 * projection * inputs
    logits = 2 * width * config.vocab_size
    return inputs * encoder_token + outputs * (decoder_token + logits) + cross
