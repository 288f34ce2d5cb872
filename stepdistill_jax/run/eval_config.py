"""What is scored, and how."""

from __future__ import annotations

import dataclasses

from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import InputError

SPLITS = ("train", "validation", "test")
STEP_NAMES = ("best", "latest", "all")
RELEASE, REPAIRED = "release", "repaired"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Which steps and splits are scored, and how."""

    HEADING = "Evaluation"

    splits: tuple[str, ...] = setting(
        ("test",), "Splits that launch.eval scores.", macro="EVAL_SPLITS", choices=SPLITS
    )
    step: int | str = setting(
        "best",
        "Steps that launch.eval scores: best (on validation), latest, all, or a step's number.",
        macro="EVAL_STEP",
    )
    batch_size: int = setting(
        64, "Examples decoded at once over all devices.", macro="EVAL_BATCH_SIZE", at_least=1
    )
    max_decode_length: int = setting(
        0,
        "Maximum label tokens to decode, EOS included; 0 = enough for the longest gold label. "
        "METHOD 'single_task' may write MAX_RATIONALE_LENGTH and ANSWER_MARKER before them.",
        at_least=0,
    )
    mode: str = setting(
        "decode",
        "How a label is predicted.",
        macro="EVAL_MODE",
        choices={
            "decode": "greedy decoding.",
            "choices": "the most probable label of a closed label set, with probabilities.",
        },
    )
    watch: bool = setting(False, "launch.eval continues until the training run has finished.")
    watch_period: float = setting(
        30.0, "Seconds between two checks of a watched run.", above=0, at_most=3600
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.splits:
            raise InputError(f"EVAL_SPLITS: got (), expected some of {', '.join(SPLITS)}.")
        if not (self.step in STEP_NAMES or (isinstance(self.step, int) and self.step >= 0)):
            raise InputError(
                f"EVAL_STEP: got {self.step!r}, expected {', '.join(STEP_NAMES)} or a step's "
                "number."
            )


@dataclasses.dataclass(frozen=True)
class TeacherEvalConfig:
    """How METHOD 'teacher' is scored."""

    HEADING = "Evaluation"

    parse: str = setting(
        RELEASE,
        "METHOD 'teacher': how released outputs are read.",
        macro="TEACHER_PARSE",
        choices={
            RELEASE: "by the published code's rules, which the paper's accuracies follow.",
            REPAIRED: "by ours, which read more outputs where the label is certain.",
        },
    )
    parameters: float = setting(
        0.0,
        "Parameters of the teacher, for the cost of its annotations; 0 = 540e9 for the released "
        "outputs, else unknown.",
        macro="TEACHER_PARAMETERS",
        at_least=0,
    )

    def __post_init__(self) -> None:
        check(self)
