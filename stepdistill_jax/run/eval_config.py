"""What a run file says about its evaluation."""

from __future__ import annotations

import dataclasses

from stepdistill_jax.spec import InputError

SPLITS = ("train", "validation", "test")
STEP_NAMES = ("best", "latest", "all")
MODES = ("decode", "choices")
RELEASE, REPAIRED = "release", "repaired"
PARSES = (RELEASE, REPAIRED)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is scored, and how.

    Attributes:
        splits: of `SPLITS`.
        step: ``best`` on validation, ``latest``, ``all``, or a step's number.
        batch_size: rows decoded at once over all devices.
        max_decode_length: tokens of the longest prediction.
        mode: ``decode`` writes the label out, ``choices`` scores a closed label set.
        watch: go on until the training run has finished.
        watch_period: seconds between two looks at a watched run.
    """

    splits: tuple[str, ...] = ("test",)
    step: int | str = "best"
    batch_size: int = 64
    max_decode_length: int = 64
    mode: str = "decode"
    watch: bool = False
    watch_period: float = 30.0

    def __post_init__(self) -> None:
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown or not self.splits:
            raise InputError(f"EVAL_SPLITS is {self.splits!r}: name some of {SPLITS}")
        if not (self.step in STEP_NAMES or (isinstance(self.step, int) and self.step >= 0)):
            raise InputError(
                f"EVAL_STEP is {self.step!r}: expected one of {STEP_NAMES} or a step's number"
            )
        if self.mode not in MODES:
            raise InputError(f"EVAL_MODE is {self.mode!r}: expected one of {MODES}")
        for macro, value in (
            ("EVAL_BATCH_SIZE", self.batch_size),
            ("MAX_DECODE_LENGTH", self.max_decode_length),
        ):
            if value < 1:
                raise InputError(f"{macro} is {value}: expected at least 1")
        if not 0 < self.watch_period <= 3600:
            raise InputError(f"WATCH_PERIOD is {self.watch_period}: expected (0, 3600] seconds")


@dataclasses.dataclass(frozen=True)
class TeacherEvalConfig:
    """How METHOD=teacher is scored.

    Attributes:
        parse: [TEACHER_PARSE] ``release``, the published code's rules, or ``repaired``, ours; only
            for released outputs, since a file of RATIONALES=file:PATH holds labels.
        parameters: [TEACHER_PARAMETERS] of the teacher; 0 = those of PaLM where the outputs are
            the release's by their sha256, else not known.
    """

    parse: str = RELEASE
    parameters: float = 0.0

    def __post_init__(self) -> None:
        if self.parse not in PARSES:
            raise InputError(f"TEACHER_PARSE is {self.parse!r}: expected one of {PARSES}")
        if not 0 <= self.parameters < float("inf"):
            raise InputError(
                f"TEACHER_PARAMETERS is {self.parameters}: expected a number of parameters, or 0 "
                "where it is not known"
            )
