import pytest

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.flops import serving_flops, train_flops

MODEL = T5Config(
    vocab_size=50,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=3,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
)


def test_an_answer_costs_what_is_counted_by_hand():
    # Encoder, 5 tokens, 2 layers: four projections 8x8, scores and sums over 5 positions, three
    # products 8x16; a multiply-add counts as 2.
    encoder = 5 * 2 * (4 * 2 * 64 + 2 * 2 * 5 * 8 + 3 * 2 * 128)
    # Decoder, 3 tokens, 3 layers: six projections, its own 1 + 2 + 3 and 3 times 5 encoded ones.
    decoder = 3 * (3 * 6 * 2 * 64 + 2 * 2 * 8 * (6 + 15) + 3 * 3 * 2 * 128)
    cross = 3 * 2 * 2 * 64 * 5
    logits = 3 * 2 * 8 * 50
    assert serving_flops(MODEL, 5, 3) == encoder + decoder + cross + logits


@pytest.mark.parametrize("rows", [1, 4])
def test_training_costs_three_forward_passes_of_full_rows(rows):
    one = train_flops(MODEL, 1, 5, {"label": 3, "rationale": 7})
    assert train_flops(MODEL, rows, 5, {"label": 3, "rationale": 7}) == rows * one
    label = train_flops(MODEL, 1, 5, {"label": 3})
    assert one == label + train_flops(MODEL, 1, 5, {"rationale": 7})
    # A row that is decoded with a cache attends to half of the target positions in the mean.
    attention = MODEL.num_decoder_layers * 2 * 2 * 8 * (3 * 3 - (1 + 2 + 3))
    assert label == pytest.approx(3 * (serving_flops(MODEL, 5, 3) + attention), rel=1e-12)
