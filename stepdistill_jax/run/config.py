"""What a run is: one frozen dataclass of the modules' own, refusing what contradicts itself."""

from __future__ import annotations

import dataclasses
import os

from stepdistill_jax import hub
from stepdistill_jax.data.config import FILE_PREFIX, OWN, SPLIT_FIELD, DataConfig, TokenConfig
from stepdistill_jax.data.packing import PipelineConfig
from stepdistill_jax.data.triage import WRONG
from stepdistill_jax.data.views import ViewConfig
from stepdistill_jax.data.vocabulary import ENVIRONMENT
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.optim import OptimizerConfig
from stepdistill_jax.parallel.mesh import MeshConfig
from stepdistill_jax.run.eval_config import EvalConfig, TeacherEvalConfig
from stepdistill_jax.spec import (
    METHOD_STREAMS,
    RATIONALE_METHODS,
    READER_METHODS,
    TEACHER,
    InputError,
)

PRNG_IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")

# Macros in which a resumed run may differ from what its folder holds: they change neither the
# parameters that come out nor the figures in results.jsonl, beyond the order of float additions.
FREE_MACROS = frozenset(
    {
        "MODEL_DIR",
        "LOG_PERIOD",
        "CHECKPOINT_PERIOD",
        "KEEP_CHECKPOINTS",
        "TENSORBOARD",
        "PROFILE_STEPS",
        "DATA_DIR",
        "CACHE_DIR",
        "PREFETCH",
        "REMAT",
        "ONE_HOT_EMBEDDING",
        "LOGITS_CHUNK",
        "MESH_REPLICA",
        "MESH_FSDP",
        "MESH_TENSOR",
        "EVAL_SPLITS",
        "EVAL_STEP",
        "EVAL_BATCH_SIZE",
        "WATCH",
        "WATCH_PERIOD",
    }
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that a run is. Fields and macros are described in ``gin/parts/run.gin``."""

    model_dir: str
    data: DataConfig
    tokens: TokenConfig
    pipeline: PipelineConfig
    views: ViewConfig
    model: T5Config
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    eval: EvalConfig
    method: str = "step_by_step"
    seed: int = 0
    train_steps: int = 10_000
    microbatches: int = 1
    log_period: int = 50
    eval_period: int = 250
    checkpoint_period: int = 250
    keep_checkpoints: int = 2
    early_stop_evals: int = 0
    initial_checkpoint: str | None = None
    prng_impl: str = "threefry2x32"
    tensorboard: bool = False
    profile_steps: tuple[int, ...] = ()
    teacher: TeacherEvalConfig = dataclasses.field(default_factory=TeacherEvalConfig)

    def __post_init__(self) -> None:
        self._adopt_tokenizer()
        if not self.model_dir:
            raise InputError(
                "MODEL_DIR is empty: name the run's folder, as in --gin.MODEL_DIR=runs/first"
            )
        for macro, value, choices in (
            ("METHOD", self.method, tuple(METHOD_STREAMS)),
            ("PRNG_IMPL", self.prng_impl, PRNG_IMPLS),
        ):
            if value not in choices:
                raise InputError(f"{macro}={value!r}: expected one of {', '.join(choices)}")
        for macro, least in (
            ("TRAIN_STEPS", 1),
            ("MICROBATCHES", 1),
            ("LOG_PERIOD", 1),
            ("EVAL_PERIOD", 0),
            ("CHECKPOINT_PERIOD", 1),
            ("KEEP_CHECKPOINTS", 1),
            ("EARLY_STOP_EVALS", 0),
        ):
            if getattr(self, macro.lower()) < least:
                raise InputError(
                    f"{macro}={getattr(self, macro.lower())}: expected at least {least}"
                )
        self._refuse_contradictions()

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that METHOD trains."""
        return METHOD_STREAMS[self.method]

    def check_vocabulary(self, size: int) -> None:
        """Checks that the embedding table holds every id of a vocabulary of `size` ids.

        Raises:
            InputError: it does not.
        """
        if self.model.vocab_size < size:
            raise InputError(
                f"VOCAB_SIZE={self.model.vocab_size} rows of embeddings, but VOCABULARY="
                f"{self.tokens.vocabulary!r} has {size} ids; set VOCAB_SIZE to at least {size}"
            )

    def _adopt_tokenizer(self) -> None:
        """Where nothing names a vocabulary, a Hugging Face checkpoint's own comes along with it."""
        name = self.initial_checkpoint or ""
        named = self.tokens.vocabulary or os.environ.get(ENVIRONMENT)
        if name.startswith(hub.PREFIX) and not named:
            own = dataclasses.replace(self.tokens, vocabulary=name)
            object.__setattr__(self, "tokens", own)

    def _refuse_contradictions(self) -> None:
        """Raises on settings that are legal one by one and not together."""
        self._refuse_other_rationales()
        if self.method == "single_task" and self.eval.mode == "choices":
            raise InputError(
                "EVAL_MODE='choices' asks how probable a label is as the whole answer, but with "
                "METHOD='single_task' an answer begins with a rationale; set EVAL_MODE='decode'"
            )
        if self.method == TEACHER:
            self._refuse_data_without_teacher()
        if self.optimizer.warmup_steps > self.train_steps:
            raise InputError(
                f"WARMUP_STEPS={self.optimizer.warmup_steps} is more than "
                f"TRAIN_STEPS={self.train_steps}; lower it"
            )
        traced = self.profile_steps
        if traced and not (len(traced) == 2 and 1 <= traced[0] <= traced[1] <= self.train_steps):
            raise InputError(
                f"PROFILE_STEPS={traced}: expected the first and the last step to trace, between 1 "
                f"and TRAIN_STEPS={self.train_steps}, as (10, 12), or () for none"
            )
        if self.early_stop_evals and not self.eval_period:
            raise InputError(
                f"EARLY_STOP_EVALS={self.early_stop_evals}, but EVAL_PERIOD=0 never evaluates "
                "while training; set EVAL_PERIOD"
            )
        if self.tokens.vocabulary == "demo" and self.data.dataset != "demo":
            raise InputError(
                f"VOCABULARY='demo' knows only the words of DATASET='demo', not of "
                f"{self.data.dataset!r}; set VOCABULARY to a SentencePiece model or bytes"
            )
        self._refuse_short_rows()

    def _refuse_data_without_teacher(self) -> None:
        """Raises where no teacher's labels belong to the data."""
        data = self.data
        if data.rationale_path:
            return
        if data.rationales != "teacher" or data.dataset in OWN:
            raise InputError(
                f"METHOD='teacher' scores a teacher's labels, but RATIONALES={data.rationales!r} "
                f"of DATASET={data.dataset!r} has none; set RATIONALES to 'file:PATH' (with "
                f"{SPLIT_FIELD} in PATH and a label a line)"
                + ("" if data.dataset in OWN else ", or to 'teacher'")
            )

    def _refuse_other_rationales(self) -> None:
        """Raises where METHOD cannot be what it says with these RATIONALES."""
        given = self.data.rationales
        if self.method in RATIONALE_METHODS and given == "none":
            raise InputError(
                f"METHOD={self.method!r} trains on rationales, but RATIONALES='none'; set "
                "METHOD='standard', or RATIONALES to teacher, human or shuffled"
            )
        if self.method not in READER_METHODS:
            return
        weighed = [name for name in self.data.triage if name != WRONG or self.data.labels == "gold"]
        if weighed and self.data.triage_weight:
            raise InputError(
                f"TRIAGE={self.data.triage} with TRIAGE_WEIGHT={self.data.triage_weight} weighs "
                f"rationales in the loss, but METHOD={self.method!r} reads them and has no loss on "
                "them; set TRIAGE_WEIGHT=0.0, which takes them out of what it reads"
            )
        if given == "shuffled":
            raise InputError(
                f"METHOD={self.method!r} reads rationales at test too, where RATIONALES='shuffled' "
                "leaves each with its own row: it would be scored on what it was not trained on; "
                "set RATIONALES to teacher or human"
            )
        if given.startswith(FILE_PREFIX) and SPLIT_FIELD not in given:
            raise InputError(
                f"METHOD={self.method!r} reads rationales at test too, but RATIONALES={given!r} is "
                f"one file, of the training rows; write a file for every split and {SPLIT_FIELD} "
                "in the place of its name"
            )

    def _refuse_short_rows(self) -> None:
        """Raises where a given row length cannot hold the longest sequence that METHOD may make."""
        rationale = "MAX_RATIONALE_LENGTH"
        longest = {
            "INPUT_ROW_LENGTH": ["MAX_INPUT_LENGTH"],
            "LABEL_ROW_LENGTH": ["MAX_LABEL_LENGTH"],
            "RATIONALE_ROW_LENGTH": [rationale],
        }
        if self.method in READER_METHODS:
            longest["INPUT_ROW_LENGTH"].append(rationale)
        if self.method == "single_task":
            # The rationale's EOS gives way to the marker, of one token or more.
            longest["LABEL_ROW_LENGTH"].append(rationale)
        for macro, parts in longest.items():
            row = getattr(self.pipeline, macro.lower())
            tokens = sum(getattr(self.tokens, part.lower()) for part in parts)
            if 0 < row < tokens:
                raise InputError(
                    f"{macro}={row} cannot hold one sequence of {' + '.join(parts)}={tokens}; "
                    f"raise the one, lower the other, or set {macro}=0 for automatic"
                )


# Field of RunConfig -> the config that it holds; gin binds macros to these and to RunConfig.
PARTS: dict[str, type] = {
    "data": DataConfig,
    "tokens": TokenConfig,
    "pipeline": PipelineConfig,
    "views": ViewConfig,
    "model": T5Config,
    "objective": ObjectiveConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "eval": EvalConfig,
    "teacher": TeacherEvalConfig,
}
