"""The paper's own numbers, to be shown beside ours: Hsieh et al. 2023, arXiv 2305.02301."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

TITLE = (
    "Distilling Step-by-Step! Outperforming Larger Language Models with Less Training Data and "
    "Smaller Model Sizes"
)
LINK = "https://arxiv.org/abs/2305.02301"
MODEL = "T5-Base, 220M"
# Columns of its tables.
DATASETS = ("esnli", "anli", "cqa", "svamp")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: of the row.
        method, rationales: that ours must have to stand beside it; None where ours has no such.
        accuracy: data set -> percent.
        source: where it is printed.
    """

    name: str
    method: str
    rationales: str | None
    accuracy: Mapping[str, float]
    source: str


def _row(name: str, method: str, rationales: str | None, source: str, *percent: float) -> Row:
    return Row(name, method, rationales, dict(zip(DATASETS, percent, strict=True)), source)


_STANDARD = (88.38, 43.58, 62.19, 62.63)
_STEP_BY_STEP = (89.51, 49.58, 63.29, 65.50)

# All with gold labels and all training data, mean over 4 seeds.
TABLE_1 = (
    _row("standard finetuning", "standard", "none", "Table 1", *_STANDARD),
    _row(
        "step-by-step, GPT-NeoX 20B rationales", "step_by_step", None, "Table 1",
        89.12, 48.15, 63.25, 63.00,
    ),
    _row(
        "step-by-step, PaLM 540B rationales", "step_by_step", "teacher", "Table 1",
        *_STEP_BY_STEP,
    ),
)  # fmt: skip
TABLE_2 = (
    _row("standard finetuning", "standard", "none", "Table 2", *_STANDARD),
    _row(
        "single-task: rationale, then label", "single_task", "teacher", "Table 2",
        88.88, 43.50, 61.37, 63.00,
    ),
    _row("multi-task: step-by-step", "step_by_step", "teacher", "Table 2", *_STEP_BY_STEP),
)  # fmt: skip

# The teacher, few-shot PaLM 540B: not printed in a table, but computed from its released outputs.
TEACHER = {"esnli": 72.99, "anli": 65.60, "cqa": 77.23, "svamp": 74.00}
TEACHER_SOURCE = "computed from the released outputs, test split"

# Prose: the share of the labels with which step-by-step is above standard finetuning on all of
# them, gold labels, T5-Base; for three data sets it is told as so many percent fewer examples.
LABELS_NEEDED = {"esnli": 12.5, "anli": 25.0, "cqa": 75.0, "svamp": 80.0}
LABELS_NEEDED_SOURCE = "prose"

# Prose: the smallest student above the teacher, gold labels.
SMALLEST_ABOVE_TEACHER = {"esnli": "220M", "anli": "770M", "cqa": "11B", "svamp": "770M"}
SMALLEST_SOURCE = "prose"
