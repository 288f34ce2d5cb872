import jax
import jax.numpy as jnp
import numpy as np

from stepdistill_jax.model.attention import Attention
from stepdistill_jax.model.config import T5Config

CONFIG = T5Config(
    vocab_size=11,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.5,
)
X = jax.random.normal(jax.random.key(0), (3, 6, 8))


def attend(params, deterministic, *biases):
    rngs = {"dropout": jax.random.key(2)}
    return Attention(CONFIG).apply({"params": params}, X, X, biases, deterministic, rngs=rngs)


def uniform_params():
    """A query of zero scores all keys alike."""
    params = Attention(CONFIG).init(jax.random.key(1), X, X, (), True)["params"]
    params = jax.tree.map(lambda box: box.unbox(), params, is_leaf=lambda x: hasattr(x, "unbox"))
    return params | {"query": {"kernel": jnp.zeros((8, 8))}}


def test_scores_all_alike_give_the_mean_of_the_values():
    params = uniform_params()
    expected = X.mean(axis=1) @ params["value"]["kernel"] @ params["out"]["kernel"]
    found = attend(params, True)
    np.testing.assert_allclose(found, jnp.repeat(expected[:, None], 6, axis=1), atol=1e-5)


def test_dropout_of_the_weights_is_one_draw_for_all_queries_of_a_row():
    params = uniform_params()
    dropped = np.asarray(attend(params, False))
    np.testing.assert_allclose(dropped, np.repeat(dropped[:, :1], 6, axis=1), atol=1e-6)
    assert np.abs(dropped - np.asarray(attend(params, True))).max() > 0.01


def test_terms_of_the_bias_add_up_over_heads_and_rows():
    params = uniform_params()
    heads = jax.random.normal(jax.random.key(3), (1, 2, 6, 6))
    rows = jax.random.normal(jax.random.key(4), (3, 1, 6, 6))
    np.testing.assert_allclose(
        attend(params, True, heads, rows), attend(params, True, heads + rows), atol=1e-6
    )
