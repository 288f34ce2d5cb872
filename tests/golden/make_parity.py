"""Writes parity.json: what PyTorch's T5 computes, for tests that run without PyTorch.

Needs the extra `test` and the public data sets at ../shared. Weights and synthetic inputs follow
from seeds (`tests/parity/parity_cases.py`); of real inputs only a hash is kept. Run it only after
a change of those, and say so in the commit:

    JAX_PLATFORMS=cpu python tests/golden/make_parity.py [MODEL...]

Without the name of a model it writes all of them. Prints how far ours is from PyTorch,
for each architecture.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "parity"), str(HERE.parent)]

import parity_cases as cases  # noqa: E402
import torch_models  # noqa: E402

SHARED = HERE.parents[2] / "shared"
SPIECE = SHARED / "tokenizer" / "spiece.model"


def rounded(value):
    """Seven digits, a float32's."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def small(config, row):
    """Logits, losses, gradients and tokens of synthetic inputs."""
    params = cases.weights(config)
    model = torch_models.hf_model(config, params)
    inputs, mask, decoder_inputs, decoder_mask = batch = cases.synthetic(config)
    real = decoder_mask > 0
    logits = torch_models.hf_logits(model, inputs, mask, decoder_inputs)[real]
    row["logits"] = cases.difference(
        np.asarray(cases.our_logits(config, params, *batch))[real], logits
    )
    pairs = cases.synthetic_pairs(config)
    check_relu(model, pairs.pairs)
    losses, gradients = torch_models.hf_losses(model, pairs.pairs)
    compare_losses(
        config, params, cases.batch_of_rows(pairs, cases.PACKED_ROWS), losses, gradients, row
    )
    unrolled = dataclasses.replace(config, scan_layers=False)
    batch = cases.batch_of_rows(pairs, cases.UNPACKED_ROWS)
    compare_losses(unrolled, cases.weights(unrolled), batch, losses, gradients, row)
    tokens = generation(config, params, model, cases.synthetic_rows(config), row)
    return {
        "logits": cases.sample(logits),
        "losses": losses,
        "gradients": {name: cases.sample(value) for name, value in gradients.items()},
        "synthetic": tokens,
    }


def check_relu(model, pairs):
    """Ends where rounding could decide whether a ReLU passes its gradient."""
    least = torch_models.least_relu_input(model, pairs)
    if least < cases.LEAST_RELU_INPUT:
        raise SystemExit(f"an input of ReLU is {least:.1e}; take another seed")


def compare_losses(config, params, batch, losses, gradients, row):
    """Adds the largest differences of losses and gradients to the table's row."""
    metrics, gradient = jax.device_get(cases.our_losses(config, params, batch))
    for key in ("label_loss", "rationale_loss"):
        found = abs(float(metrics[key]) / losses[key] - 1)
        row[key] = max(row.get(key, 0.0), found)
    for name, found in cases.gradient_differences(gradient, gradients).items():
        if found > row.get("gradients", 0.0):
            row.update(gradients=found, worst=name)


def generation(config, params, model, rows, row):
    """PyTorch's tokens; adds matches, variety and near ties to the table's row."""
    expected, leads = torch_models.hf_generation(model, rows)
    found = cases.our_generation(config, params, rows)
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    before = row.get("matches", (0, 0, 0, 0))
    counts = (same, len(rows), len(set(map(tuple, expected))), sum(t[-1] == 1 for t in expected))
    row["matches"] = tuple(a + b for a, b in zip(before, counts, strict=True))
    row["lead"] = min(row.get("lead", 1.0), *leads)
    return expected


def main(names) -> None:
    path = HERE / "parity.json"
    goldens = json.loads(path.read_text("utf-8")) if path.exists() else {}
    inputs = cases.real_inputs(SHARED, SPIECE)
    real = [ids for rows in inputs.values() for ids in rows]
    members = cases.cqa_pairs(SHARED, SPIECE)
    for name in names or cases.MODELS:
        config, row = cases.MODELS[name], {}
        golden = small(config, row)
        config = cases.with_t5_vocabulary(config)
        params = cases.weights(config)
        model = torch_models.hf_model(config, params)
        batch, packed = cases.train_batch(members, pack=True)
        check_relu(model, packed)
        compare_losses(config, params, batch, *torch_models.hf_losses(model, packed), row)
        tokens = generation(config, params, model, real, row)
        generation(config, params, model, cases.extreme_inputs(SHARED, SPIECE), row)
        golden["real"] = {
            dataset: {
                "inputs": cases.fingerprint(rows),
                "tokens": [tokens.pop(0) for _ in rows],
            }
            for dataset, rows in inputs.items()
        }
        same, count, distinct, ended = row.pop("matches")
        print(
            f"{name}: logits {row['logits']:.1e}, label loss {row['label_loss']:.1e}, rationale "
            f"loss {row['rationale_loss']:.1e}, gradients {row['gradients']:.1e} ({row['worst']}), "
            f"generation {same}/{count} equal ({distinct} distinct, {ended} end, smallest lead "
            f"{row['lead']:.1e})",
            flush=True,
        )
        if row["lead"] < cases.LEAST_LEAD:
            raise SystemExit(f"{name}: a token leads by {row['lead']:.1e}; take another seed")
        goldens[name] = rounded(golden)
        lines = [f"{json.dumps(key)}: {json.dumps(goldens[key])}" for key in sorted(goldens)]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
