"""The predictions of each run, aligned by example over all runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import numpy as np

from stepdistill_jax import records
from stepdistill_jax.report.runs import Line
from stepdistill_jax.report.trivial_baseline import TrivialBaseline, trivial_baseline
from stepdistill_jax.run.results import score_folder
from stepdistill_jax.spec import PREDICTIONS_FILE, InputError

NO_PREDICTIONS = "no predictions"
_FIELDS = ("id", "input", "target", "correct")


@dataclasses.dataclass(frozen=True)
class ScoredExamples:
    """One run's predictions on one split.

    Attributes:
        examples: int [n], numbers shared by all runs: equal for equal id, input and target.
        correct: bool [n].
    """

    examples: np.ndarray
    correct: np.ndarray


class Predictions:
    """Reads the predictions of each run once."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._scored: dict[Hashable, ScoredExamples | str] = {}
        self._baselines: dict[bytes, TrivialBaseline] = {}

    def of(self, line: Line) -> ScoredExamples | str:
        """The predictions behind a result, or why they are unusable.

        Raises:
            InputError: a line is damaged.
        """
        result = line.result
        key = (line.run, result.split, result.step, tuple(sorted(result.settings.items())))
        if key not in self._scored:
            self._scored[key] = self._read(line)
        return self._scored[key]

    def _read(self, line: Line) -> ScoredExamples | str:
        result = line.result
        folder = score_folder(line.folder, result.step, result.split, result.settings)
        path = folder / PREDICTIONS_FILE
        if not path.exists():
            return NO_PREDICTIONS
        examples, correct = [], []
        try:
            for where, row in records.read_jsonl(path):
                missing = [name for name in _FIELDS if name not in row]
                if missing:
                    raise InputError(
                        f"{where}: no {', '.join(missing)}. Delete the file's folder and score the "
                        "run again with launch.eval."
                    )
                # Another DATA_SEED of the demo has the same ids with other inputs.
                key = (str(row["id"]), str(row["input"]), str(row["target"]))
                examples.append(self._numbers.setdefault(key, len(self._numbers)))
                correct.append(bool(row["correct"]))
        except InputError as error:
            raise InputError(f"{path.parent}: {error}") from error
        if len(correct) != result.n or abs(np.mean(correct) - result.accuracy) > 1e-6:
            actual = f"{np.mean(correct):.4f} of {len(correct)}" if correct else "nothing"
            return f"predictions say {actual}, the result {result.accuracy:.4f} of {result.n}"
        return ScoredExamples(np.asarray(examples), np.asarray(correct))

    def trivial_baseline(self, line: Line) -> TrivialBaseline | None:
        """The trivial baseline of a result's test set; None without predictions."""
        scored = self.of(line)
        if isinstance(scored, str):
            return None
        key = np.sort(scored.examples).tobytes()
        if key not in self._baselines:
            texts = [*self._numbers]
            examples = [texts[number] for number in scored.examples]
            inputs, targets = zip(*(example[1:] for example in examples), strict=True)
            self._baselines[key] = trivial_baseline(inputs, targets)
        return self._baselines[key]
