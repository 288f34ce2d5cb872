"""An extraction that is ready to run: its settings, prompt and examples."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence

from stepdistill_jax import records
from stepdistill_jax.data import inputs
from stepdistill_jax.records import Example
from stepdistill_jax.spec import CONFIG_FILE
from stepdistill_jax.teacher import (
    clients,
    cost_estimate,
    load,
    prompts,
    resume,
    store,
    token_count,
)
from stepdistill_jax.teacher.annotator import Annotator
from stepdistill_jax.teacher.budget import Bounds
from stepdistill_jax.teacher.load import Extraction
from stepdistill_jax.teacher.progress_bar import notify
from stepdistill_jax.teacher.response_cache import DEFAULT_FOLDER, NONE, ResponseCache
from stepdistill_jax.teacher.resume import ResumeState
from stepdistill_jax.teacher.store import Share

# Responses of earlier calls from which the bounds of prompts are learnt.
_LEARNT = 50


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All of an extraction that needs no endpoint.

    Attributes:
        share: this worker's.
        units: name -> examples.
        tokenizer: TEACHER_TOKENIZER's counter; None where it is empty.
    """

    extraction: Extraction
    share: Share
    annotator: Annotator
    units: Mapping[str, Sequence[Example]]
    tokenizer: token_count.TokenizerCounter | None

    @property
    def folder(self) -> pathlib.Path:
        """EXTRACT_DIR."""
        return pathlib.Path(self.extraction.extract.extract_dir)

    @functools.cached_property
    def counter(self) -> token_count.TokenCounter | None:
        """TEACHER_TOKENIZER's counter, else the endpoint's; None without both."""
        return self.tokenizer or token_count.endpoint_counter(self.extraction.extract)

    def count_prefix(self) -> int | None:
        """Tokens of the prompt before the example; None where nothing counts them.

        Raises:
            EndpointError: the endpoint stopped counting.
        """
        counter = self.counter
        return None if counter is None else counter.text(self.annotator.prompt.prefix_text())

    def load(self) -> ResumeState:
        """Reads EXTRACT_DIR."""
        return resume.load(self.folder, self.units, self.annotator, self.share)

    def cache(self) -> ResponseCache:
        """The cache of ANSWER_CACHE."""
        extract = self.extraction.extract
        if extract.client == "replay":
            return ResponseCache(None, "")
        if extract.answer_cache == NONE:
            return ResponseCache(None, clients.source(extract))
        folder = self.extraction.run.tokens.local_root() / DEFAULT_FOLDER
        if extract.answer_cache:
            folder = pathlib.Path(extract.answer_cache).expanduser()
        return ResponseCache(folder, clients.source(extract))

    def bounds(self, state: ResumeState) -> Bounds:
        """Worst-case tokens, by TEACHER_TOKENIZER, else by the responses so far."""
        bounds = Bounds(None if self.tokenizer is None else self.tokenizer.request)
        counted = (
            (each, slot, response)
            for each in state.states
            for slot, response in each.responses.items()
            if response.prompt_tokens and not response.error
        )
        for each, slot, response in itertools.islice(counted, _LEARNT):
            request = self.annotator.request(each, *slot)
            bounds.learn(request, response.prompt_tokens, response.completion_tokens)
        return bounds

    def shown_prompt(self) -> str:
        """The prompt before the example, and its length."""
        prompt = self.annotator.prompt
        text = prompt.prefix_text()
        counted, size = self.count_prefix(), f"{len(text.encode()):,} bytes"
        if counted is None:
            length = (
                f"{size} before the example (no token count: TEACHER_TOKENIZER is empty and the "
                "endpoint counts none)"
            )
        else:
            length = f"{counted:,} tokens, {size} before the example"
        number = len(prompt.exemplars)
        plural = "s" * (number != 1)
        return (
            f"{text}\n\n{length}; {number} exemplar{plural} from {prompt.source}; "
            f"hash {prompt.hash}"
        )

    def estimate(self) -> str:
        """What is left to ask, and what it costs."""
        extract = self.extraction.extract
        notify(*clients.warnings(extract))
        state = self.load()
        if self.tokenizer is None and self.counter is not None:
            prompts_counted = cost_estimate.MAX_COUNTED
            if extract.hint_wrong:
                prompts_counted += cost_estimate.MAX_HINTS_COUNTED
            notify(f"counting the tokens of up to {prompts_counted} prompts at the endpoint ...")
        lines = cost_estimate.describe(
            state.states,
            self.annotator,
            self.cache(),
            self.bounds(state),
            None if self.counter is None else self.counter.request,
            "counted" if self.tokenizer else "counted by the endpoint",
            state.budget(extract, self.share).left,
        )
        return "\n".join([*self.describe(state), *lines, "no request was sent"])

    def describe(self, state: ResumeState) -> list[str]:
        """What is asked, and what earlier calls left."""
        extract, share = self.extraction.extract, self.share
        answered = sum(bool(each.responses) for each in state.states)
        worker = f", worker {share.worker} of {share.workers}" if share.workers > 1 else ""
        lines = [
            f"{extract.teacher_model or extract.replay} annotates {len(state.states):,} examples "
            f"of {self.extraction.run.data.name} ({', '.join(self.units)}){worker}; {answered:,} "
            f"have responses so far; folder: {self.folder}"
        ]
        if state.transient:
            lines.append(f"{state.transient:,} requests failed for now: they are sent again")
        if state.mended:
            lines.append(
                f"{state.mended:,} requests failed under other settings, or before "
                "ASK_FAILED_AGAIN: they are sent again"
            )
        batched = len(state.unanswered) - len(resume.lost_of(state.unanswered, extract))
        if batched:
            lines.append(f"{batched:,} requests are in submitted batches")
        if state.repeated:
            lines.append(
                f"up to {state.repeated:,} requests were in flight when earlier calls were killed "
                "or failed: they are sent again, and count as paid for"
            )
        return lines

    def write_settings(self, prefix_tokens: int | None) -> None:
        """Writes ``config.gin`` and ``prompt.json``."""
        prompts.write(self.folder, self.annotator.prompt, prefix_tokens)
        records.write_atomic(self.folder / CONFIG_FILE, load.dump(self.extraction))


def prepare(extraction: Extraction, share: Share) -> Prepared:
    """Reads prompt and examples.

    Raises:
        InputError: one of them is wrong.
    """
    extract, data = extraction.extract, extraction.run.data
    prompt = prompts.load(extract, data)
    units = inputs.load(data, extract.extract_splits, extract.extract_inputs)
    logged = store.units(pathlib.Path(extract.extract_dir))
    evaluated = inputs.evaluated(data, {*units, *logged})
    annotator = Annotator(extract, prompt, data.metric, evaluated)
    return Prepared(extraction, share, annotator, units, token_count.tokenizer_counter(extract))
