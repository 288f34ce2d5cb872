"""Names shared by every module: streams, batch keys, prefixes, mesh axes, files of a run.

Dimension legend (one-letter names and suffixes of locals in ``model/`` and ``decode/``):

    B rows   L input positions   T target positions   P label targets   R rationale targets
    D embed  H heads  K head dim  F mlp  V vocab  N layers  S cached positions
"""

from __future__ import annotations

# The two tasks of Distilling Step-by-Step. The encoder runs once over the rows of all streams,
# interleaved in this order.
LABEL = "label"
RATIONALE = "rationale"
STREAMS = (LABEL, RATIONALE)

# The four rank-1 int32 features of every SeqIO task, each ending in EOS.
FEATURES = ("label_inputs", "label_targets", "rationale_inputs", "rationale_targets")

# The label from the input and a perturbed rationale: the regulariser of PINTO, made from the same
# cached pair, in the rationale's place.
COUNTERFACTUAL = "counterfactual"

# The method that trains nothing.
TEACHER = "teacher"

# Method -> the streams that it trains. Every method is a configuration of the one train step;
# `teacher` trains nothing: the teacher's own answers are scored.
METHOD_STREAMS: dict[str, tuple[str, ...]] = {
    "standard": (LABEL,),
    "step_by_step": STREAMS,
    "single_task": (LABEL,),
    "rationale_as_input": (LABEL,),
    "pinto": (LABEL, COUNTERFACTUAL),
    TEACHER: (),
}
# Methods that train on rationales, whichever stream they come in by.
RATIONALE_METHODS = ("step_by_step", "single_task", "rationale_as_input", "pinto")
# Methods whose student reads the teacher's rationale, at test time too.
READER_METHODS = ("rationale_as_input", "pinto")

# Prefix style -> (label prefix, rationale prefix). "release" is what the published code uses,
# "paper" what Section 3.2 of the paper prints.
PREFIXES = {"release": ("predict: ", "explain: "), "paper": ("[label] ", "[rationale] ")}

# T5's fixed ids, true of its SentencePiece model, of the byte vocabulary and of the demo's.
PAD_ID = 0
EOS_ID = 1
UNK_ID = 2

# Joins premise and hypothesis in an input text; tokenised as EOS, as in the release.
SEPARATOR = "</s>"

# Mesh axes, outermost first: between slices (DCN), fully sharded parameters, tensor parallel.
MESH_AXES = ("replica", "fsdp", "tensor")
# Rows of a batch are split over these.
BATCH_AXES = ("replica", "fsdp")

# Logical axes that a parameter or an activation may carry; `parallel/rules.py` maps each to the
# mesh. The model knows only these names.
LOGICAL_AXES = (
    "batch",
    "length",
    "embed",
    "joined_kv",
    "heads",
    "kv",
    "mlp",
    "vocab",
    "relpos_buckets",
    "layers",
)

# Batch key -> position of each pair's row in the token cache plus one, 0 where nothing lies.
# Host only: it names the examples of a batch and is never sent to a device.
EXAMPLE_INDEX = "example_index"


def batch_keys(streams: tuple[str, ...]) -> tuple[str, ...]:
    """Device keys of a train batch: five int32 or float32 arrays for each stream.

    For each stream ``s``: ``s_inputs [B,L]``, ``s_inputs_segment_ids [B,L]``,
    ``s_targets [B,T]``, ``s_targets_segment_ids [B,T]``, ``s_weights [B,T]`` (float32).
    Segment ids count from 1 within a row; 0 is padding.
    """
    suffixes = ("inputs", "inputs_segment_ids", "targets", "targets_segment_ids", "weights")
    return tuple(f"{stream}_{suffix}" for stream in streams for suffix in suffixes)


# Every file and folder of MODEL_DIR.
# The resolved configuration, written when the run starts.
CONFIG_FILE = "config.gin"
CHECKPOINTS = "checkpoints"
# A line every LOG_PERIOD steps.
METRICS_FILE = "metrics.jsonl"
# Name, shape and size of every parameter.
PARAMETERS_FILE = "parameters.txt"
# A line per saved or scored step: what the training up to it cost.
COSTS_FILE = "costs.jsonl"
GOODPUT_FILE = "goodput.json"
PROFILE_FOLDER = "profile"
TENSORBOARD_FOLDER = "tensorboard"
# A line per scored step and split.
RESULTS_FILE = "results.jsonl"
EVAL_FOLDER = "eval"
# In eval/SPLIT/STEP: a line per example; the score and the settings that decided it.
PREDICTIONS_FILE = "predictions.jsonl"
SCORE_FILE = "metrics.json"
# The run is over: scored to the end, or stopped by a loss that is not finite.
FINISHED_FILE = "finished.json"
NON_FINITE_FILE = "non_finite.json"


EXIT_INPUT_ERROR = 2
EXIT_NON_FINITE = 3
# What could be done is done, but not all: runs of a sweep failed, a teacher's budget is spent.
EXIT_INCOMPLETE = 4
# sysexits.h EX_UNAVAILABLE: a store, or another process of the run, is out of reach; the same
# command may continue after a while.
EXIT_UNAVAILABLE = 69
# sysexits.h EX_TEMPFAIL: run the same command again and it continues.
EXIT_PREEMPTED = 75


class InputError(ValueError):
    """The user's input is wrong: data, configuration or folder.

    The message says what, where (``file:line`` or gin name), both values and the remedy. The
    binaries print it without a stack trace and exit with `exit_code`.
    """

    exit_code = EXIT_INPUT_ERROR


class UnavailableError(InputError):
    """What a run needs is out of reach for now, as in an outage; its input may be right."""

    exit_code = EXIT_UNAVAILABLE
