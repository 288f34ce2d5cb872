"""Scores a split: decodes the label stream, writes predictions, metrics and results."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from stepdistill_jax import records
from stepdistill_jax.data import metrics, triage
from stepdistill_jax.data.pipeline import SplitCache, TextSource, eval_batches
from stepdistill_jax.data.views import label_after_marker
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.decode.choices import choice_log_probs, choice_probabilities
from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.model.flops import serving_flops
from stepdistill_jax.model.network import abstract_params, logical_axes
from stepdistill_jax.model.stack import Params
from stepdistill_jax.parallel import processes
from stepdistill_jax.parallel.place import data_shard, place_batch
from stepdistill_jax.parallel.rules import activation_rules, fitting_rules
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.costs import read_costs
from stepdistill_jax.run.load import identity, model_name
from stepdistill_jax.run.results import (
    NOT_SELECTED,
    VALIDATION,
    Result,
    RunFacts,
    append_result,
    find_result,
    mark_selected,
    score_folder,
)
from stepdistill_jax.run.splits import open_split, tokens_before_label
from stepdistill_jax.spec import (
    EOS_ID,
    LABEL,
    PAD_ID,
    PREDICTIONS_FILE,
    RATIONALE_METHODS,
    RESULTS_FILE,
    SCORE_FILE,
    InputError,
)

# Lengths of an output are multiples of it, so that splits share a program.
_LENGTH_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The model's prediction for one example.

    Attributes:
        row: position in the token cache.
        text: the predicted label; "" if the output contains none.
        ended: EOS came within the maximum length; always true of a choice.
        tokens: written, EOS included; with EVAL_MODE=choices, those of all choices.
        probabilities: choice -> probability; None if the label was decoded.
        output: the whole output, if the label is only a part of it; else None.
        parsed: the output contains a label.
    """

    row: int
    text: str
    ended: bool
    tokens: int
    probabilities: dict[str, float] | None = None
    output: str | None = None
    parsed: bool = True


def run_facts(config: RunConfig) -> RunFacts:
    """What every result of a run states about the run."""
    return RunFacts(
        dataset=config.data.name,
        method=config.method,
        labels=config.data.labels,
        rationales=config.data.rationales if config.method in RATIONALE_METHODS else "none",
        fraction=config.data.fraction,
        seed=config.seed,
        model=model_name(config.model),
        data_seed=config.data.data_seed,
        train_split=config.data.train_split,
        triage=triage.name(config.data.triage, config.data.triage_weight),
        augment=config.data.augment,
        initial=config.initial_checkpoint or "",
        settings=identity(config),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config.model))),
    )


def results_from_lead(do: Callable[[], list[Result]]) -> list[Result]:
    """The results that `do` returns in the lead, in every process."""
    rows = processes.from_lead(lambda: [dataclasses.asdict(result) for result in do()])
    return [Result(**row) for row in rows]


class Evaluator:
    """Scores parameters on a split, in the train loop and in `launch.eval`.

    Decodes only the label stream. Compiles once for each of the few input lengths that
    `pipeline.eval_batches` yields. The mesh's devices share the rows.

    Attributes:
        decode_length: maximum tokens of an output; None = enough for the longest gold label.
    """

    def __init__(self, config: RunConfig, mesh: Mesh):
        """Opens no split yet.

        Raises:
            InputError: the vocabulary is unavailable, does not fit the model, or cannot write the
                ANSWER_MARKER.
        """
        self.model_dir = epath.Path(config.model_dir)
        self.config = config.eval
        self.model = config.model
        self.mesh = mesh
        self.vocabulary = load_vocabulary(config.tokens.vocabulary)
        config.check_vocabulary(self.vocabulary.size)
        self._before = tokens_before_label(config)
        limit = config.eval.max_decode_length
        self.decode_length = self._before + limit if limit else None
        self._metric = config.data.metric
        self._facts = run_facts(config)
        self._marker = config.views.answer_marker if config.method == "single_task" else None
        self._cache = functools.cache(lambda split: open_split(config, split))
        self._rules = fitting_rules(logical_axes(config.model), abstract_params(config.model), mesh)

    def evaluate(
        self, params: Params, step: int, split: str, selected_on: str = NOT_SELECTED
    ) -> Result:
        """Scores one split, writes its files, and adds its line to ``results.jsonl``.

        A result that is already stored is returned. ``results.jsonl`` has one line a step, split
        and way of scoring (`run.config.SCORING_MACROS`).

        Args:
            params: on the mesh.
            selected_on: ``validation`` if `step` is the best on it.

        Raises:
            InputError: the split is empty, has no gold label, or no choices to score.
        """
        stored = self.stored_result(step, split, selected_on)
        if stored is not None:
            return stored
        start = time.perf_counter()
        cache = self._cache(split)
        predictions = self.predict(params, cache)
        seconds = time.perf_counter() - start
        # All processes have the same predictions; the lead writes them.
        (result,) = results_from_lead(
            lambda: [self._write(cache, predictions, step, split, selected_on, seconds)]
        )
        return result

    def _write(
        self,
        cache: SplitCache,
        predictions: list[Prediction],
        step: int,
        split: str,
        selected_on: str,
        seconds: float,
    ) -> Result:
        """Scores the predictions and writes all files."""
        folder = score_folder(self.model_dir, step, split, self._facts.settings)
        rows = [cache.example(prediction.row) for prediction in predictions]
        missing = [row["id"] for row in rows if row["gold"] is None]
        if missing:
            raise InputError(
                f"EVAL_SPLITS: {split} has {len(missing)} example(s) without a gold label: "
                f"{missing[0]}{', ...' if missing[1:] else ''}. Remove {split} from EVAL_SPLITS."
            )
        golds = [row["gold"] for row in rows]
        score = metrics.accuracy(self._metric, [p.text for p in predictions], golds)
        result = Result(
            **dataclasses.asdict(self._facts),
            step=step,
            split=split,
            **dataclasses.asdict(score),
            selected_on=selected_on,
            **self._cost(step, cache, predictions),
        )
        lines = [
            self._line(row, prediction) for row, prediction in zip(rows, predictions, strict=True)
        ]
        records.write_jsonl(folder / PREDICTIONS_FILE, lines)
        about = {
            "metric": self._metric,
            "mode": self.config.mode,
            "max_decode_length": self._length(cache) - self._before,
            "data": cache.manifest.fingerprint,
            "unfinished": sum(not prediction.ended for prediction in predictions),
            "unparsed": sum(not prediction.parsed for prediction in predictions),
            "seconds": round(seconds, 3),
            "examples_per_second": round(len(rows) / seconds, 1),
        }
        # Only results.jsonl stores the selection, since it may change later.
        facts = dataclasses.asdict(result)
        del facts["selected_on"]
        records.write_atomic(folder / SCORE_FILE, json.dumps({**facts, **about}, indent=1) + "\n")
        append_result(self.model_dir, result)
        return result

    def stored_results(self, step: int, selected_on: str) -> dict[str, Result | None]:
        """Split of EVAL_SPLITS -> its result from an earlier evaluation, or None."""
        return {s: self.stored_result(step, s, selected_on) for s in self.config.splits}

    def stored_result(
        self, step: int, split: str, selected_on: str = NOT_SELECTED
    ) -> Result | None:
        """The result of an earlier evaluation of the same step, split and settings; else None.

        If the step has been selected since, the stored line is updated. The lead reads for all
        processes, which must agree on whether to compute.

        Raises:
            InputError: it was scored on other data.
        """
        self._cache(split)  # Opened by all processes: building a cache needs every one of them.
        stored = results_from_lead(lambda: self._read_result(step, split, selected_on))
        return stored[0] if stored else None

    def _read_result(self, step: int, split: str, selected_on: str) -> list[Result]:
        """The stored result; [] if there is none."""
        result = find_result(self.model_dir, step, split, self._facts.settings)
        if result is None:
            return []
        self._refuse_other_data(step, split)
        if selected_on == VALIDATION != result.selected_on:
            return [mark_selected(self.model_dir, result)]
        return [result]

    def _cost(self, step: int, cache: TextSource, predictions: list[Prediction]) -> dict[str, Any]:
        """The cost of `step` steps, if the run stored it, and of a prediction."""
        spent = read_costs(self.model_dir).get(step)
        inputs = float(np.mean(cache.lengths[f"{LABEL}_inputs"]))
        outputs = float(np.mean([prediction.tokens for prediction in predictions]))
        cost = {} if spent is None else dataclasses.asdict(spent)
        cost.pop("step", None)
        return {**cost, "serving_flops": serving_flops(self.model, inputs, outputs)}

    def _refuse_other_data(self, step: int, split: str) -> None:
        path = score_folder(self.model_dir, step, split, self._facts.settings) / SCORE_FILE
        now = self._cache(split).manifest.fingerprint
        scored = json.loads(path.read_text()).get("data", now) if path.exists() else now
        if scored != now:
            raise InputError(
                f"{path}: this step was scored with data and vocabulary {scored}, now {now}. "
                f"Restore the old ones, or delete {path.parent} and the line of step {step}, "
                f"{split} in {self.model_dir / RESULTS_FILE} to score again."
            )

    def _length(self, cache: TextSource) -> int:
        """Maximum tokens of an output for these examples."""
        if self.decode_length is not None:
            return self.decode_length
        golds = {cache.example(row)["gold"] or "" for row in range(len(cache))}
        longest = max((len(self.vocabulary.encode(gold)) + 1 for gold in golds), default=1)
        # One more token shows that an output does not end where the label does.
        return self._before + math.ceil((longest + 1) / _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE

    def _line(self, row: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
        line = {
            "id": row["id"],
            "input": row["input"],
            "target": row["gold"],
            "prediction": prediction.text,
            "correct": metrics.correct(self._metric, prediction.text, row["gold"]),
        }
        if "read" in row:
            line["read"] = row["read"]
        if prediction.output is not None:
            line["output"] = prediction.output
        if prediction.probabilities is not None:
            line["probabilities"] = prediction.probabilities
        return line

    def predict(self, params: Params, cache: TextSource) -> list[Prediction]:
        """The model's label for every example of a token cache, in the cache's order.

        Raises:
            InputError: EVAL_MODE is choices, and an example has none.
        """
        score = self._choose if self.config.mode == "choices" else self._decode
        part, parts = data_shard(self.mesh)
        predictions: list[Prediction] = []
        pending: Callable[[], list[Prediction]] | None = None
        # A multiple of the shards, so that all processes have equally many rows.
        batch_size = math.ceil(self.config.batch_size / parts) * parts
        length = self._length(cache)
        choices = self._choice_ids(cache) if self.config.mode == "choices" else None
        for index, inputs, segment_ids in eval_batches(cache, batch_size):
            # 0 marks padding rows, so positions count from 1.
            batch = {"row": index + 1, "inputs": inputs, "segment_ids": segment_ids}
            if choices is not None:
                batch["choices"] = np.where((index < 0)[:, None, None], PAD_ID, choices[index])
            local = {name: np.split(array, parts)[part] for name, array in batch.items()}
            placed = place_batch(local, self.mesh)
            with activation_rules(self._rules, self.mesh):
                read = score(params, placed, cache, length)
            # Tokens become texts while the device computes the next batch.
            if pending is not None:
                predictions.extend(pending())
            pending = read
        if pending is not None:
            predictions.extend(pending())
        return sorted(predictions, key=lambda prediction: prediction.row)

    def _decode(
        self, params: Params, batch: Mapping[str, jax.Array], _: TextSource, length: int
    ) -> Callable[[], list[Prediction]]:
        """Starts decoding a batch; the returned function waits for it."""
        inputs, segment_ids = batch["inputs"], batch["segment_ids"]
        tokens = greedy(self.model, params, inputs, segment_ids, length)

        def read() -> list[Prediction]:
            return [self._read(row, ids) for row, ids in _real_rows(batch["row"], tokens)]

        return read

    def _read(self, row: int, ids: np.ndarray) -> Prediction:
        """The prediction in the output tokens of an example."""
        text = self.vocabulary.decode(ids.tolist())
        prediction = Prediction(row, text, EOS_ID in ids, int(np.count_nonzero(ids)))
        if self._marker is None:
            return prediction
        label = label_after_marker(text, self._marker)
        return dataclasses.replace(
            prediction, text=label or "", output=text, parsed=label is not None
        )

    def _choose(
        self, params: Params, batch: Mapping[str, jax.Array], cache: TextSource, _: int
    ) -> Callable[[], list[Prediction]]:
        """Starts scoring a batch's choices; the returned function waits for it."""
        log_probs = choice_log_probs(
            self.model, params, batch["inputs"], batch["segment_ids"], batch["choices"]
        )
        probabilities = choice_probabilities(log_probs)

        def read() -> list[Prediction]:
            predictions = []
            for row, values in _real_rows(batch["row"], probabilities):
                choices = _distinct(cache.example(row)["choices"])
                named = dict(zip(choices, values.tolist(), strict=False))
                best = max(named, key=named.__getitem__)
                tokens = sum(len(self.vocabulary.encode(choice)) + 1 for choice in choices)
                predictions.append(Prediction(row, best, True, tokens, named))
            return predictions

        return read

    def _choice_ids(self, cache: TextSource) -> np.ndarray:
        """The choices of every example as int32 [examples, C, T]: ids and EOS, then PAD."""
        texts = [_distinct(cache.example(row)["choices"]) for row in range(len(cache))]
        without = [row for row, choices in enumerate(texts) if not choices]
        if without:
            raise InputError(
                "EVAL_MODE='choices' needs a closed label set, but example "
                f"{cache.example(without[0])['id']} of DATASET={self._facts.dataset!r} has no "
                "choices. Set EVAL_MODE='decode'."
            )
        ids = {
            choice: [*self.vocabulary.encode(choice), EOS_ID]
            for choice in {choice for choices in texts for choice in choices}
        }
        count = max(len(choices) for choices in texts)
        padded = np.full((len(texts), count, max(map(len, ids.values()))), PAD_ID, np.int32)
        for row, choices in enumerate(texts):
            for number, choice in enumerate(choices):
                padded[row, number, : len(ids[choice])] = ids[choice]
        return padded


def _distinct(choices: Iterable[str]) -> tuple[str, ...]:
    """Without duplicates: some CQA examples repeat a choice, which would split its probability."""
    return tuple(dict.fromkeys(choices))


def _real_rows(rows: jax.Array, values: jax.Array) -> Iterator[tuple[int, np.ndarray]]:
    """(position in the cache, value) of every row except padding, from all processes."""
    numbers, gathered = multihost_utils.process_allgather((rows, values), tiled=True)
    for number, value in zip(numbers, gathered, strict=True):
        if number > 0:
            yield int(number) - 1, value
