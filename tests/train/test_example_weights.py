"""Weights of a triage, from the join through cache and packing to the loss."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from step_cases import MODEL, compile_quickly, initial_params, run_step

from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.join import ColumnConfig, DataConfig
from stepdistill_jax.data.pipeline import PipelineConfig, row_shape, train_iterator
from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.model.network import Transformer
from stepdistill_jax.objective import shift_right
from stepdistill_jax.spec import EXAMPLE_INDEX, STREAMS

__all__ = ["compile_quickly"]

BYTES = dataclasses.replace(MODEL, vocab_size=259)
ROWS = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Six pairs; rationales 1 and 4 weigh a quarter, for the teacher's label there is wrong."""
    folder = tmp_path_factory.mktemp("weights")
    rows = [{"id": n, "input": f"in {n * 'x'}", "label": f"{n % 2}"} for n in range(ROWS)]
    lines = [
        {"id": n, "rationale": f"why {n * 'y'}", "label": f"{(n + (n % 3 == 1)) % 2}"}
        for n in range(ROWS)
    ]
    for name, content in (("rows", rows), ("teacher", lines), ("other", [rows[0]])):
        if name == "other":
            content = [{"id": 0, "input": "other", "label": "0"}]
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text)
    columns = ColumnConfig(
        train_file="rows.jsonl", validation_file="other.jsonl", id_column="id", label_set=("0", "1")
    )
    data = DataConfig(
        "jsonl",
        data_dir=str(folder),
        columns=columns,
        rationales=f"file:{folder / 'teacher.jsonl'}",
        triage=("wrong",),
        triage_weight=0.25,
    )
    return open_or_build(data, TokenConfig(vocabulary="bytes", cache_dir=str(folder)), "train")


@pytest.fixture(scope="module")
def token_losses(cache):
    """Stream -> of every pair its token losses, run through the model alone in a row."""
    apply = jax.jit(Transformer(BYTES).apply)
    params = {"params": initial_params(BYTES)}
    losses = {}
    for stream in STREAMS:
        inputs, targets = (
            [cache[row][f"{stream}_{side}"] for row in range(ROWS)]
            for side in ("inputs", "targets")
        )
        widths = max(map(len, inputs)), max(map(len, targets))
        losses[stream] = []
        for pair in zip(inputs, targets, strict=True):
            # One length for all is one program.
            ids, labels = (
                np.pad(x, (0, w - len(x)))[None] for x, w in zip(pair, widths, strict=True)
            )
            real = [(np.arange(w) < len(x))[None] for x, w in zip(pair, widths, strict=True)]
            here, there = (mask.astype(np.int32) for mask in real)
            logits = apply(params, ids, here, shift_right(labels, there), there)
            log_probs = np.asarray(jax.nn.log_softmax(logits))[0, : len(pair[1])]
            losses[stream].append(-log_probs[np.arange(len(pair[1])), pair[1]])
    return losses


def mean_by_hand(cache, losses, stream, rows):
    weights = [cache[row][f"{stream}_weight"] for row in rows]
    total = sum(w * losses[row].sum() for w, row in zip(weights, rows, strict=True))
    return total / sum(w * losses[row].size for w, row in zip(weights, rows, strict=True))


@pytest.mark.parametrize("pack", [False, True])
def test_a_batchs_loss_is_the_mean_weighted_by_hand(cache, token_losses, pack):
    weights = [cache[row]["rationale_weight"] for row in range(ROWS)]
    assert weights == [1.0, 0.25, 1.0, 1.0, 0.25, 1.0]
    config = PipelineConfig(batch_size=ROWS, pack=pack)
    shape = row_shape(cache.lengths, config, STREAMS)
    batch = dict(
        next(train_iterator(cache, config, shape, STREAMS, process_index=0, process_count=1))
    )
    index = batch.pop(EXAMPLE_INDEX)
    rows = (index[index > 0] - 1).tolist()
    assert {1, 4} & set(rows)
    _, metrics = run_step(batch, model=BYTES)
    label, rationale = (mean_by_hand(cache, token_losses[s], s, rows) for s in STREAMS)
    assert metrics["label_loss"] == pytest.approx(label, rel=1e-5)
    assert metrics["rationale_loss"] == pytest.approx(rationale, rel=1e-5)
    assert metrics["loss"] == pytest.approx((label + rationale) / 2, rel=1e-5)
    tokens = sum(weights[row] * len(cache[row]["rationale_targets"]) for row in rows)
    assert metrics["rationale_tokens"] == pytest.approx(tokens)
