"""The released teacher outputs: read, joined to their examples, and checked for a shift.

The release keeps outputs as lists of strings in row order, without ids. Two checks replace an id:
the count must equal the rows of the split, and the content must fit (`check_alignment`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from stepdistill_jax.data import parse as parser
from stepdistill_jax.data.sources.base import Source, release_split, row_number
from stepdistill_jax.records import (
    JSON_ERRORS,
    Annotation,
    Example,
    ParseFailure,
    decode_utf8,
    json_fault,
    refuse_surrogates,
)
from stepdistill_jax.spec import SEPARATOR, InputError

Parsed = Annotation | ParseFailure

# Examples judged together: few enough to detect a shift that begins within the file, enough that
# no block of the release comes near the threshold.
BLOCK = 200
MIN_BLOCK = 50
MIN_FIT = 0.55


@dataclasses.dataclass(frozen=True)
class ReleasedOutput:
    """One output of the released teacher.

    Attributes:
        format: of `parse.RELEASED`.
        text: as released.
        annotation: what `parse.parse` reads from it.
    """

    format: str
    text: str
    annotation: Parsed

    @property
    def published_label(self) -> str:
        """The label that the paper's code reads from it (`parse.parse_release`)."""
        return parser.parse_release(self.format, self.text)[1]


def output_files(source: Source, data_dir: epath.Path, split: str) -> list[epath.Path]:
    """``<folder>/llm/<split>_CoT_<i>.json`` in numeric order; empty where there are none.

    Raises:
        InputError: a number is missing.
    """
    folder = data_dir / source.folder / "llm"
    stem = f"{release_split(split)}_CoT_"
    numbered = {}
    for path in folder.glob(f"{stem}*.json") if folder.exists() else ():
        match = re.fullmatch(rf"{stem}(\d+)\.json", path.name)
        if match:
            numbered[int(match[1])] = path
    for number in range(len(numbered)):
        if number not in numbered:
            raise InputError(
                f"{folder}: {stem}{number}.json is missing but {stem}{max(numbered)}.json exists. "
                "Fetch the missing file."
            )
    return [numbered[number] for number in sorted(numbered)]


def read_outputs(path: epath.Path) -> list[str]:
    """One file's outputs.

    Raises:
        InputError: the file is not a JSON list of strings in UTF-8.
    """
    text = decode_utf8(path.read_bytes(), path.name)
    try:
        outputs = json.loads(text)
    except JSON_ERRORS as error:
        where = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(
            f"{path.name}{where}: damaged or truncated JSON ({json_fault(error)}). Fetch the file "
            "again."
        ) from error
    if not isinstance(outputs, list):
        raise InputError(
            f"{path.name}: got {type(outputs).__name__}, expected a JSON list. Fetch it again."
        )
    escaped = "\\u" in text
    for number, output in enumerate(outputs):
        if not isinstance(output, str):
            raise InputError(
                f"{path.name}: output {number}: got {type(output).__name__}, expected str. Fetch "
                "the file again."
            )
        if escaped:
            refuse_surrogates(output, f"{path.name}: output {number}")
    return outputs


def _check_count(files: Sequence[epath.Path], counts: Sequence[int], rows: int, data: str) -> None:
    """Names the file that is short or long: all hold the same count but for the last."""
    if sum(counts) == rows:
        return
    batch = max(counts)
    for number, (path, count) in enumerate(zip(files, counts, strict=True)):
        expected = rows - sum(counts[:number]) if number == len(counts) - 1 else batch
        if count != expected:
            raise InputError(
                f"{path.name}: got {count} teacher outputs, expected {expected}: the split has "
                f"{sum(counts)} outputs for the {rows} rows of {data}. Fetch the file again: "
                "outputs are joined by row number."
            )


def read_released(
    source: Source, data_dir: epath.Path, split: str, examples: Sequence[Example], rows: int
) -> dict[str, ReleasedOutput]:
    """Example id -> the released teacher's output; empty where nothing was released.

    Args:
        source: with a `teacher_format`.
        data_dir: the release's folder.
        split: a split of the release.
        examples: the split's examples; row numbers come from their ``where``.
        rows: rows of the split's file, including those that SKIP_BAD_ROWS leaves out.

    Raises:
        InputError: the counts differ, a file is damaged, or the outputs belong to other examples.
    """
    files = output_files(source, data_dir, split)
    if not files or not examples:
        return {}
    batches = [read_outputs(path) for path in files]
    data = examples[0].where.rsplit(":", 1)[0]
    _check_count(files, [len(batch) for batch in batches], rows, data)
    texts = list(itertools.chain.from_iterable(batches))
    outputs = {}
    for example in examples:
        text = texts[int(row_number(example.where))]
        annotation = parser.parse(source.teacher_format, example, text)
        outputs[example.id] = ReleasedOutput(source.teacher_format, text, annotation)
    annotations = [output.annotation for output in outputs.values()]
    check_alignment(source.teacher_format, examples, annotations, f"{files[0].parent}")
    return outputs


def check_alignment(
    format: str, examples: Sequence[Example], parsed: Sequence[Parsed], where: str
) -> None:
    """Refuses outputs that belong to other examples than those they are joined to.

    Each example gets a score from 0 to 1 for how well its output fits it:

    - NLI and word problems: the rationale shares more of the example's words (NLI: of the
      hypothesis') than of either neighbour's; a tie counts half. An absolute overlap would not
      work: e-SNLI has three examples a premise, and ASDiv writes many numbers as words.
    - CQA: the answer is one of the example's five choices.

    The mean over every block of `BLOCK` examples must reach `MIN_FIT`. In the released files the
    lowest block has 0.70 (e-SNLI), 0.94 (ANLI), 0.99 (CQA) and 0.99 (SVAMP). Shifted by one row in
    either direction, the highest has 0.19, 0.03, 0.04 and 0.01; by 2, 3, 7 or 50 rows 0.41, 0.40,
    0.04 and 0.43. Fewer than `MIN_BLOCK` scored examples are too few to judge and pass.

    Raises:
        InputError: names the first block that does not fit.
    """
    scores = np.array(_fit_cqa(parsed) if format == "cqa" else _fit_words(examples, parsed))
    starts = list(range(0, max(1, len(scores) - BLOCK + 1), BLOCK))
    for start, stop in zip(starts, [*starts[1:], len(scores)], strict=True):
        block = scores[start:stop]
        scored = block[~np.isnan(block)]
        if len(scored) < MIN_BLOCK or scored.mean() >= MIN_FIT:
            continue
        raise InputError(
            f"{where}: shifted teacher outputs, or outputs of other data: "
            f"{100 * scored.mean():.0f}% of those for {examples[start].where} to "
            f"{examples[stop - 1].where} fit, expected at least {100 * MIN_FIT:.0f}%. Fetch both "
            "again."
        )


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _fit_words(examples: Sequence[Example], parsed: Sequence[Parsed]) -> list[float]:
    inputs = [_words(example.input.rsplit(SEPARATOR, 1)[-1]) for example in examples]
    scores = []
    for place, output in enumerate(parsed):
        rationale = _words(output.rationale)
        overlap, *others = (
            len(rationale & inputs[p]) / max(1, len(inputs[p]))
            for p in (place, place - 1, place + 1)
            if 0 <= p < len(inputs)
        )
        best = max(others, default=0.0)
        scores.append((overlap > best) + 0.5 * (overlap == best) if rationale else np.nan)
    return scores


def _fit_cqa(parsed: Sequence[Parsed]) -> list[float]:
    misfits = (parser.NOT_A_CHOICE, parser.DISAGREE)
    return [
        1.0 if isinstance(output, Annotation) else 0.0 if output.reason in misfits else np.nan
        for output in parsed
    ]
