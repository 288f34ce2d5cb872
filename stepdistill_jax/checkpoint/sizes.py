"""Infers a checkpoint's model from the shapes of its arrays."""

from __future__ import annotations

from collections.abc import Mapping

from stepdistill_jax.checkpoint.names import Shape
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.spec import InputError


def infer(shapes: Mapping[str, Shape], where: str, scan_layers: bool = True) -> T5Config:
    """The `T5Config` of arrays with our or T5X's names.

    Two settings do not follow from shapes: the activation of a gated MLP (T5 1.1's is assumed) and
    `relpos_max_distance` (T5's 128 is assumed).

    Args:
        shapes: name -> shape: ours, stacked or unrolled, or T5X's, unrolled or scanned.
        where: the checkpoint, for the message.
        scan_layers: of the result.

    Raises:
        InputError: an array that every T5 has is missing.
    """
    try:
        vocab_size, emb_dim = shapes["token_embedder/embedding"]
        num_heads, buckets = _one_layer(shapes, "encoder", "relpos_bias/rel_embedding")
        joined = _one_layer(shapes, "encoder", "attention/query/kernel")[1]
        gated = not _locate(shapes, "encoder", "mlp/wi/kernel")
        mlp_dim = _one_layer(shapes, "encoder", "mlp/wo/kernel")[0]
        counts = [_count(shapes, stack) for stack in ("encoder", "decoder")]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{where}: not a T5 checkpoint: {error} is missing from its {len(shapes)} arrays or "
            "has another rank. Name the checkpoint of a T5."
        ) from error
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=joined // num_heads,
        mlp_dim=mlp_dim,
        num_encoder_layers=counts[0],
        num_decoder_layers=counts[1],
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
        relpos_buckets=buckets,
        scan_layers=scan_layers,
    )


def _locate(shapes: Mapping[str, Shape], stack: str, name: str) -> tuple[str, int | None] | None:
    """The key of a layer's array, and the axis on which layers are stacked."""
    places = (
        (f"{stack}/{name}", None),  # one for all layers
        (f"{stack}/layers_0/{name}", None),
        (f"{stack}/layers/{name}", 0),
        (f"{stack}/{stack}/{name}", 1),
    )
    return next((place for place in places if place[0] in shapes), None)


def _require(shapes: Mapping[str, Shape], stack: str, name: str) -> tuple[str, int | None]:
    place = _locate(shapes, stack, name)
    if place is None:
        raise KeyError(f"{stack}/.../{name}")
    return place


def _one_layer(shapes: Mapping[str, Shape], stack: str, name: str) -> Shape:
    key, axis = _require(shapes, stack, name)
    return tuple(size for number, size in enumerate(shapes[key]) if number != axis)


def _count(shapes: Mapping[str, Shape], stack: str) -> int:
    name = "mlp/wo/kernel"
    key, axis = _require(shapes, stack, name)
    if axis is not None:
        return shapes[key][axis]
    return sum(k.startswith(f"{stack}/layers_") and k.endswith(f"/{name}") for k in shapes)
