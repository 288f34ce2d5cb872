"""Few-shot CoT as a method: scores the teacher's annotations and trains nothing.

The paper's row of the teacher (Tables 1 and 2, Figs 6 to 9). There are two ways to parse a released
output. The published code's rules give the paper's accuracies (e-SNLI 72.99, ANLI 65.60, CQA 77.23,
SVAMP 74.00 on test). Our parser also reads outputs that those rules miss, if their label is
certain. ``metrics.json`` has both accuracies, whichever is scored.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.data import metrics, release
from stepdistill_jax.data.config import SPLIT_FIELD, DataConfig
from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.data.fetch import SHA256, digest
from stepdistill_jax.data.join import source_fingerprint
from stepdistill_jax.data.read import SplitReader
from stepdistill_jax.data.subsets import carve_validation
from stepdistill_jax.data.teacher_outputs import Parsed, output_files
from stepdistill_jax.records import Annotation, Example, ParseFailure
from stepdistill_jax.run.eval_config import RELEASE, REPAIRED, TeacherEvalConfig
from stepdistill_jax.run.results import NOT_SELECTED, Result, RunFacts, append_result, find_result
from stepdistill_jax.spec import (
    EVAL_FOLDER,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    SCORE_FILE,
    TEACHER,
    InputError,
)

# Step of every result, since nothing is trained.
STEP = 0
# Parameters of PaLM, which wrote the released outputs.
RELEASED_PARAMETERS = 540_000_000_000

NO_OUTPUT, NO_LABEL = "no output", "no label"
# The teacher saw the gold label, which it would repeat.
HINTED = "hinted"
NOT_AS_AGREED = "not in the agreed format"


@dataclasses.dataclass(frozen=True)
class ScoredAnnotation:
    """The teacher's annotation of one example, as it is scored.

    Attributes:
        prediction: the annotation's label; "" if none could be parsed.
        failure: why there is no usable label, else "".
        written: the text, without the further questions that a teacher may append.
        by_parse: parse -> label, if there are two ways to parse.
    """

    example: Example
    prediction: str
    failure: str
    written: str
    by_parse: dict[str, str] = dataclasses.field(default_factory=dict)


def score(
    model_dir: epath.PathLike,
    data: DataConfig,
    config: TeacherEvalConfig,
    split: str,
    encode: Callable[[str], Sequence[int]] | None,
) -> Result:
    """Scores one split and writes the same files as `eval.runner` does for a student.

    Adds a line of step 0 to ``results.jsonl``, or returns the one that is there. An annotation
    costs ``2 * parameters * (tokens read + tokens written)`` FLOPs, in tokens of the student, of
    the input and of `ScoredAnnotation.written`. The few-shot prompt was never released, so its
    tokens are not counted.

    Args:
        data: selects examples and teacher; its settings for training are ignored.
        split: train, validation or test; always all of it, whatever FRACTION is.
        encode: text -> token ids, for the cost; None = no cost.

    Raises:
        InputError: the split has no annotations, or other ones were scored before.
    """
    data = dataclasses.replace(
        data, labels="gold", fraction=1.0, augment="", triage=(), triage_weight=0.0
    )
    folder = epath.Path(model_dir) / EVAL_FOLDER / split / str(STEP)
    fingerprint = source_fingerprint(data, split)
    stored = find_result(model_dir, STEP, split, {})
    if stored is not None:
        _refuse_other_data(folder, fingerprint)
        return stored
    reader = SplitReader(data, split)
    annotations = read_annotations(reader, config.parse)
    golds = [a.example.label or "" for a in annotations]
    predictions = [a.prediction for a in annotations]
    correct = list(map(functools.partial(metrics.correct, data.metric), predictions, golds))
    parameters = int(config.parameters) or released_parameters(reader)
    tokens = None if encode is None else _tokens(annotations, encode)
    result = Result(
        **dataclasses.asdict(_facts(data, parameters)),
        step=STEP,
        split=split,
        **dataclasses.asdict(metrics.accuracy(data.metric, predictions, golds)),
        selected_on=NOT_SELECTED,
        serving_flops=2.0 * parameters * sum(tokens.values()) if parameters and tokens else None,
    )
    records.write_jsonl(folder / PREDICTIONS_FILE, map(_line, annotations, correct))
    facts = dataclasses.asdict(result)
    del facts["selected_on"]
    about = {"data": fingerprint, "mean_tokens": tokens, **_about(data.metric, config, annotations)}
    records.write_atomic(folder / SCORE_FILE, json.dumps({**facts, **about}, indent=1) + "\n")
    append_result(model_dir, result)
    return result


def _about(
    metric: str, config: TeacherEvalConfig, annotations: Sequence[ScoredAnnotation]
) -> dict[str, Any]:
    """How the annotations were parsed and scored, and the accuracy with each way to parse."""
    golds = [a.example.label or "" for a in annotations]
    parses = annotations[0].by_parse
    return {
        "metric": metric,
        "mode": TEACHER,
        **({"parse": config.parse} if parses else {}),
        "accuracy_by_parse": {
            p: metrics.accuracy(metric, [a.by_parse[p] for a in annotations], golds).accuracy
            for p in parses
        },
        "failures": dict(collections.Counter(a.failure for a in annotations if a.failure)),
    }


def read_annotations(reader: SplitReader, parse: str) -> list[ScoredAnnotation]:
    """The teacher's annotation of every example of the reader's split, in the file's order.

    Raises:
        InputError: these examples have no annotations.
    """
    data, source = reader.config, reader.source
    if data.rationale_path and not reader.rationale_files():
        raise InputError(
            f"RATIONALES={data.rationales!r} annotates only {data.train_split}, but EVAL_SPLITS "
            f"names {reader.file_split}. Write a file for each split, with {SPLIT_FIELD} in its "
            "path, or change EVAL_SPLITS."
        )
    parsed = reader.annotations(refuse_hinted=False)
    if not parsed:
        raise InputError(
            f"DATASET={data.dataset!r} has no teacher outputs for {reader.file_split} in "
            f"{reader.data_dir / source.folder / 'llm'}. Add them, or change EVAL_SPLITS."
        )
    examples = reader.file.examples
    if reader.carves and reader.split != "test":
        train, validation = carve_validation(examples, data.data_seed)
        examples = train if reader.split == "train" else validation
    examples = reader.gold(examples, f"{reader.split} is scored by it")
    annotations = []
    for example in examples:
        released = reader.released.get(example.id)
        label = released.published_label.strip() if released else None
        output = parsed.get(example.id)
        annotations.append(_scored(example, output, label, parse, data.metric))
    return annotations


def _scored(
    example: Example, output: Parsed | None, released: str | None, parse: str, metric: str
) -> ScoredAnnotation:
    """`released` is the label that the published code parses; None if it has no rules for it."""
    if isinstance(output, Annotation) and output.hinted:
        return ScoredAnnotation(example, "", HINTED, output.rationale)
    ours = output.label if isinstance(output, Annotation) else ""
    prediction = released if released is not None and parse == RELEASE else ours
    if _is_usable(prediction, example, metric):
        failure = ""
    elif isinstance(output, ParseFailure):
        failure = output.reason
    elif output is None:
        failure = NO_OUTPUT
    else:
        failure = NO_LABEL if released is None and not prediction else NOT_AS_AGREED
    if isinstance(output, ParseFailure):
        written = output.raw
    else:
        written = f"{output.rationale} {output.label}".strip() if output else ""
    by_parse = {} if released is None else {RELEASE: released, REPAIRED: ours}
    return ScoredAnnotation(example, prediction, failure, written, by_parse)


def _is_usable(label: str, example: Example, metric: str) -> bool:
    """Whether the example could have this label."""
    if metric == "equation":
        try:
            evaluate(label)
        except EquationError:
            return False
        return True
    return label in example.choices if example.choices else bool(label)


def _line(annotation: ScoredAnnotation, correct: bool) -> dict[str, Any]:
    line = {
        "id": annotation.example.id,
        "input": annotation.example.input,
        "target": annotation.example.label,
        "prediction": annotation.prediction,
        "correct": correct,
    }
    return {**line, "failure": annotation.failure} if annotation.failure else line


def _tokens(
    annotations: Sequence[ScoredAnnotation], encode: Callable[[str], Sequence[int]]
) -> dict[str, float]:
    """Mean tokens read and written for an annotation."""
    return {
        "read": float(np.mean([len(encode(a.example.input)) for a in annotations])),
        "written": float(np.mean([len(encode(a.written)) for a in annotations])),
    }


def released_parameters(reader: SplitReader) -> int | None:
    """`RELEASED_PARAMETERS` if the split's outputs equal the released files byte for byte."""
    source = reader.source
    if reader.config.rationale_path or not source.teacher_format:
        return None
    sums = release.FILES.get(source.folder, {})
    paths = output_files(source, reader.data_dir, reader.file_split)
    released = all(sums.get(f"llm/{path.name}") == digest(path, SHA256) for path in paths)
    return RELEASED_PARAMETERS if paths and released else None


def _facts(data: DataConfig, parameters: int | None) -> RunFacts:
    return RunFacts(
        dataset=data.name,
        method=TEACHER,
        labels="none",
        rationales=data.rationales,
        fraction=1.0,
        seed=0,
        model=TEACHER,
        data_seed=data.data_seed,
        train_split=data.train_split,
        parameters=parameters,
    )


def _refuse_other_data(folder: epath.Path, fingerprint: str) -> None:
    path = folder / SCORE_FILE
    stored = json.loads(path.read_text()) if path.exists() else {}
    if stored.get("data", fingerprint) != fingerprint:
        raise InputError(
            f"{path}: scored with data {stored['data']}, now {fingerprint}. Restore the old data, "
            f"or delete {folder} and its line in {RESULTS_FILE} to score again."
        )
