"""T5's forward pass in float64 numpy, one example at a time, written from the paper's description.

Knows nothing of packing, masks as arrays, scans or caches: it loops over heads and positions.
"""

import math

import numpy as np


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def bucket(distance, bidirectional):
    buckets, offset = 32, 0
    if bidirectional:
        buckets = 16
        offset = 16 if distance > 0 else 0
        n = abs(distance)
    else:
        n = max(0, -distance)
    exact = buckets // 2
    if n < exact:
        return offset + n
    far = exact + int(math.log(n / exact) / math.log(128 / exact) * (buckets - exact) + 1e-9)
    return offset + min(far, buckets - 1)


def attention(params, x, memory, heads, relpos=None, bidirectional=True, causal=False):
    q, k, v = (
        rows @ params[name]["kernel"]
        for rows, name in ((x, "query"), (memory, "key"), (memory, "value"))
    )
    width = q.shape[-1] // heads
    joined = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            seen = i + 1 if causal else len(memory)
            scores = np.array([q[i, part] @ k[j, part] for j in range(seen)])
            if relpos is not None:
                scores += [relpos[head, bucket(j - i, bidirectional)] for j in range(seen)]
            joined[i, part] = softmax(scores) @ v[:seen, part]
    return joined @ params["out"]["kernel"]


def mlp(params, x):
    if "wi" in params:
        hidden = np.maximum(x @ params["wi"]["kernel"], 0)
    else:
        hidden = gelu(x @ params["wi_0"]["kernel"]) * (x @ params["wi_1"]["kernel"])
    return hidden @ params["wo"]["kernel"]


def numbered(stack):
    return [stack[f"layers_{i}"] for i in range(sum(n.startswith("layers_") for n in stack))]


def encode(params, tokens, heads):
    stack = params["encoder"]
    x = params["token_embedder"]["embedding"][tokens]
    relpos = stack["relpos_bias"]["rel_embedding"]
    for layer in numbered(stack):
        y = rms_norm(x, layer["pre_attention_layer_norm"]["scale"])
        x = x + attention(layer["attention"], y, y, heads, relpos)
        x = x + mlp(layer["mlp"], rms_norm(x, layer["pre_mlp_layer_norm"]["scale"]))
    return rms_norm(x, stack["encoder_norm"]["scale"])


def logits(params, inputs, targets, heads):
    """Scores [T, V] of each target token of one example, float64; unrolled parameters."""
    encoded = encode(params, inputs, heads)
    stack = params["decoder"]
    embedding = params["token_embedder"]["embedding"]
    x = embedding[[0, *targets[:-1]]]
    relpos = stack["relpos_bias"]["rel_embedding"]
    for layer in numbered(stack):
        y = rms_norm(x, layer["pre_self_attention_layer_norm"]["scale"])
        x = x + attention(layer["self_attention"], y, y, heads, relpos, False, True)
        y = rms_norm(x, layer["pre_cross_attention_layer_norm"]["scale"])
        x = x + attention(layer["encoder_decoder_attention"], y, encoded, heads)
        x = x + mlp(layer["mlp"], rms_norm(x, layer["pre_mlp_layer_norm"]["scale"]))
    x = rms_norm(x, stack["decoder_norm"]["scale"])
    if "logits_dense" in stack:
        return x @ stack["logits_dense"]["kernel"]
    return x @ embedding.T / math.sqrt(embedding.shape[1])
