"""Runs the layers of a stack, scanned or unrolled, and stacks parameters of unrolled layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.layers import DENSE_OUTPUT

Params = dict[str, Any]

STACKED = "layers"
_LAYER = re.compile(r"layers_(\d+)")

REMAT: dict[str, Callable[..., bool] | None] = {
    "dots": jax.checkpoint_policies.save_only_these_names(DENSE_OUTPUT),
    "full": None,
}


def make_layers(config: T5Config, layer: type[nn.Module], count: int) -> Any:
    """One layer to scan (parameters `layers`), or `count` of them (`layers_0`, ...).

    Assign the result to an attribute named ``layers`` in `setup`, which gives them these names.
    """
    return layer(config) if config.scan_layers else [layer(config) for _ in range(count)]


def run_layers(
    config: T5Config,
    layers: Any,
    count: int,
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    scanned: Any = None,
    shared: Any = None,
) -> tuple[Any, Any]:
    """Passes `carry` through the layers; the only function that handles scan and remat.

    Args:
        config: selects scan or unrolled layers, and the remat policy.
        layers: of `make_layers`.
        count: number of layers.
        body: ``body(layer, carry, scanned of this layer, shared) -> (carry, output)``.
        scanned: arrays with one leading entry for each layer.
        shared: arrays for every layer (masks, biases, the encoder's output).

    Returns:
        The last carry, and the outputs stacked along a new first axis.
    """
    if config.remat != "none":
        # Inside a scan, XLA cannot merge the recomputation with the first computation.
        body = nn.remat(body, policy=REMAT[config.remat], prevent_cse=not config.scan_layers)
    if config.scan_layers:
        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=count,
            metadata_params={nn.PARTITION_NAME: STACKED},
        )
        return scan(layers, carry, scanned, shared)
    outputs = []
    for index, layer in enumerate(layers):
        of_layer = jax.tree.map(lambda x, index=index: x[index], scanned)
        carry, output = body(layer, carry, of_layer, shared)
        outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)


def stack_layers(params: Params) -> Params:
    """Parameters of unrolled layers (`layers_0`, `layers_1`, ...) as those of scanned ones.

    Changes the trees `encoder` and `decoder`, unless they are stacked already.
    """
    return {
        name: _stack(tree) if name in ("encoder", "decoder") else tree
        for name, tree in params.items()
    }


def _stack(tree: Params) -> Params:
    layers = {int(m[1]): name for name in tree if (m := _LAYER.fullmatch(name))}
    if not layers:
        return tree
    rest = {name: value for name, value in tree.items() if name not in layers.values()}
    ordered = [tree[layers[index]] for index in range(len(layers))]
    return rest | {STACKED: jax.tree.map(lambda *leaves: _stack_leaves(leaves), *ordered)}


def _stack_leaves(leaves: Sequence[Any]) -> Any:
    # Converted weights are in host memory and may not fit on one device.
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return np.stack(leaves)
    return jnp.stack(leaves)
