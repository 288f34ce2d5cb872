"""Scores a split: decodes the label stream alone, writes predictions, metrics and results."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from stepdistill_jax import records
from stepdistill_jax.costs import read_costs
from stepdistill_jax.data.pipeline import PairSource, eval_batches
from stepdistill_jax.data.token_shards import Manifest
from stepdistill_jax.data.vocabulary import Vocabulary
from stepdistill_jax.decode.choices import choice_log_probs, choice_probabilities
from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.eval import metrics
from stepdistill_jax.eval.results import (
    METRICS_FILE,
    NOT_SELECTED,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    VALIDATION,
    Result,
    RunFacts,
    append_result,
    find_result,
    mark_selected,
)
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.flops import serving_flops
from stepdistill_jax.model.network import abstract_params, logical_axes
from stepdistill_jax.model.stack import Params
from stepdistill_jax.parallel.place import data_shard, place_batch
from stepdistill_jax.parallel.rules import activation_rules, fitting_rules
from stepdistill_jax.spec import EOS_ID, LABEL, PAD_ID, InputError

SPLITS = ("train", "validation", "test")
STEP_NAMES = ("best", "latest", "all")
MODES = ("decode", "choices")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is scored, and how.

    Attributes:
        splits: of `SPLITS`.
        step: ``best`` on validation, ``latest``, ``all``, or a step's number.
        batch_size: rows decoded at once over all devices.
        max_decode_length: tokens of the longest prediction.
        mode: ``decode`` writes the label out, ``choices`` scores a closed label set.
        watch: go on until the training run has finished.
        watch_period: seconds between two looks at a watched run.
    """

    splits: tuple[str, ...] = ("test",)
    step: int | str = "best"
    batch_size: int = 64
    max_decode_length: int = 64
    mode: str = "decode"
    watch: bool = False
    watch_period: float = 30.0

    def __post_init__(self) -> None:
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown or not self.splits:
            raise InputError(f"EVAL_SPLITS is {self.splits!r}: name some of {SPLITS}")
        if not (self.step in STEP_NAMES or (isinstance(self.step, int) and self.step >= 0)):
            raise InputError(
                f"EVAL_STEP is {self.step!r}: expected one of {STEP_NAMES} or a step's number"
            )
        if self.mode not in MODES:
            raise InputError(f"EVAL_MODE is {self.mode!r}: expected one of {MODES}")
        for macro, value in (
            ("EVAL_BATCH_SIZE", self.batch_size),
            ("MAX_DECODE_LENGTH", self.max_decode_length),
        ):
            if value < 1:
                raise InputError(f"{macro} is {value}: expected at least 1")
        if not 0 < self.watch_period <= 3600:
            raise InputError(f"WATCH_PERIOD is {self.watch_period}: expected (0, 3600] seconds")


class TextSource(PairSource, Protocol):
    """What this module needs of a `token_cache.TokenCache`."""

    def row(self, index: int) -> Mapping[str, Any]:
        """One pair with its texts: id, input, label, gold (None if unlabelled) and choices."""


class SplitCache(TextSource, Protocol):
    """A split's rows that can say what they were made from."""

    @property
    def manifest(self) -> Manifest:
        """Its fingerprint names the data and the vocabulary that a score is of."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one example.

    Attributes:
        row: position in the token cache.
        text: the label that it wrote, or chose.
        ended: EOS came within MAX_DECODE_LENGTH; always true of a choice.
        tokens: written, EOS included; where choices are scored, those of all of them.
        probabilities: choice -> probability; None where the label was decoded.
    """

    row: int
    text: str
    ended: bool
    tokens: int
    probabilities: dict[str, float] | None = None


class Evaluator:
    """Scores parameters on a split; the train loop and the eval binary share it.

    Only the label stream is decoded. Compiled once for each of the few input lengths that
    `pipeline.eval_batches` yields; rows are spread over the mesh.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        config: EvalConfig,
        model: T5Config,
        mesh: Mesh,
        vocabulary: Vocabulary,
        caches: Callable[[str], SplitCache],
        metric: str,
        facts: RunFacts,
    ):
        """Keeps what every evaluation needs.

        Args:
            model_dir: where results go.
            config: how to score.
            model: the model whose parameters will be given.
            mesh: the mesh that they lie on.
            vocabulary: of the token cache.
            caches: split -> its token cache; called once a split.
            metric: a key of `metrics.METRICS`.
            facts: what the run is, for its results.
        """
        self.model_dir = epath.Path(model_dir)
        self.config = config
        self.model = model
        self.mesh = mesh
        self.vocabulary = vocabulary
        self.metric = metric
        self.facts = facts
        self._cache = functools.cache(caches)
        self._rules = fitting_rules(logical_axes(model), abstract_params(model), mesh)

    def evaluate(
        self, params: Params, step: int, split: str, selected_on: str = NOT_SELECTED
    ) -> Result:
        """Scores one split, writes its files, and adds its line to ``results.jsonl``.

        What ``results.jsonl`` holds already is returned as it stands. There is one line a step
        and split: scored in another EVAL_MODE, it keeps its line, and the other mode's files go to
        ``eval/<split>/<step>/<mode>/``.

        Args:
            params: on the mesh.
            step: optimizer steps that they have behind them.
            split: train, validation or test.
            selected_on: ``validation`` where `step` was chosen as the best on it.

        Raises:
            InputError: the split is empty, has no gold label, or no choices to score.
        """
        known = self.known(step, split, selected_on)
        if known is not None:
            return known
        folder = self._folder(step, split)
        start = time.perf_counter()
        cache = self._cache(split)
        predictions = self.predict(params, cache)
        seconds = time.perf_counter() - start
        rows = [cache.row(prediction.row) for prediction in predictions]
        missing = [row["id"] for row in rows if row["gold"] is None]
        if missing:
            raise InputError(
                f"EVAL_SPLITS: {split} has {len(missing)} rows without a gold label, the first is "
                f"{missing[0]}; take the split out"
            )
        golds = [row["gold"] for row in rows]
        score = metrics.accuracy(self.metric, [p.text for p in predictions], golds)
        result = Result(
            **dataclasses.asdict(self.facts),
            step=step,
            split=split,
            **dataclasses.asdict(score),
            selected_on=selected_on,
            **self._cost(step, cache, predictions),
        )
        if jax.process_index() == 0:
            lines = [
                self._line(row, prediction)
                for row, prediction in zip(rows, predictions, strict=True)
            ]
            records.write_jsonl(folder / PREDICTIONS_FILE, lines)
            about = {
                "metric": self.metric,
                "mode": self.config.mode,
                **self._conditions(split),
                "unfinished": sum(not prediction.ended for prediction in predictions),
                "seconds": round(seconds, 3),
                "examples_per_second": round(len(rows) / seconds, 1),
            }
            # Which step is selected may change later; results.jsonl keeps that alone.
            facts = dataclasses.asdict(result)
            del facts["selected_on"]
            text = json.dumps({**facts, **about}, indent=1)
            records.write_atomic(folder / METRICS_FILE, text + "\n")
            append_result(self.model_dir, result)
        return result

    def known(self, step: int, split: str, selected_on: str = NOT_SELECTED) -> Result | None:
        """The result of an earlier evaluation of the same step, split and mode.

        Where `selected_on` says that the step has been selected since, its line says so from now.

        Raises:
            InputError: it was scored on other data or with another MAX_DECODE_LENGTH.
        """
        known = find_result(self.model_dir, step, split)
        if known is not None:
            self._refuse_other_conditions(step, split)
        if known is not None and selected_on == VALIDATION != known.selected_on:
            if jax.process_index() == 0:
                mark_selected(self.model_dir, known)
            known = dataclasses.replace(known, selected_on=selected_on)
        folder = self._folder(step, split)
        if known is not None and folder.name == self.config.mode:
            path = folder / METRICS_FILE
            stored = json.loads(path.read_text()) if path.exists() else None
            known = stored and dataclasses.replace(
                known,
                **{name: stored[name] for name in ("n", "accuracy", "stderr", "serving_flops")},
            )
        if jax.process_count() == 1:
            return known
        # The first process decides for all: they must agree on whether to compute.
        agreed = bool(multihost_utils.broadcast_one_to_all(np.int32(known is not None)))
        return known if agreed else None

    def _cost(self, step: int, cache: TextSource, predictions: list[Prediction]) -> dict[str, Any]:
        """What `step` steps took, where the run noted it, and what an answer takes."""
        spent = read_costs(self.model_dir).get(step)
        inputs = float(np.mean(cache.lengths[f"{LABEL}_inputs"]))
        outputs = float(np.mean([prediction.tokens for prediction in predictions]))
        cost = {} if spent is None else dataclasses.asdict(spent)
        cost.pop("step", None)
        return {**cost, "serving_flops": serving_flops(self.model, inputs, outputs)}

    def _conditions(self, split: str) -> dict[str, Any]:
        """What else decides a score, beside the run and the mode: kept in metrics.json."""
        return {
            "max_decode_length": self.config.max_decode_length,
            "data": self._cache(split).manifest.fingerprint,
        }

    def _refuse_other_conditions(self, step: int, split: str) -> None:
        path = self._folder(step, split) / METRICS_FILE
        stored = json.loads(path.read_text()) if path.exists() else {}
        for name, now in self._conditions(split).items():
            if name in stored and stored[name] != now:
                what = "data and vocabulary" if name == "data" else name.upper()
                raise InputError(
                    f"{path}: this step was scored with {what} {stored[name]}, now {now}; to score "
                    f"it anew, delete {path.parent} and the line of step {step}, {split}, in "
                    f"{self.model_dir / RESULTS_FILE}; else take the old {what} back"
                )

    def _folder(self, step: int, split: str) -> epath.Path:
        folder = self.model_dir / "eval" / split / str(step)
        path = folder / METRICS_FILE
        if path.exists() and json.loads(path.read_text())["mode"] != self.config.mode:
            return folder / self.config.mode
        return folder

    def _line(self, row: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        line = {
            "id": row["id"],
            "input": row["input"],
            "target": row["gold"],
            "prediction": prediction.text,
            "correct": metrics.correct(self.metric, prediction.text, row["gold"]),
        }
        if prediction.probabilities is not None:
            line["probabilities"] = prediction.probabilities
        return line

    def predict(self, params: Params, cache: TextSource) -> list[Prediction]:
        """The model's label for every row of a token cache, in the cache's order.

        Raises:
            InputError: EVAL_MODE is choices, and a row has none.
        """
        score = self._choose if self.config.mode == "choices" else self._decode
        part, parts = data_shard(self.mesh)
        predictions: list[Prediction] = []
        pending: Callable[[], list[Prediction]] | None = None
        # One that the shards divide, so that every process holds as many rows.
        batch_size = math.ceil(self.config.batch_size / parts) * parts
        choices = self._choice_ids(cache) if self.config.mode == "choices" else None
        for index, inputs, segment_ids in eval_batches(cache, batch_size):
            # Padding rows are zeros, so that rows count from 1.
            batch = {"row": index + 1, "inputs": inputs, "segment_ids": segment_ids}
            if choices is not None:
                batch["choices"] = np.where((index < 0)[:, None, None], PAD_ID, choices[index])
            mine = {name: np.split(array, parts)[part] for name, array in batch.items()}
            placed = place_batch(mine, self.mesh)
            with activation_rules(self._rules, self.mesh):
                read = score(params, placed, cache)
            # Texts are made while the device is at the next batch.
            if pending is not None:
                predictions.extend(pending())
            pending = read
        if pending is not None:
            predictions.extend(pending())
        return sorted(predictions, key=lambda prediction: prediction.row)

    def _decode(
        self, params: Params, batch: Mapping[str, jax.Array], cache: TextSource
    ) -> Callable[[], list[Prediction]]:
        """Starts decoding a batch; the returned function waits for it."""
        del cache
        length = self.config.max_decode_length
        tokens = greedy(self.model, params, batch["inputs"], batch["segment_ids"], length)

        def read() -> list[Prediction]:
            return [
                Prediction(
                    row,
                    self.vocabulary.decode(ids.tolist()),
                    EOS_ID in ids,
                    int(np.count_nonzero(ids)),
                )
                for row, ids in _real_rows(batch["row"], tokens)
            ]

        return read

    def _choose(
        self, params: Params, batch: Mapping[str, jax.Array], cache: TextSource
    ) -> Callable[[], list[Prediction]]:
        """Starts scoring a batch's choices; the returned function waits for it."""
        log_probs = choice_log_probs(
            self.model, params, batch["inputs"], batch["segment_ids"], batch["choices"]
        )
        probabilities = choice_probabilities(log_probs)

        def read() -> list[Prediction]:
            predictions = []
            for row, values in _real_rows(batch["row"], probabilities):
                choices = _distinct(cache.row(row)["choices"])
                named = dict(zip(choices, values.tolist(), strict=False))
                best = max(named, key=named.__getitem__)
                tokens = sum(len(self.vocabulary.encode(choice)) + 1 for choice in choices)
                predictions.append(Prediction(row, best, True, tokens, named))
            return predictions

        return read

    def _choice_ids(self, cache: TextSource) -> np.ndarray:
        """Every row's choices as int32 [rows, C, T]: ids and EOS, PAD elsewhere."""
        texts = [_distinct(cache.row(row)["choices"]) for row in range(len(cache))]
        bare = [row for row, choices in enumerate(texts) if not choices]
        if bare:
            raise InputError(
                f"EVAL_MODE='choices' needs a closed label set, and row {cache.row(bare[0])['id']} "
                f"of DATASET={self.facts.dataset!r} has no choices; set EVAL_MODE='decode'"
            )
        ids = {
            choice: [*self.vocabulary.encode(choice), EOS_ID]
            for choice in {choice for choices in texts for choice in choices}
        }
        most = max(len(choices) for choices in texts)
        padded = np.full((len(texts), most, max(map(len, ids.values()))), PAD_ID, np.int32)
        for row, choices in enumerate(texts):
            for number, choice in enumerate(choices):
                padded[row, number, : len(ids[choice])] = ids[choice]
        return padded


def _distinct(choices: Iterable[str]) -> tuple[str, ...]:
    """CQA has rows that offer the same words twice, which would share their probability."""
    return tuple(dict.fromkeys(choices))


def _real_rows(rows: jax.Array, values: jax.Array) -> Iterator[tuple[int, np.ndarray]]:
    """(position in the cache, value) of every row that is no padding, from all processes."""
    numbers, gathered = multihost_utils.process_allgather((rows, values), tiled=True)
    for number, value in zip(numbers, gathered, strict=True):
        if number > 0:
            yield int(number) - 1, value
