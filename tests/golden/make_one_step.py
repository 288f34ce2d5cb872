"""Writes one_step.json: what two AdamW steps of the tiny model report.

Run it only after a change that is meant to change the numbers, and say so in the commit:

    JAX_PLATFORMS=cpu python tests/golden/make_one_step.py
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "train"))

import step_cases as cases  # noqa: E402

from stepdistill_jax.optim import optimizer  # noqa: E402


def main() -> None:
    batch = cases.with_rows(cases.unpacked(15), 16)
    _, metrics = cases.run_step(batch, rule=optimizer(cases.ADAMW, train_steps=10), steps=2)
    (HERE / "one_step.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
