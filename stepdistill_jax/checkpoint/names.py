"""The one table of parameter names: ours, Hugging Face's, T5X's, and what differs in layout.

Our names and layouts are those of T5X's minimal T5, so one column serves both. `bindings` spells
the table out for one model; import and export both read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax

from stepdistill_jax.spec import InputError

# A checkpoint's form: Hugging Face's, or T5X's with unrolled or with scanned layers.
Form = Literal["hf", "t5x", "t5x_scanned"]
Shape = tuple[int, ...]

# Each row: ours (and T5X's), Hugging Face's (without ".weight"). Hugging Face stores the transpose
# of every matrix but the embedding. A model has the rows that its own parameters name: a plain MLP
# has `wi`, a gated one `wi_0` and `wi_1`; `logits_dense` is where the output matrix is not tied.
WHOLE = {
    "token_embedder/embedding": "shared",
    "encoder/relpos_bias/rel_embedding": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    ),
    "encoder/encoder_norm/scale": "encoder.final_layer_norm",
    "decoder/relpos_bias/rel_embedding": (
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    ),
    "decoder/decoder_norm/scale": "decoder.final_layer_norm",
    "decoder/logits_dense/kernel": "lm_head",
}
# The same of layer i: ours under ``encoder/layers_i/``, Hugging Face's ``encoder.block.i.layer.``.
LAYERS = {
    "encoder": {
        "pre_attention_layer_norm/scale": "0.layer_norm",
        "attention/query/kernel": "0.SelfAttention.q",
        "attention/key/kernel": "0.SelfAttention.k",
        "attention/value/kernel": "0.SelfAttention.v",
        "attention/out/kernel": "0.SelfAttention.o",
        "pre_mlp_layer_norm/scale": "1.layer_norm",
        "mlp/wi/kernel": "1.DenseReluDense.wi",
        "mlp/wi_0/kernel": "1.DenseReluDense.wi_0",
        "mlp/wi_1/kernel": "1.DenseReluDense.wi_1",
        "mlp/wo/kernel": "1.DenseReluDense.wo",
    },
    "decoder": {
        "pre_self_attention_layer_norm/scale": "0.layer_norm",
        "self_attention/query/kernel": "0.SelfAttention.q",
        "self_attention/key/kernel": "0.SelfAttention.k",
        "self_attention/value/kernel": "0.SelfAttention.v",
        "self_attention/out/kernel": "0.SelfAttention.o",
        "pre_cross_attention_layer_norm/scale": "1.layer_norm",
        "encoder_decoder_attention/query/kernel": "1.EncDecAttention.q",
        "encoder_decoder_attention/key/kernel": "1.EncDecAttention.k",
        "encoder_decoder_attention/value/kernel": "1.EncDecAttention.v",
        "encoder_decoder_attention/out/kernel": "1.EncDecAttention.o",
        "pre_mlp_layer_norm/scale": "2.layer_norm",
        "mlp/wi/kernel": "2.DenseReluDense.wi",
        "mlp/wi_0/kernel": "2.DenseReluDense.wi_0",
        "mlp/wi_1/kernel": "2.DenseReluDense.wi_1",
        "mlp/wo/kernel": "2.DenseReluDense.wo",
    },
}
# Hugging Face files may hold these besides: the same array under another name, ...
HF_ALIASES = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
}
HF_TIED_ALIASES = {**HF_ALIASES, "lm_head.weight": "shared.weight"}
# ... and what the first converted T5 1.0 files carry, which no T5 reads.
HF_IGNORED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})
_STACKED = "/layers/"
# T5X's scanned form stacks layers on this axis (its `param_scan_axis`).
_T5X_SCAN_AXIS = 1


@dataclasses.dataclass(frozen=True)
class Binding:
    """One layer's part of one of our parameters, and where a checkpoint of another form keeps it.

    Attributes:
        path: our parameter, such as ``encoder/layers/mlp/wo/kernel``.
        layer: its index on our leading axis; None where our parameter is not stacked.
        shape: of the part in our layout, without the layer axis.
        key: the other form's name.
        transposed: the other form stores the transpose.
        key_layer: the index on axis 1 of the other form's array; None where that is not stacked.
    """

    path: str
    layer: int | None
    shape: Shape
    key: str
    transposed: bool = False
    key_layer: int | None = None

    @property
    def stored_shape(self) -> Shape:
        """Of the part in the other form's layout, without its layer axis."""
        return self.shape[::-1] if self.transposed else self.shape

    def stored_index(self, index: tuple[slice, ...]) -> tuple[Any, ...]:
        """Where the other form's array has what `index` takes of the part."""
        stored: tuple[Any, ...] = index[::-1] if self.transposed else index
        if self.key_layer is not None:
            stored = (*stored[:_T5X_SCAN_AXIS], self.key_layer, *stored[_T5X_SCAN_AXIS:])
        return stored


def flat(tree: Any) -> dict[str, Any]:
    """A parameter tree's leaves by path: ``decoder/logits_dense/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def bindings(params: Any, form: Form) -> list[Binding]:
    """Every part of a model's parameters, in the order of its tree, layers in theirs.

    In T5X's scanned form the relative-position bias is stacked too, one copy a layer: that one
    parameter of ours has a binding for each.

    Args:
        params: tree of arrays or `jax.ShapeDtypeStruct`, stacked or unrolled.
        form: the other form.
    """
    leaves = flat(params)
    counts = {stack: _layer_count(leaves, stack) for stack in LAYERS}
    found: list[Binding] = []
    for path, leaf in leaves.items():
        found.extend(_bind(path, tuple(leaf.shape), form, counts))
    return found


def _layer_count(leaves: Mapping[str, Any], stack: str) -> int:
    stacked = [leaf.shape[0] for path, leaf in leaves.items() if path.startswith(stack + _STACKED)]
    unrolled = {path.split("/")[1] for path in leaves if path.startswith(f"{stack}/layers_")}
    return stacked[0] if stacked else len(unrolled)


def _bind(path: str, shape: Shape, form: Form, counts: Mapping[str, int]) -> Iterator[Binding]:
    stack = path.split("/")[0]
    if path in WHOLE:
        if form == "t5x_scanned" and path.endswith("/rel_embedding"):
            for number in range(counts[stack]):
                key = path.replace("/", f"/{stack}/", 1)
                yield Binding(path, None, shape, key, key_layer=number)
        elif form == "hf":
            yield Binding(path, None, shape, f"{WHOLE[path]}.weight", _hf_transposed(path))
        else:
            yield Binding(path, None, shape, path)
        return
    if path.startswith(stack + _STACKED):
        name = path.removeprefix(stack + _STACKED)
        parts: list[tuple[int | None, int, Shape]] = [
            (number, number, shape[1:]) for number in range(shape[0])
        ]
    else:
        _, layer, name = path.split("/", 2)
        parts = [(None, int(layer.removeprefix("layers_")), shape)]
    for index, number, own in parts:
        if form == "hf":
            key = f"{stack}.block.{number}.layer.{LAYERS[stack][name]}.weight"
            yield Binding(path, index, own, key, _hf_transposed(path))
        elif form == "t5x":
            yield Binding(path, index, own, f"{stack}/layers_{number}/{name}")
        else:
            yield Binding(path, index, own, f"{stack}/{stack}/{name}", key_layer=number)


def _hf_transposed(path: str) -> bool:
    return path.endswith(("/kernel", "/rel_embedding"))


def stored_shapes(parts: list[Binding]) -> dict[str, Shape]:
    """Key -> shape of the whole array that the other form stores there."""
    shapes: dict[str, Shape] = {}
    for part in parts:
        shape = part.stored_shape
        if part.key_layer is not None:
            count = max(p.key_layer or 0 for p in parts if p.key == part.key) + 1
            shape = (*shape[:_T5X_SCAN_AXIS], count, *shape[_T5X_SCAN_AXIS:])
        shapes[part.key] = shape
    return shapes


def check_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape], where: str) -> None:
    """Compares a checkpoint's arrays with what a model wants of them, before any is read.

    Args:
        expected: key -> shape, of `stored_shapes`.
        found: key -> shape in the checkpoint, without what is known to be superfluous.
        where: the checkpoint, for the message.

    Raises:
        InputError: all keys that the model lacks, that the checkpoint lacks, and whose shapes
            differ, together.
    """
    problems = [
        *(f"{key} {found[key]} is unknown" for key in found if key not in expected),
        *(f"{key} {expected[key]} is missing" for key in expected if key not in found),
        *(
            f"{key} is {found[key]}, the model wants {expected[key]}"
            for key in expected
            if key in found and tuple(found[key]) != tuple(expected[key])
        ),
    ]
    if problems:
        shown = "; ".join(problems[:20])
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"{where}: {len(problems)} of its arrays do not fit the model: {shown}{more}; choose "
            "the gin file under models/ that describes this checkpoint"
        )
