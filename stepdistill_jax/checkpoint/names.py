"""The table of parameter names: ours, Hugging Face's and T5X's, and how their layouts differ.

Our names and layouts are those of T5X's minimal T5, so one column serves both. `bindings` expands
the table for one model; import and export both use it.
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

# Our name (and T5X's) -> Hugging Face's, without ".weight". Hugging Face stores the transpose of
# every matrix except the embedding. A model has a subset of these: a plain MLP has `wi`, a gated
# one `wi_0` and `wi_1`; only an untied model has `logits_dense`.
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
# The same for layer i: ours below ``encoder/layers_i/``, Hugging Face's below
# ``encoder.block.i.layer.``.
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
# Second names of an array, which Hugging Face files may also hold.
HF_ALIASES = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
}
HF_TIED_ALIASES = {**HF_ALIASES, "lm_head.weight": "shared.weight"}
# An array of the first T5 1.0 files that no T5 reads.
HF_IGNORED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})
_STACKED = "/layers/"
# T5X's scanned form stacks layers on this axis (its `param_scan_axis`).
_T5X_SCAN_AXIS = 1


@dataclasses.dataclass(frozen=True)
class Binding:
    """One layer of one of our parameters, and its place in a Hugging Face or T5X checkpoint.

    Attributes:
        path: our parameter, as ``encoder/layers/mlp/wo/kernel``.
        layer: index on our leading axis; None = our parameter is not stacked.
        shape: in our layout, without the layer axis.
        key: name in the checkpoint.
        transposed: the checkpoint stores the transpose.
        key_layer: index on axis 1 of the checkpoint's array; None = that array is not stacked.
    """

    path: str
    layer: int | None
    shape: Shape
    key: str
    transposed: bool = False
    key_layer: int | None = None

    @property
    def stored_shape(self) -> Shape:
        """Shape in the checkpoint's layout, without its layer axis."""
        return self.shape[::-1] if self.transposed else self.shape

    def stored_index(self, index: tuple[slice, ...]) -> tuple[Any, ...]:
        """The checkpoint's index for `index` in our layout."""
        stored: tuple[Any, ...] = index[::-1] if self.transposed else index
        if self.key_layer is not None:
            stored = (*stored[:_T5X_SCAN_AXIS], self.key_layer, *stored[_T5X_SCAN_AXIS:])
        return stored


def flat(tree: Any) -> dict[str, Any]:
    """A parameter tree's leaves by path: ``decoder/logits_dense/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def bindings(params: Any, form: Form) -> list[Binding]:
    """The bindings of all parameters, in the order of the tree and of the layers.

    T5X's scanned form also stacks the relative-position bias, one copy a layer: our one parameter
    then has one binding for each copy.

    Args:
        params: tree of arrays or `jax.ShapeDtypeStruct`, stacked or unrolled.
        form: of the checkpoint.
    """
    leaves = flat(params)
    counts = {stack: _layer_count(leaves, stack) for stack in LAYERS}
    return [
        binding
        for path, leaf in leaves.items()
        for binding in _bind(path, tuple(leaf.shape), form, counts)
    ]


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
    for index, number, part_shape in parts:
        if form == "hf":
            key = f"{stack}.block.{number}.layer.{LAYERS[stack][name]}.weight"
            yield Binding(path, index, part_shape, key, _hf_transposed(path))
        elif form == "t5x":
            yield Binding(path, index, part_shape, f"{stack}/layers_{number}/{name}")
        else:
            key = f"{stack}/{stack}/{name}"
            yield Binding(path, index, part_shape, key, key_layer=number)


def _hf_transposed(path: str) -> bool:
    return path.endswith(("/kernel", "/rel_embedding"))


def stored_shapes(parts: list[Binding]) -> dict[str, Shape]:
    """Key -> shape of the checkpoint's whole array."""
    shapes: dict[str, Shape] = {}
    for part in parts:
        shape = part.stored_shape
        if part.key_layer is not None:
            count = max(p.key_layer or 0 for p in parts if p.key == part.key) + 1
            shape = (*shape[:_T5X_SCAN_AXIS], count, *shape[_T5X_SCAN_AXIS:])
        shapes[part.key] = shape
    return shapes


def check_shapes(expected: Mapping[str, Shape], actual: Mapping[str, Shape], where: str) -> None:
    """Compares the model's arrays with a checkpoint's.

    Args:
        expected: key -> shape, of `stored_shapes`.
        actual: key -> shape in the checkpoint, without arrays that no T5 reads.
        where: the checkpoint, for the message.

    Raises:
        InputError: lists every array that is unknown, missing or of another shape.
    """
    problems = [
        *(f"{key} {actual[key]} is unknown" for key in actual if key not in expected),
        *(f"{key} {expected[key]} is missing" for key in expected if key not in actual),
        *(
            f"{key}: got {actual[key]}, expected {expected[key]}"
            for key in expected
            if key in actual and tuple(actual[key]) != tuple(expected[key])
        ),
    ]
    if problems:
        shown = "; ".join(problems[:20])
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"{where}: {len(problems)} arrays do not match the model: {shown}{more}. Choose the "
            "gin file under models/ that describes this checkpoint."
        )
