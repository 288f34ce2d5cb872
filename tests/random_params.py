"""Parameters for tests that need some, whichever; drawn without compiling an initialiser."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.model.stack import STACKED


@functools.cache
def random_params(config: T5Config, seed: int = 0):
    """Normal with deviation 0.2, scales about 1: each of them matters, none is 0 or 1.

    Of its own, each configuration's initialiser would compile for seconds.
    """

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = 0.2 * generator.standard_normal(leaf.shape)
        return jnp.asarray(name.endswith("['scale']") + values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def unstack_layers(params):
    """The inverse of `stack.stack_layers`: parameters of scanned layers as those of unrolled."""
    return {name: _unstack(tree) for name, tree in params.items()}


def _unstack(tree):
    if STACKED not in tree:
        return tree
    count = jax.tree.leaves(tree[STACKED])[0].shape[0]
    layers = {
        f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree[STACKED]) for i in range(count)
    }
    return {name: leaf for name, leaf in tree.items() if name != STACKED} | layers
