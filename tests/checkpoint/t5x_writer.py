"""Writes T5X checkpoints from T5X's formats and names, with nothing of our own reader or table."""

from __future__ import annotations

import gzip
import itertools
import json
import pathlib

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

LAYERS = {"encoder": 3, "decoder": 2}
V, D, H, K, F, BUCKETS = 40, 16, 8, 2, 24, 32


def _attention(name):
    kernels = dict.fromkeys(("query", "key", "value"), (D, H * K)) | {"out": (H * K, D)}
    return {f"{name}/{kernel}/kernel": shape for kernel, shape in kernels.items()}


def minimal(gated, seed=0):
    """The parameters of T5X's minimal network (t5x/examples/t5), 1.1 where gated, else 1.0."""
    inner = ("wi_0", "wi_1") if gated else ("wi",)
    mlp = {f"mlp/{name}/kernel": (D, F) for name in inner} | {"mlp/wo/kernel": (F, D)}
    norms = {
        "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
        "decoder": (
            "pre_self_attention_layer_norm",
            "pre_cross_attention_layer_norm",
            "pre_mlp_layer_norm",
        ),
    }
    attention = {
        "encoder": _attention("attention"),
        "decoder": _attention("self_attention") | _attention("encoder_decoder_attention"),
    }
    shapes = {"token_embedder/embedding": (V, D)}
    if gated:
        shapes["decoder/logits_dense/kernel"] = (D, V)
    for stack, count in LAYERS.items():
        shapes[f"{stack}/relpos_bias/rel_embedding"] = (H, BUCKETS)
        shapes[f"{stack}/{stack}_norm/scale"] = (D,)
        layer_shapes = attention[stack] | mlp | {f"{norm}/scale": (D,) for norm in norms[stack]}
        for layer in range(count):
            shapes |= {
                f"{stack}/layers_{layer}/{name}": shape for name, shape in layer_shapes.items()
            }
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def scalable(params):
    """The same of its scanned network (t5x/examples/scalable_t5): layers on axis 1, heads apart."""
    stacked = {name: value for name, value in params.items() if "/layers_" not in name}
    for stack, count in LAYERS.items():
        bias = stacked.pop(f"{stack}/relpos_bias/rel_embedding")
        stacked[f"{stack}/{stack}/relpos_bias/rel_embedding"] = np.stack([bias] * count, axis=1)
        first = f"{stack}/layers_0/"
        for name in [name.removeprefix(first) for name in params if name.startswith(first)]:
            layers = [params[f"{stack}/layers_{layer}/{name}"] for layer in range(count)]
            if "attention/" in name:
                shape = (H, K, D) if "/out/" in name else (D, H, K)
                layers = [layer.reshape(shape) for layer in layers]
            stacked[f"{stack}/{stack}/{name}"] = np.stack(layers, axis=1)
    return stacked


def zarr(folder, array, chunks):
    """A Zarr 2 array with gzip, as tensorstore writes it."""
    folder.mkdir(parents=True)
    dtype = "bfloat16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.str
    metadata = {
        "zarr_format": 2,
        "shape": array.shape,
        "chunks": chunks,
        "dtype": dtype,
        "order": "C",
        "fill_value": None,
        "filters": None,
        "compressor": {"id": "gzip", "level": 1},
        "dimension_separator": ".",
    }
    (folder / ".zarray").write_text(json.dumps(metadata))
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)]
    for place in itertools.product(*map(range, counts)):
        part = array[tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, chunks, strict=True))]
        whole = np.zeros(chunks, array.dtype)
        whole[tuple(map(slice, part.shape))] = part
        (folder / ".".join(map(str, place))).write_bytes(gzip.compress(whole.tobytes()))


def native(folder, params, step=7, driver="file"):
    """``checkpoint_<step>`` of `checkpoints.Checkpointer`: norms in the index, the rest in Zarr."""
    folder = pathlib.Path(folder) / f"checkpoint_{step}"
    target = {}
    for name, value in params.items():
        if name.endswith("scale"):
            target[name] = value
            continue
        path = f"target.{name.replace('/', '.')}"
        chunks = [max(1, size // 2) if size > 8 else size for size in value.shape]
        zarr(folder / path, value, chunks)
        spec = {"shape": list(value.shape), "chunks": chunks, "compressor": {"id": "gzip"}}
        store = {"driver": driver, "path": f"{path}/"}
        if driver == "gcs":
            store["bucket"] = "t5x-dummy-bucket"
        target[name] = {
            "driver": "zarr",
            "dtype": value.dtype.name,
            "kvstore": store,
            "metadata": spec,
        }
    moments = {name: {"v": np.zeros((3,), np.float32)} for name in params}
    state = {"step": np.asarray(step, np.int32), "param_states": nested(moments)}
    contents = {"version": 3, "optimizer": {"target": nested(target), "state": state}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(contents))
    return str(folder)


def orbax(folder, params, step=7):
    """``checkpoint_<step>/state`` of `OrbaxCheckpointManagerInterface`."""
    state = {
        "target": nested(params),
        "state": {"step": np.int32(step), "param_states": {}},
        "flax_mutables": {},
    }
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)}
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)), force=True)
    return str(pathlib.Path(folder) / f"checkpoint_{step}")


def nested(flat):
    return traverse_util.unflatten_dict(flat, sep="/")
