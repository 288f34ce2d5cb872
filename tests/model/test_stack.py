import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from random_params import unstack_layers

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.layers import dropout
from stepdistill_jax.model.stack import make_layers, run_layers, stack_layers

CONFIG = T5Config(
    vocab_size=11,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=3,
    num_decoder_layers=1,
    dropout_rate=0.5,
)


class Probe(nn.Module):
    """A layer that hands out what its dropout leaves of ones."""

    config: T5Config

    def setup(self):
        self.dropout = dropout(self.config)

    def __call__(self, x):
        return self.dropout(x, deterministic=False)


class Stack(nn.Module):
    config: T5Config

    def setup(self):
        self.layers = make_layers(self.config, Probe, 3)

    def __call__(self, x):
        def body(layer, carry, number, shared):
            return carry + number, (layer(shared), carry)

        return run_layers(self.config, self.layers, 3, body, 0, jnp.arange(1, 4), x)


def run(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    apply = jax.jit(lambda key, x: Stack(config).apply({}, x, rngs={"dropout": key}))
    return apply(jax.random.key(0), jnp.ones((2, 5, 64)))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_carry_and_scanned_arrays_go_through_the_layers_in_order(scan_layers):
    carry, (_, before) = run(scan_layers=scan_layers)
    assert int(carry) == 1 + 2 + 3
    assert before.tolist() == [0, 1, 3]


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_each_layer_and_row_draws_its_own_dropout_once_for_all_positions(scan_layers, remat):
    _, (left, _) = run(scan_layers=scan_layers, remat=remat)
    left = np.asarray(left)
    assert left.shape == (3, 2, 5, 64)
    assert set(np.unique(left)) == {0.0, 2.0}
    assert (left == left[:, :, :1]).all()
    draws = left[:, :, 0].reshape(6, 64)
    assert len({draw.tobytes() for draw in draws}) == 6


def test_stacking_orders_layers_by_number_on_the_host():
    layers = {f"layers_{i}": {"scale": np.full(2, i)} for i in reversed(range(12))}
    params = {"encoder": layers | {"encoder_norm": {"scale": np.ones(2)}}, "token_embedder": {}}
    stacked = stack_layers(params)
    scale = stacked["encoder"]["layers"]["scale"]
    assert isinstance(scale, np.ndarray)
    assert scale[:, 0].tolist() == list(range(12))
    assert set(stacked["encoder"]) == {"layers", "encoder_norm"}
    restored = unstack_layers(stacked)
    assert set(restored["encoder"]) == set(params["encoder"])
    assert restored["encoder"]["layers_11"]["scale"].tolist() == [11, 11]
