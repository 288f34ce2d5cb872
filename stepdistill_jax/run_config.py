"""What a run is: one frozen dataclass of the modules' own, refusing what contradicts itself."""

from __future__ import annotations

import dataclasses
import os

from stepdistill_jax import hub
from stepdistill_jax.data.config import DataConfig, TokenConfig
from stepdistill_jax.data.packing import PipelineConfig
from stepdistill_jax.data.vocabulary import ENVIRONMENT
from stepdistill_jax.eval import teacher
from stepdistill_jax.eval.runner import EvalConfig
from stepdistill_jax.eval.teacher import TeacherEvalConfig
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.optim import OptimizerConfig
from stepdistill_jax.parallel.mesh import MeshConfig
from stepdistill_jax.spec import METHOD_STREAMS, InputError

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
        if self.method == "step_by_step" and self.data.rationales == "none":
            raise InputError(
                "METHOD='step_by_step' trains on rationales, but RATIONALES='none'; set "
                "METHOD='standard', or RATIONALES to teacher, human or shuffled"
            )
        if self.method == teacher.METHOD:
            teacher.check(self.data)
        if self.optimizer.warmup_steps > self.train_steps:
            raise InputError(
                f"WARMUP_STEPS={self.optimizer.warmup_steps} is more than "
                f"TRAIN_STEPS={self.train_steps}; lower it"
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
        for name in ("input", "label", "rationale"):
            row = getattr(self.pipeline, f"{name}_row_length")
            longest = getattr(self.tokens, f"max_{name}_length")
            if 0 < row < longest:
                raise InputError(
                    f"{name.upper()}_ROW_LENGTH={row} cannot hold one sequence of "
                    f"MAX_{name.upper()}_LENGTH={longest}; raise the one, lower the other, or set "
                    f"{name.upper()}_ROW_LENGTH=0 for automatic"
                )


# Field of RunConfig -> the config that it holds; gin binds macros to these and to RunConfig.
PARTS: dict[str, type] = {
    "data": DataConfig,
    "tokens": TokenConfig,
    "pipeline": PipelineConfig,
    "model": T5Config,
    "objective": ObjectiveConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "eval": EvalConfig,
    "teacher": TeacherEvalConfig,
}
