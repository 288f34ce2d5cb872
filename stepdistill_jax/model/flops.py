"""Model FLOPs of a train step, for utilisation: what the method needs, not what was executed."""

from __future__ import annotations

from collections.abc import Mapping

from stepdistill_jax.model.config import T5Config


def train_flops(config: T5Config, rows: int, inputs: int, targets: Mapping[str, int]) -> float:
    """FLOPs of the matrix products of one step, forward and backward (twice the forward).

    A multiply-add counts as 2. Recomputation by remat, the softmax, norms and the optimizer do
    not count; attention over a packed row counts whole, masked positions too.

    Args:
        config: the model.
        rows: packed rows B of the global batch.
        inputs: input positions L of a row, of each stream.
        targets: target positions of a row, by stream.
    """
    width, heads = config.emb_dim, config.num_heads * config.head_dim
    projection = 2 * width * heads
    feed_forward = 2 * width * config.mlp_dim * (len(config.mlp_activations) + 1)
    encoder_token = config.num_encoder_layers * (
        4 * projection + 2 * 2 * inputs * heads + feed_forward
    )
    forward = float(rows * len(targets) * inputs * encoder_token)
    for length in targets.values():
        decoder_token = config.num_decoder_layers * (
            6 * projection + 2 * 2 * (length + inputs) * heads + feed_forward
        )
        # Keys and values of the cross attention are projected once for each input position.
        cross = config.num_decoder_layers * 2 * projection * inputs
        forward += rows * (length * (decoder_token + 2 * width * config.vocab_size) + cross)
    return 3 * forward
