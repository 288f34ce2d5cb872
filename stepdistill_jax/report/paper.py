"""The paper's numbers, shown beside ours: Hsieh et al. 2023, arXiv 2305.02301."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

TITLE = (
    "Distilling Step-by-Step! Outperforming Larger Language Models with Less Training Data and "
    "Smaller Model Sizes"
)
LINK = "https://arxiv.org/abs/2305.02301"
MODEL = "T5-Base, 220M"
# In the order of the columns of its tables.
DATASETS = ("esnli", "anli", "cqa", "svamp")


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Attributes:
        method, rationales: of our runs in this row; None if we have no such rationales.
        accuracy: data set -> percent, as printed.
    """

    name: str
    method: str
    rationales: str | None
    accuracy: Mapping[str, str]


def _row(name: str, method: str, rationales: str | None, *percent: float) -> PaperRow:
    accuracy = {name: f"{value:.2f}" for name, value in zip(DATASETS, percent, strict=True)}
    return PaperRow(name, method, rationales, accuracy)


_STANDARD = (88.38, 43.58, 62.19, 62.63)
_STEP_BY_STEP = (89.51, 49.58, 63.29, 65.50)

# All with gold labels and all training data, mean over 4 seeds.
TABLE_1 = (
    _row("standard finetuning", "standard", "none", *_STANDARD),
    _row("step-by-step, GPT-NeoX 20B rationales", "step_by_step", None, 89.12, 48.15, 63.25, 63.00),
    _row("step-by-step, PaLM 540B rationales", "step_by_step", "teacher", *_STEP_BY_STEP),
)
TABLE_2 = (
    _row("standard finetuning", "standard", "none", *_STANDARD),
    _row(
        "single-task: rationale, then label", "single_task", "teacher", 88.88, 43.50, 61.37, 63.00
    ),
    _row("multi-task: step-by-step", "step_by_step", "teacher", *_STEP_BY_STEP),
)

# The teacher, few-shot PaLM 540B: in no table of the paper, computed from its released outputs.
TEACHER = {"esnli": "72.99", "anli": "65.60", "cqa": "77.23", "svamp": "74.00"}
TEACHER_SOURCE = "computed from the released outputs, test split"

# From the text, for T5-Base and gold labels: the share of the labels with which step-by-step
# exceeds standard finetuning on all labels. For three data sets the text states the percentage
# that was saved.
LABELS_NEEDED = {"esnli": "12.5%", "anli": "25.0%", "cqa": "75.0%", "svamp": "80.0%"}
LABELS_NEEDED_SOURCE = "text"

# From the text: the smallest student above the teacher, gold labels.
SMALLEST_ABOVE_TEACHER = {"esnli": "220M", "anli": "770M", "cqa": "11B", "svamp": "770M"}
SMALLEST_SOURCE = "text"
