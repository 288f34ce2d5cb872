"""What each run said of each example, lined up over runs."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from stepdistill_jax import records
from stepdistill_jax.report.read import Line
from stepdistill_jax.spec import PREDICTIONS_FILE, InputError

NO_PREDICTIONS = "no predictions"
_FIELDS = ("id", "input", "target", "correct")
# As CQA's inputs list their choices.
_CHOICE = re.compile(r"^\((\w)\) (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Scored:
    """One run's predictions of one split.

    Attributes:
        examples: int [n], numbers that all runs share: equal where id, input and target are.
        correct: bool [n].
    """

    examples: np.ndarray
    correct: np.ndarray


@dataclasses.dataclass(frozen=True)
class Floor:
    """What a test set gives to who reads next to nothing of the input.

    Attributes:
        accuracy: in [0, 1], fitted on the test set itself, so never too low.
        rule: in words.
    """

    accuracy: float
    rule: str


class Predictions:
    """Reads predictions once a run; ``eval/<split>/<step>/predictions.jsonl``."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._rows: list[tuple[str, str, str]] = []
        self._scored: dict[tuple[str, str, int], Scored | str] = {}
        self._floors: dict[bytes, Floor] = {}

    def of(self, line: Line) -> Scored | str:
        """The predictions behind a result, or why there are none to be used.

        Raises:
            InputError: a line is damaged.
        """
        key = (line.run, line.result.split, line.result.step)
        if key not in self._scored:
            self._scored[key] = self._read(line)
        return self._scored[key]

    def _read(self, line: Line) -> Scored | str:
        result = line.result
        path = line.folder / "eval" / result.split / str(result.step) / PREDICTIONS_FILE
        if not path.exists():
            return NO_PREDICTIONS
        examples, correct = [], []
        try:
            for where, row in records.read_jsonl(path):
                missing = [name for name in _FIELDS if name not in row]
                if missing:
                    raise InputError(
                        f"{where}: no {', '.join(missing)}; delete the file's folder and score "
                        "the run anew with launch.eval"
                    )
                examples.append(self._number(row))
                correct.append(bool(row["correct"]))
        except InputError as error:
            raise InputError(f"{path.parent}: {error}") from error
        if len(correct) != result.n or abs(np.mean(correct) - result.accuracy) > 1e-6:
            found = f"{np.mean(correct):.4f} of {len(correct)}" if correct else "nothing"
            return f"predictions say {found}, the result {result.accuracy:.4f} of {result.n}"
        return Scored(np.asarray(examples), np.asarray(correct))

    def _number(self, row: dict[str, str]) -> int:
        # With another DATA_SEED the demo is another world: its ids are the same, its rows not.
        key = (str(row["id"]), str(row["input"]), str(row["target"]))
        if key not in self._numbers:
            self._numbers[key] = len(self._rows)
            self._rows.append(key)
        return self._numbers[key]

    def floor(self, line: Line) -> Floor | None:
        """The floor of the test set that a result is of; None without predictions."""
        scored = self.of(line)
        if isinstance(scored, str):
            return None
        key = np.sort(scored.examples).tobytes()
        if key not in self._floors:
            rows = [self._rows[number] for number in scored.examples]
            self._floors[key] = floor([row[1] for row in rows], [row[2] for row in rows])
        return self._floors[key]


def floor(inputs: Sequence[str], targets: Sequence[str]) -> Floor:
    """The best of three rules, fitted on the very rows that they are scored on.

    The commonest label; one label where the input has a certain word and another where it has not
    (the demo's iron pot is of this kind); and, where inputs list choices as ``(a) text``, the same
    place always.

    Args:
        inputs: texts, at least one.
        targets: gold labels, one an input.
    """
    labels = collections.Counter(targets)
    commonest, most = _first(labels)
    best = Floor(most / len(targets), f"always {commonest!r}")
    rows_of: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for text, target in zip(inputs, targets, strict=True):
        for word in set(text.split()):
            rows_of[word][target] += 1
    for word, inside in sorted(rows_of.items()):
        label, with_it = _first(inside)
        other, without = _first(labels, inside)
        accuracy = (with_it + without) / len(targets)
        # One row more than the commonest label is no rule, but chance on the rows themselves.
        if with_it + without > most + 1 and accuracy > best.accuracy:
            best = Floor(accuracy, f"{label!r} where the input has {word!r}, else {other!r}")
    places = _places(inputs, targets)
    if places is not None:
        place, right = _first(places)
        if right / len(targets) > best.accuracy:
            best = Floor(right / len(targets), f"always choice ({place})")
    return best


def _first(
    counts: collections.Counter[str], less: collections.Counter[str] | None = None
) -> tuple[str, int]:
    """The commonest label, the first in the alphabet among equals, after taking `less` away."""
    best, most = "", 0
    for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count <= most:
            break
        left = count - (less[label] if less else 0)
        if left > most:
            best, most = label, left
    return best, most


def _places(inputs: Sequence[str], targets: Sequence[str]) -> collections.Counter[str] | None:
    """Letter -> how often the target stands there; None where an input lists no choices."""
    places: collections.Counter[str] = collections.Counter()
    for text, target in zip(inputs, targets, strict=True):
        letters = {choice.strip(): letter for letter, choice in _CHOICE.findall(text)}
        if target.strip() not in letters:
            return None
        places[letters[target.strip()]] += 1
    return places
