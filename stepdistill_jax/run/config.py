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
from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import (
    METHOD_STREAMS,
    RATIONALE_METHODS,
    READER_METHODS,
    TEACHER,
    InputError,
)

# Settings that may change when a run is resumed. They do not change its parameters, beyond the
# order of float additions.
FREE_MACROS = frozenset(
    {
        "MODEL_DIR",
        "LOG_PERIOD",
        "CHECKPOINT_PERIOD",
        "KEEP_CHECKPOINTS",
        "TENSORBOARD",
        "PROFILE_STEPS",
        "NOTE",
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
        "MAX_DECODE_LENGTH",
        "WATCH",
        "WATCH_PERIOD",
    }
)
# Settings that a result names in fields of its own: `results.RunFacts`.
NAMED_MACROS = frozenset(
    {
        *("METHOD", "SEED", "INITIAL_CHECKPOINT", "DATASET", "TRAIN_SPLIT", "LABELS"),
        *("RATIONALES", "TRIAGE", "TRIAGE_WEIGHT", "FRACTION", "DATA_SEED", "AUGMENT"),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run."""

    HEADING = "Run"

    model_dir: str = setting(
        "",
        "Folder of the run: checkpoints, metrics and results. A run that it holds is resumed. A "
        "path, or gs://BUCKET/FOLDER.",
    )
    method: str = setting(
        "step_by_step",
        "What is trained.",
        choices={
            "standard": "the label.",
            "step_by_step": "the label and the rationale, as two tasks.",
            "single_task": "the rationale and then the label, in one target.",
            "rationale_as_input": "the label from input and rationale; needs the teacher at test.",
            "pinto": "the same, with counterfactual regularisation.",
            TEACHER: "nothing; the teacher's own labels are scored.",
        },
    )
    seed: int = setting(
        0,
        "Seed of initialisation, dropout and the order of the training pairs.",
        at_least=0,
        at_most=2**63 - 1,
    )
    train_steps: int = setting(10_000, "Optimizer steps.", at_least=1, at_most=2**31 - 1)
    microbatches: int = setting(
        1,
        "Parts of a batch that are computed one after the other to save memory. The loss is the "
        "same, except for dropout's masks.",
        at_least=1,
    )
    log_period: int = setting(50, "Steps between two lines of metrics.jsonl.", at_least=1)
    eval_period: int = setting(
        250,
        "Steps between two evaluations on validation; 0 = only after the last step.",
        at_least=0,
    )
    checkpoint_period: int = setting(250, "Steps between two checkpoints.", at_least=1)
    keep_checkpoints: int = setting(
        2, "Latest checkpoints to keep, besides the best on validation.", at_least=1
    )
    early_stop_evals: int = setting(
        0, "Stop after this many evaluations without improvement; 0 = never.", at_least=0
    )
    initial_checkpoint: str | None = setting(
        None,
        "Parameters to start from: None = random, 'hf:OWNER/NAME', or the folder of a Hugging "
        "Face model, of a T5X checkpoint or of a run (its best step, or RUN/checkpoints/STEP).",
    )
    prng_impl: str = setting(
        "threefry2x32",
        "Random number generator of dropout.",
        choices={
            "threefry2x32": "JAX's default; masks do not depend on the mesh.",
            "rbg": "faster on TPU; masks depend on the mesh.",
            "unsafe_rbg": "as rbg, with weaker keys.",
        },
    )
    tensorboard: bool = setting(
        False, "Write TensorBoard summaries to MODEL_DIR/tensorboard. Imports TensorFlow."
    )
    profile_steps: tuple[int, ...] = setting(
        (),
        "First and last step of a profiler trace, as (10, 12); every host writes its trace to "
        "MODEL_DIR/profile. () = none.",
    )
    note: str = setting("", "Text to print after the results of a finished run.")
    data: DataConfig
    tokens: TokenConfig
    pipeline: PipelineConfig
    views: ViewConfig
    model: T5Config
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    eval: EvalConfig
    teacher: TeacherEvalConfig = dataclasses.field(default_factory=TeacherEvalConfig)

    def __post_init__(self) -> None:
        self._adopt_tokenizer()
        if not self.model_dir:
            raise InputError(
                "MODEL_DIR is empty. Name the run's folder, as in --gin.MODEL_DIR=runs/first."
            )
        check(self)
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
                f"VOCAB_SIZE={self.model.vocab_size} is smaller than VOCABULARY="
                f"{self.tokens.vocabulary!r}, which has {size} ids. Set VOCAB_SIZE to at least "
                f"{size}."
            )

    def _adopt_tokenizer(self) -> None:
        """Where nothing names a vocabulary, a Hugging Face checkpoint's own comes along with it."""
        name = self.initial_checkpoint or ""
        named = self.tokens.vocabulary or os.environ.get(ENVIRONMENT)
        if name.startswith(hub.PREFIX) and not named:
            tokens = dataclasses.replace(self.tokens, vocabulary=name)
            object.__setattr__(self, "tokens", tokens)

    def _refuse_contradictions(self) -> None:
        """Raises on settings that are legal one by one and not together."""
        self._refuse_other_rationales()
        if self.method == "single_task" and self.eval.mode == "choices":
            raise InputError(
                "EVAL_MODE='choices' scores a label as the whole target, but METHOD='single_task' "
                "writes a rationale first. Set EVAL_MODE='decode'."
            )
        if self.method == TEACHER:
            self._refuse_data_without_teacher()
        if self.optimizer.warmup_steps >= self.train_steps:
            raise InputError(
                f"WARMUP_STEPS={self.optimizer.warmup_steps} is not less than "
                f"TRAIN_STEPS={self.train_steps}. Lower it."
            )
        if self.microbatches > self.pipeline.batch_size:
            raise InputError(
                f"MICROBATCHES={self.microbatches} is more than BATCH_SIZE="
                f"{self.pipeline.batch_size}. Lower it."
            )
        traced = self.profile_steps
        if traced and not (len(traced) == 2 and 1 <= traced[0] <= traced[1] <= self.train_steps):
            raise InputError(
                f"PROFILE_STEPS: got {traced}, expected the first and last step to trace, "
                f"between 1 and TRAIN_STEPS={self.train_steps}, or () for none."
            )
        if self.early_stop_evals and not self.eval_period:
            raise InputError(
                f"EARLY_STOP_EVALS={self.early_stop_evals} has no effect with EVAL_PERIOD=0. Set "
                "EVAL_PERIOD."
            )
        if self.tokens.vocabulary == "demo" and self.data.dataset != "demo":
            raise InputError(
                f"VOCABULARY='demo' has only the words of DATASET='demo', got DATASET="
                f"{self.data.dataset!r}. Set VOCABULARY to a SentencePiece model or 'bytes'."
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
                f"of DATASET={data.dataset!r} has none. Set RATIONALES to 'file:PATH' (with "
                f"{SPLIT_FIELD} in PATH and a label per line)"
                + ("." if data.dataset in OWN else ", or to 'teacher'.")
            )

    def _refuse_other_rationales(self) -> None:
        """Raises where METHOD cannot be what it says with these RATIONALES."""
        rationales = self.data.rationales
        if self.method in RATIONALE_METHODS and rationales == "none":
            raise InputError(
                f"METHOD={self.method!r} trains on rationales, but RATIONALES='none'. Set "
                "METHOD='standard', or RATIONALES to 'teacher', 'human' or 'shuffled'."
            )
        if self.method not in READER_METHODS:
            return
        weighed = [name for name in self.data.triage if name != WRONG or self.data.labels == "gold"]
        if weighed and self.data.triage_weight:
            raise InputError(
                f"TRIAGE_WEIGHT={self.data.triage_weight} weighs rationales in the loss, but "
                f"METHOD={self.method!r} has no loss on rationales. Set TRIAGE_WEIGHT=0.0, which "
                "removes them from the inputs."
            )
        if rationales == "shuffled":
            raise InputError(
                f"METHOD={self.method!r} reads rationales at test, where RATIONALES='shuffled' "
                "does not shuffle them. Set RATIONALES to 'teacher' or 'human'."
            )
        if rationales.startswith(FILE_PREFIX) and SPLIT_FIELD not in rationales:
            raise InputError(
                f"METHOD={self.method!r} reads rationales at test, but RATIONALES={rationales!r} "
                f"is one file, for train. Write one file per split, and {SPLIT_FIELD} for its name."
            )

    def _refuse_short_rows(self) -> None:
        """Raises where a row length cannot hold the longest sequence that METHOD may make."""
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
                    f"{macro}={row} cannot hold one sequence of {' + '.join(parts)}={tokens} "
                    f"tokens. Set {macro}=0 to choose it automatically."
                )


# Field of RunConfig -> the dataclass that it holds.
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
