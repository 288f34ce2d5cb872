"""ASDiv: word problems in XML, extra inputs for SVAMP's training.

The release has formulas with units, remainders, comparisons and ratios. Only certain gold labels
are used (`gold_label`); all other problems are unlabelled inputs.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from etils import epath

from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.data.sources.base import Options, Source, bad_row, collect
from stepdistill_jax.records import Example
from stepdistill_jax.spec import InputError

FOLDER = "asdiv"
FILE = "ASDiv.xml"

_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


def gold_label(formula: str, answer: str) -> str | None:
    """The left side of ``formula`` where its value is certainly the ``answer``, else None.

    ``7+2=9`` with ``9 (apples)`` gives ``7+2``; ``10/3=3.333`` with ``3.333 (minutes)`` gives
    ``10/3``, the right side being the value as rounded there. None: units in the formula, several
    equations, a remainder (``17/7=2 r3``), a ratio, or an answer that is not the right side.
    """
    sides = [side.strip() for side in formula.split("=")]
    if len(sides) != 2 or not _NUMBER.fullmatch(sides[1]):
        return None
    left, right = sides
    value = answer.split("(")[0].strip().replace(",", "")
    if not _NUMBER.fullmatch(value) or Fraction(value) != Fraction(right):
        return None
    try:
        error = abs(evaluate(left) - Fraction(right))
    except EquationError:
        return None
    decimals = len(right.partition(".")[2])
    rounding = Fraction(1, 2 * 10**decimals) if decimals else Fraction(0)
    return left if error <= rounding else None


def _problems(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """``(file:n, element)`` where n counts the problems from 1: XML keeps no line numbers."""
    if not path.exists():
        raise InputError(
            f"{path}: no such file. Fetch it with python -m launch.prepare --datasets=asdiv, or "
            "set AUGMENT=''."
        )
    try:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    except ElementTree.ParseError as error:
        raise InputError(
            f"{path.name}:{error.position[0]}: damaged or truncated XML ({error}). Fetch the file "
            "again."
        ) from error
    for number, problem in enumerate(root.iter("Problem"), start=1):
        yield f"{path.name}:{number}", problem


def _parse(where: str, problem: Any) -> Example:
    example_id = problem.get("ID", "").strip()
    if not example_id:
        raise bad_row(where, "a Problem without an ID")
    texts = {}
    for tag in ("Body", "Question", "Formula", "Answer"):
        value = (problem.findtext(tag) or "").strip()
        if not value:
            raise bad_row(where, f"problem {example_id} has no {tag}")
        texts[tag] = value
    return Example(
        id=example_id,
        input=f"{texts['Body']}\n{texts['Question']}",
        label=gold_label(texts["Formula"], texts["Answer"]),
        where=where,
    )


def load(data_dir: epath.Path, split: str, options: Options) -> list[Example]:
    """All problems; the label is None where `gold_label` is not certain.

    Raises:
        InputError: a malformed file or problem.
    """
    return collect(_problems(data_dir / FOLDER / FILE), _parse, options)


SOURCE = Source(
    name="asdiv",
    load=load,
    files=lambda data_dir, split, options: [data_dir / FOLDER / FILE],
    splits=("train",),
    metric="equation",
    teacher_format="svamp",
    folder=FOLDER,
)
