import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.relpos import RelativePositionBias, relative_position_bucket, toeplitz

CONFIG = T5Config(
    vocab_size=11,
    emb_dim=8,
    num_heads=3,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


# By hand, key minus query. Bidirectional: 8 exact buckets a direction, then
# 8 + floor(8 * log16(distance / 8)); a key to the right adds 16. Causal: 16 exact buckets, then
# 16 + floor(16 * log8(distance / 16)).
@pytest.mark.parametrize(
    ("bidirectional", "distance", "bucket"),
    [
        (True, 0, 0),
        (True, -1, 1),
        (True, 1, 17),
        (True, -7, 7),
        (True, -8, 8),
        (True, 8, 24),
        (True, -11, 8),
        (True, -12, 9),
        (True, -15, 9),
        (True, -16, 10),
        (True, 16, 26),
        (True, -32, 12),
        (True, -64, 14),
        (True, -90, 14),
        (True, -91, 15),
        (True, -127, 15),
        (True, -128, 15),
        (True, -5000, 15),
        (True, 5000, 31),
        (False, 0, 0),
        (False, 3, 0),
        (False, 5000, 0),
        (False, -1, 1),
        (False, -15, 15),
        (False, -16, 16),
        (False, -18, 16),
        (False, -19, 17),
        (False, -20, 17),
        (False, -21, 18),
        (False, -32, 21),
        (False, -112, 30),
        (False, -113, 31),
        (False, -128, 31),
        (False, -5000, 31),
    ],
)
def test_buckets_worked_by_hand(bidirectional, distance, bucket):
    assert relative_position_bucket(np.array([distance]), bidirectional, 32, 128) == [bucket]


def exact_bucket(distance, bidirectional, num_buckets, max_distance):
    """The published formula in whole numbers: no logarithm, nothing to round.

    ``floor(n * log(d/e) / log(m/e))`` is the largest j with ``(d/e)^n >= (m/e)^j``.
    """
    bucket = 0
    if bidirectional:
        num_buckets //= 2
        bucket = num_buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = num_buckets // 2
    if distance < exact:
        return bucket + distance
    n, j = num_buckets - exact, 0
    while j < n - 1 and distance**n * exact ** (j + 1) >= max_distance ** (j + 1) * exact**n:
        j += 1
    return bucket + exact + j


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (64, 256)])
def test_buckets_equal_exact_arithmetic(bidirectional, num_buckets, max_distance):
    distances = np.arange(-700, 701)
    expected = [exact_bucket(int(d), bidirectional, num_buckets, max_distance) for d in distances]
    found = relative_position_bucket(distances, bidirectional, num_buckets, max_distance)
    assert found.tolist() == expected


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (3, 5), (5, 3), (1, 6), (6, 1)])
def test_toeplitz_spreads_values_by_distance(queries, keys):
    values = jnp.arange(2 * (queries + keys - 1), dtype=jnp.float32).reshape(2, -1)
    expected = [
        [[values[h, k - q + queries - 1] for k in range(keys)] for q in range(queries)]
        for h in range(2)
    ]
    np.testing.assert_array_equal(toeplitz(values, queries), np.array(expected))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_bias_is_the_table_at_each_pair_s_bucket_and_so_is_its_gradient(bidirectional):
    module = RelativePositionBias(CONFIG, bidirectional)
    table = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    upstream = np.random.default_rng(1).normal(size=(1, 3, 40, 50)).astype(np.float32)

    def bias(table):
        return module.apply({"params": {"rel_embedding": table}}, 40, 50)

    found, pullback = jax.vjp(bias, jnp.asarray(table))
    distance = np.arange(50)[None, :] - np.arange(40)[:, None]
    buckets = relative_position_bucket(distance, bidirectional, 32, 128)
    np.testing.assert_array_equal(found, table[None][:, :, buckets])

    expected = np.zeros_like(table, dtype=np.float64)
    for head in range(3):
        np.add.at(expected[head], buckets, upstream[0, head])
    np.testing.assert_allclose(pullback(jnp.asarray(upstream))[0], expected, atol=1e-5)
