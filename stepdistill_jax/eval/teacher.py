"""Few-shot CoT as a method: the teacher's own outputs scored as they lie, with nothing trained.

The paper's line of the teacher (Tables 1 and 2, Figs 6 to 9). There are two ways to read a released
output. The published code's rules give the accuracies that go with the paper (e-SNLI 72.99, ANLI
65.60, CQA 77.23, SVAMP 74.00 on test); `teacher.parse` also reads what they miss, where it is
certain, and so gives the teacher its due. Both are in ``metrics.json``, whichever is scored.
"""

from __future__ import annotations

import collections
import dataclasses
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
from stepdistill_jax.data.parse import parse_release
from stepdistill_jax.data.read import Reader
from stepdistill_jax.data.sources.base import row_number
from stepdistill_jax.data.subsets import carve_validation
from stepdistill_jax.data.teacher_outputs import Parsed, output_files, read_outputs
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

# Nothing is trained: the step of every result.
STEP = 0
# Of PaLM, which wrote the released outputs.
RELEASED_PARAMETERS = 540_000_000_000

NO_OUTPUT, NO_LABEL = "no output", "no label"
# With the gold label given, which an answer would repeat.
HINTED = "hinted"
NOT_AS_AGREED = "not in the agreed format"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the teacher said about one row.

    Attributes:
        example: the row.
        prediction: its label; "" where none could be read.
        failure: why no usable label could be read, else "".
        written: its text, the run-on into further questions left out where the end is known.
        by_parse: parse -> label, where there are two.
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
    """Scores one split and writes its files as `eval.runner` does a student's.

    ``results.jsonl`` gets a line of step 0, unless it has one, which is then returned. A
    teacher's answer costs ``2 * parameters * (tokens read + tokens written)`` FLOPs, tokens
    being the student's, of the input and of `Answer.written`: the few-shot prompt, which a real
    call reads besides, was never released and is not counted.

    Args:
        model_dir: where results go.
        data: whose rows and which teacher; what it says of training does not matter here.
        config: how to score.
        split: train, validation or test; all of it, whatever FRACTION is.
        encode: text -> token ids, for the cost; None leaves it open.

    Raises:
        InputError: the split has no teacher outputs, or it was scored before on other ones.
    """
    data = dataclasses.replace(
        data, labels="gold", fraction=1.0, augment="", triage=(), triage_weight=0.0
    )
    folder = epath.Path(model_dir) / EVAL_FOLDER / split / str(STEP)
    fingerprint = source_fingerprint(data, split)
    known = find_result(model_dir, STEP, split)
    if known is not None:
        _refuse_other_data(folder, fingerprint)
        return known
    reader = Reader(data, split)
    answers = read_answers(reader, config.parse)
    right = [metrics.correct(data.metric, a.prediction, a.example.label or "") for a in answers]
    parameters = int(config.parameters) or released_parameters(reader)
    tokens = None if encode is None else _tokens(answers, encode)
    result = Result(
        **dataclasses.asdict(_facts(data, parameters)),
        step=STEP,
        split=split,
        **dataclasses.asdict(_accuracy(data.metric, answers, [a.prediction for a in answers])),
        selected_on=NOT_SELECTED,
        serving_flops=2.0 * parameters * sum(tokens.values()) if parameters and tokens else None,
    )
    records.write_jsonl(folder / PREDICTIONS_FILE, map(_line, answers, right))
    facts = dataclasses.asdict(result)
    del facts["selected_on"]
    about = {"data": fingerprint, "mean_tokens": tokens, **_about(data.metric, config, answers)}
    records.write_atomic(folder / SCORE_FILE, json.dumps({**facts, **about}, indent=1) + "\n")
    append_result(model_dir, result)
    return result


def _about(metric: str, config: TeacherEvalConfig, answers: Sequence[Answer]) -> dict[str, Any]:
    """How the answers were read and scored, and what the other ways of reading would give."""
    return {
        "metric": metric,
        "mode": TEACHER,
        **({"parse": config.parse} if answers[0].by_parse else {}),
        "accuracy_by_parse": {
            parse: _accuracy(metric, answers, [a.by_parse[parse] for a in answers]).accuracy
            for parse in answers[0].by_parse
        },
        "failures": dict(collections.Counter(a.failure for a in answers if a.failure)),
    }


def read_answers(reader: Reader, parse: str) -> list[Answer]:
    """The teacher's answer to every row of the reader's split, in the file's order.

    Raises:
        InputError: there are no answers to these rows.
    """
    data, source = reader.config, reader.source
    if data.rationale_path and not reader.rationale_files():
        raise InputError(
            f"RATIONALES={data.rationales!r} is about the rows of {data.train_split}, and "
            f"{reader.file_split} is to be scored; write {SPLIT_FIELD} in the path, with a file "
            "for each split, or change EVAL_SPLITS"
        )
    examples, rows = reader.read(source, reader.file_split)
    parsed = reader.annotations(examples, rows, refuse_hinted=False)
    if not parsed:
        raise InputError(
            f"DATASET={data.dataset!r} has no teacher outputs for {reader.file_split} in "
            f"{reader.data_dir / source.folder / 'llm'}; supply them, or change EVAL_SPLITS"
        )
    released: list[str] = []
    if source.teacher_format and not data.rationale_path:
        files = output_files(source, reader.data_dir, reader.file_split)
        released = [text for path in files for text in read_outputs(path)]
    if reader.carves and reader.split != "test":
        train, validation = carve_validation(examples, data.data_seed)
        examples = train if reader.split == "train" else validation
    examples = reader.gold(examples, f"{reader.split} is scored by it")
    answers = []
    for example in examples:
        label = None
        if released:
            label = parse_release(source.teacher_format, released[int(row_number(example.where))])
        output = parsed.get(example.id)
        answers.append(_answer(example, output, label and label[1].strip(), parse, data.metric))
    return answers


def _answer(
    example: Example, output: Parsed | None, released: str | None, parse: str, metric: str
) -> Answer:
    """`released` is what the published code reads; None where it has no rules for the output."""
    if isinstance(output, Annotation) and output.hinted:
        return Answer(example, "", HINTED, output.rationale)
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
    return Answer(example, prediction, failure, written, by_parse)


def _is_usable(label: str, example: Example, metric: str) -> bool:
    """Whether a label is one that the row could have."""
    if metric == "equation":
        try:
            evaluate(label)
        except EquationError:
            return False
        return True
    return label in example.choices if example.choices else bool(label)


def _accuracy(
    metric: str, answers: Sequence[Answer], predictions: Sequence[str]
) -> metrics.Accuracy:
    return metrics.accuracy(metric, predictions, [a.example.label or "" for a in answers])


def _line(answer: Answer, correct: bool) -> dict[str, Any]:
    line = {
        "id": answer.example.id,
        "input": answer.example.input,
        "target": answer.example.label,
        "prediction": answer.prediction,
        "correct": correct,
    }
    return {**line, "failure": answer.failure} if answer.failure else line


def _tokens(answers: Sequence[Answer], encode: Callable[[str], Sequence[int]]) -> dict[str, float]:
    """Mean tokens of an answer, read and written."""
    return {
        "read": float(np.mean([len(encode(a.example.input)) for a in answers])),
        "written": float(np.mean([len(encode(a.written)) for a in answers])),
    }


def released_parameters(reader: Reader) -> int | None:
    """`RELEASED_PARAMETERS` where the split's outputs are the release's, byte for byte."""
    source = reader.source
    if reader.config.rationale_path or not source.teacher_format:
        return None
    sums = release.FILES.get(source.folder, {})
    paths = output_files(source, reader.data_dir, reader.file_split)
    known = all(sums.get(f"llm/{path.name}") == digest(path, SHA256) for path in paths)
    return RELEASED_PARAMETERS if paths and known else None


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
            f"{path}: scored with data {stored['data']}, now {fingerprint}; to score it anew, "
            f"delete {folder} and its line in {RESULTS_FILE}; else take the old data back"
        )
