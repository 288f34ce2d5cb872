"""Which requests an example needs, and which annotation its responses make."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping

from stepdistill_jax.data.parse import parse
from stepdistill_jax.records import Example, ParseFailure
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.failure_reasons import CUT
from stepdistill_jax.teacher.prompts import Prompt
from stepdistill_jax.teacher.requests import ANSWER, HINT, Request, is_cut
from stepdistill_jax.teacher.store import Response
from stepdistill_jax.teacher.vote import Annotated, Outcome, annotate, is_right


@dataclasses.dataclass
class ExampleState:
    """One example and its responses so far.

    Attributes:
        unit: a split, or `inputs.ADDED`.
        responses: (purpose, sample) -> response.
        requested: (purpose, sample) that are queued, in flight, or answered in this process.
    """

    unit: str
    example: Example
    responses: dict[tuple[str, int], Response] = dataclasses.field(default_factory=dict)
    requested: set[tuple[str, int]] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class Annotator:
    """What all examples share: the teacher, its prompt and the metric of the data.

    Attributes:
        metric: a key of `data.metrics.METRICS`.
        evaluated: unit -> ids of its validation and test examples. The teacher never gets their
            gold label, and a response that was written with it is not used.
    """

    extract: ExtractConfig
    prompt: Prompt
    metric: str
    evaluated: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def prompt_hash(self) -> str:
        """The prompt's hash, computed once."""
        return self.prompt.hash

    def request(self, state: ExampleState, purpose: str, sample: int) -> Request:
        """One request about an example."""
        return self.prompt.request(state.example, self.extract, purpose, sample)

    def missing(self, state: ExampleState) -> list[tuple[str, int]]:
        """(purpose, sample) of the samples without a response."""
        slots = ((ANSWER, sample) for sample in range(self.extract.samples))
        return [slot for slot in slots if slot not in state.responses]

    def annotated(self, state: ExampleState) -> Annotated | None:
        """The annotation of an example; None before its first response."""
        samples = [
            self.read(state, response)
            for (purpose, sample), response in sorted(state.responses.items())
            if purpose == ANSWER and sample < self.extract.samples
        ]
        if not samples:
            return None
        # A hint that was paid for is used, whatever HINT_WRONG is now.
        hint = state.responses.get((HINT, 0)) if self._may_hint(state) else None
        hinted = None if hint is None else self.read(state, hint)
        return annotate(state.example, samples, hinted, self.metric)

    def may_need_hint(self, state: ExampleState) -> bool:
        """Whether a hint is needed, or may be when all samples have a response."""
        if not self._may_hint(state) or (HINT, 0) in state.responses:
            return False
        if self.missing(state):
            return True
        annotated = self.annotated(state)
        return annotated is not None and not is_right(
            state.example, annotated.unhinted, self.metric
        )

    def open(self, state: ExampleState) -> Iterator[tuple[str, int]]:
        """(purpose, sample) of the requests that an example still needs; marks them requested."""
        slots = self.missing(state)
        if self.extract.hint_wrong and not slots and self.may_need_hint(state):
            slots.append((HINT, 0))
        for slot in slots:
            if slot not in state.requested:
                state.requested.add(slot)
                yield slot

    def read(self, state: ExampleState, response: Response) -> Outcome:
        """The response as parsed; a failed request is a parse failure of the same reason."""
        if response.error:
            return ParseFailure(state.example.id, response.error, "", "")
        # After "stop" the teacher would have written nothing more.
        is_complete = response.finish_reason == "stop"
        outcome = parse(self.prompt.format, state.example, response.text, is_complete)
        if isinstance(outcome, ParseFailure) and is_cut(response.finish_reason):
            return dataclasses.replace(outcome, reason=CUT)
        return outcome

    def _may_hint(self, state: ExampleState) -> bool:
        evaluated = self.evaluated.get(state.unit, ())
        return state.example.label is not None and state.example.id not in evaluated
