import jax
import jax.numpy as jnp
import numpy as np

from stepdistill_jax.model import masks

# Two examples of 2 and 3 tokens and one slot of padding; a row with nothing but padding.
SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 0], [0, 0, 0, 0, 0, 0]], jnp.int32)


def as_ints(mask):
    return np.asarray(mask[:, 0], np.int32).tolist()


def test_encoder_mask_of_a_packed_row():
    mask = masks.segment_mask(SEGMENTS, SEGMENTS)
    assert mask.shape == (2, 1, 6, 6)
    assert as_ints(mask) == [
        [
            [1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        [[0] * 6] * 6,
    ]


def test_decoder_mask_of_a_packed_row():
    mask = masks.causal_segment_mask(SEGMENTS)
    assert as_ints(mask) == [
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        [[0] * 6] * 6,
    ]


def test_cross_mask_joins_each_target_to_its_own_input():
    targets = jnp.array([[1, 2, 2, 0]], jnp.int32)
    inputs = jnp.array([[1, 1, 2, 2, 2, 0]], jnp.int32)
    assert as_ints(masks.segment_mask(targets, inputs)) == [
        [
            [1, 1, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    ]


def test_masked_positions_get_no_weight_and_padding_stays_finite():
    bias = masks.mask_bias(jnp.array([[True, False, True], [False, False, False]]))
    assert bias.dtype == jnp.float32
    # The masked score is far above the others, and still gets nothing.
    scores = jnp.array([[1.0, 5000.0, 1.0], [1.0, 2.0, 3.0]])
    weights = np.asarray(jax.nn.softmax(scores + bias, axis=-1))
    assert weights[0].tolist() == [0.5, 0.0, 0.5]
    assert np.isfinite(weights).all()
