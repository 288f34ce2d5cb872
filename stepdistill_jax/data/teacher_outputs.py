"""The released teacher outputs: found, counted, joined to their rows, and checked for a shift.

The release keeps outputs as bare lists of strings in row order, so nothing in a file says which
row an output is about. Two checks stand in for an id: the count must equal the rows of the split,
and the content must fit the row (`check_alignment`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from stepdistill_jax.data import parse as parser
from stepdistill_jax.data.sources.base import Source, release_split, row_number
from stepdistill_jax.records import (
    Annotation,
    Example,
    ParseFailure,
    decode_utf8,
    json_fault,
    refuse_surrogates,
)
from stepdistill_jax.spec import SEPARATOR, InputError

Parsed = Annotation | ParseFailure

# Rows judged together: few enough that a shift which begins within the file is found, enough that
# no block of the release comes near the threshold.
BLOCK = 200
MIN_BLOCK = 50
MIN_FIT = 0.55


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
                f"{folder}: {stem}{number}.json is missing, {stem}{max(numbered)}.json is there; "
                "fetch the missing file"
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
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path.name}:{error.lineno}: not JSON ({json_fault(error)}); the file is damaged "
            "or was cut short: fetch it again"
        ) from error
    if not isinstance(outputs, list):
        raise InputError(f"{path.name}: expected a list, found {type(outputs).__name__}")
    escaped = "\\u" in text
    for number, output in enumerate(outputs):
        if not isinstance(output, str):
            raise InputError(
                f"{path.name}: output {number} is {type(output).__name__}, expected str; fetch "
                "the file again"
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
                f"{path.name}: holds {count} teacher outputs, expected {expected}: the split has "
                f"{sum(counts)} outputs for the {rows} rows of {data}; fetch the file again, since "
                "outputs are joined by row number"
            )


def load_annotations(
    source: Source, data_dir: epath.Path, split: str, examples: Sequence[Example], rows: int
) -> dict[str, Parsed]:
    """Example id -> what the released teacher says about it; empty where nothing was released.

    Args:
        source: with a `teacher_format`.
        data_dir: the release's folder.
        split: a split of the release.
        examples: the split's examples; row numbers come from their ``where``.
        rows: rows of the split's file, those left out by SKIP_BAD_ROWS included.

    Raises:
        InputError: the counts differ, a file is damaged, or the outputs are about other rows.
    """
    texts = load_texts(source, data_dir, split, examples, rows)
    if not texts:
        return {}
    parsed = [
        parser.parse(source.teacher_format, example, texts[example.id]) for example in examples
    ]
    where = output_files(source, data_dir, split)[0].parent
    check_alignment(source.teacher_format, examples, parsed, f"{where}")
    return {annotation.id: annotation for annotation in parsed}


def load_texts(
    source: Source, data_dir: epath.Path, split: str, examples: Sequence[Example], rows: int
) -> dict[str, str]:
    """Example id -> the released output as it came; otherwise as `load_annotations`.

    Raises:
        InputError: the counts differ, or a file is damaged.
    """
    files = output_files(source, data_dir, split)
    if not files or not examples:
        return {}
    outputs: list[str] = []
    counts = []
    for path in files:
        batch = read_outputs(path)
        counts.append(len(batch))
        outputs += batch
    _check_count(files, counts, rows, examples[0].where.rsplit(":", 1)[0])
    return {example.id: outputs[int(row_number(example.where))] for example in examples}


def check_alignment(
    format: str, examples: Sequence[Example], parsed: Sequence[Parsed], where: str
) -> None:
    """Refuses outputs that are about other rows than those they are joined to.

    Each row is scored from 0 to 1 for how well its output fits it:

    - NLI and word problems: the rationale shares more of the row's words (NLI: of the hypothesis')
      than of either neighbour's; a tie counts half. An absolute overlap would not do: e-SNLI asks
      three times about one premise, and ASDiv writes many numbers as words.
    - CQA: the answer is one of the row's five choices.

    The mean over every block of `BLOCK` rows must reach `MIN_FIT`. Over the released files the
    lowest block has 0.70 (e-SNLI), 0.94 (ANLI), 0.99 (CQA) and 0.99 (SVAMP); shifted by one row in
    either direction the highest has 0.19, 0.03, 0.04 and 0.01, by 2, 3, 7 or 50 rows 0.41, 0.40,
    0.04 and 0.43. Fewer than `MIN_BLOCK` scored rows are too few to judge and pass.

    Raises:
        InputError: with the first block that does not fit.
    """
    scores = np.array(_FIT[format](examples, parsed))
    starts = list(range(0, max(1, len(scores) - BLOCK + 1), BLOCK))
    for start, stop in zip(starts, [*starts[1:], len(scores)], strict=True):
        block = scores[start:stop]
        scored = block[~np.isnan(block)]
        if len(scored) < MIN_BLOCK or scored.mean() >= MIN_FIT:
            continue
        raise InputError(
            f"{where}: the teacher outputs for {examples[start].where} to "
            f"{examples[stop - 1].where} fit their rows in {100 * scored.mean():.0f}% of cases "
            f"(at least {100 * MIN_FIT:.0f}% expected): they seem to be shifted or of another "
            "version of the data; fetch both again"
        )


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _fit_words(examples: Sequence[Example], parsed: Sequence[Parsed]) -> list[float]:
    inputs = [_words(example.input.rsplit(SEPARATOR, 1)[-1]) for example in examples]
    scores = []
    for place, output in enumerate(parsed):
        rationale = _words(output.rationale)
        own, *others = (
            len(rationale & inputs[p]) / max(1, len(inputs[p]))
            for p in (place, place - 1, place + 1)
            if 0 <= p < len(inputs)
        )
        best = max(others, default=0.0)
        scores.append((own > best) + 0.5 * (own == best) if rationale else np.nan)
    return scores


def _fit_cqa(examples: Sequence[Example], parsed: Sequence[Parsed]) -> list[float]:
    misfits = (parser.NOT_A_CHOICE, parser.DISAGREE)
    return [
        1.0 if isinstance(output, Annotation) else 0.0 if output.reason in misfits else np.nan
        for output in parsed
    ]


_FIT: dict[str, Callable[[Sequence[Example], Sequence[Parsed]], list[float]]] = {
    "esnli": _fit_words,
    "anli": _fit_words,
    "cqa": _fit_cqa,
    "svamp": _fit_words,
}
