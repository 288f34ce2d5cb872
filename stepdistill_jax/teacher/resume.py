"""Where an extraction stands when it starts: responses so far, examples left, tokens paid for."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from stepdistill_jax.records import Example, ParseFailure
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import clients, store
from stepdistill_jax.teacher.annotator import Annotator, ExampleState
from stepdistill_jax.teacher.budget import Budget, Prices, Tokens, total
from stepdistill_jax.teacher.clients.failures import TRANSIENT
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import HINT, is_cut
from stepdistill_jax.teacher.store import ALONE, Response, Sending, Share


@dataclasses.dataclass(frozen=True)
class ResumeState:
    """What is done, and what is left for this worker.

    Attributes:
        states: this worker's examples, within MAX_ROWS, in order.
        selected: all examples that EXTRACT_SPLITS and EXTRACT_INPUTS name.
        beyond: of those, examples that MAX_ROWS leaves out.
        spent: tokens that this worker paid for; a lone process counts everybody's.
        before: tokens that were paid for when there was another number of workers.
        unanswered: this worker's requests without a response; counted as paid for.
        repeated: of those, requests that are sent again; none that is still in a batch.
        transient: failures that may not occur again; their requests are sent again.
        mended: failures under other settings, or all with ASK_FAILED_AGAIN; sent again too.
    """

    states: list[ExampleState]
    selected: int
    beyond: int
    spent: Tokens
    before: Tokens
    unanswered: list[Sending]
    repeated: int
    transient: int
    mended: int

    def budget(self, extract: ExtractConfig, share: Share) -> Budget:
        """This worker's part of MAX_COST, and what it has spent of it."""
        prices = Prices.of(extract)
        if extract.max_cost is None:
            return Budget(prices, None, self.spent)
        before = prices.cost(self.before) or Decimal(0)
        maximum = (Decimal(str(extract.max_cost)) - before) / share.workers
        return Budget(prices, maximum, self.spent)


def load(
    folder: pathlib.Path,
    units: Mapping[str, Sequence[Example]],
    annotator: Annotator,
    share: Share,
    remedy: str = "Repeat its settings to continue it, or set another EXTRACT_DIR.",
) -> ResumeState:
    """Reads the folder of an extraction; `units` are the selected examples by unit.

    Raises:
        InputError: the folder holds responses to other requests: the line, both values, the remedy.
    """
    logged = {unit: store.read_responses(folder, unit) for unit in {*store.units(folder), *units}}
    responses = [response for of_unit in logged.values() for response in of_unit]
    for response in responses:
        if not response.error:
            _check_identity(response, annotator, folder, remedy)
    source = clients.source(annotator.extract)
    states: list[ExampleState] = []
    unselected = transient = mended = 0
    for unit, unit_responses in logged.items():
        by_example = _by_example(unit_responses)
        for example in units.get(unit, ()):
            state = ExampleState(unit, example, by_example.pop(example.id, {}))
            transient += _drop_transient(state)
            mended += _drop_mended(state, annotator, source)
            _check_content(state, annotator)
            states.append(state)
        unselected += len(by_example)
    order = [*units]
    states.sort(key=lambda state: order.index(state.unit))
    chosen = _within(states, annotator.extract.max_rows, unselected)
    unanswered = store.unanswered(folder, responses)
    mine = [sending for sending in unanswered if share in (ALONE, sending.share)]
    done = {response.key for response in responses if response.error not in TRANSIENT}
    # By sending: a line that lies in several files was paid for once.
    paid = {r.send: (r.share, r.charged) for r in responses if r.send}
    paid |= {sending.send: (sending.share, sending.bound) for sending in unanswered}
    is_alone = share == ALONE
    return ResumeState(
        states=[state for state in chosen if share.has(state.example.id)],
        selected=len(states),
        beyond=len(states) - len(chosen),
        spent=total(tokens for owner, tokens in paid.values() if is_alone or owner == share),
        before=total(
            tokens
            for owner, tokens in paid.values()
            if not is_alone and owner.workers != share.workers
        ),
        unanswered=mine,
        repeated=sum(each.key not in done for each in lost_of(mine, annotator.extract)),
        transient=transient,
        mended=mended,
    )


def all_states(
    folder: pathlib.Path,
    unit: str,
    selected: Sequence[ExampleState],
    annotator: Annotator,
    read: Callable[[], Sequence[Example]],
) -> tuple[list[ExampleState], int]:
    """All examples of a unit with responses, besides those that are selected now.

    `read` gives all examples that the unit can have; it is called where others than `selected`
    have responses.

    Returns:
        The examples in the order of `read`, and how many examples with responses it does not have
        with the text that the teacher saw.
    """
    by_example = _by_example(store.read_responses(folder, unit))
    states = {state.example.id: state for state in selected}
    others = by_example.keys() - states.keys()
    if not others:
        return [*selected], 0
    order = []
    for example in read():
        if example.id in others:
            state = ExampleState(unit, example, by_example[example.id])
            try:
                _check_content(state, annotator)
            except InputError:
                continue
            _drop_transient(state)
            states[example.id] = state
        if example.id in states:
            order.append(states.pop(example.id))
    missing = len(others) - sum(state.example.id in others for state in order)
    return [*order, *states.values()], missing


@dataclasses.dataclass(frozen=True)
class Paid:
    """All that counts as paid for in a folder, over all calls and workers.

    Attributes:
        responses: unit -> its log's lines for which a request was sent, failures included.
        lost: sent and never answered; may have been paid for.
        waiting: in offline batches that are not collected; not paid for yet.
    """

    responses: Mapping[str, Sequence[Response]]
    lost: Sequence[Sending]
    waiting: Sequence[Sending]


def read_paid(folder: pathlib.Path, extract: ExtractConfig) -> Paid:
    """Reads it; what lies in several files was paid for once."""
    logged = {unit: store.read_responses(folder, unit) for unit in store.units(folder)}
    unanswered = store.unanswered(folder, [each for of_unit in logged.values() for each in of_unit])
    lost = lost_of(unanswered, extract)
    sent = {
        unit: [*{each.send: each for each in responses if each.send}.values()]
        for unit, responses in logged.items()
    }
    names = {sending.send for sending in lost}
    return Paid(sent, lost, [each for each in unanswered if each.send not in names])


def lost_of(unanswered: Sequence[Sending], extract: ExtractConfig) -> list[Sending]:
    """Requests that get no response any more; only CLIENT "batch" collects batches."""
    return [each for each in unanswered if not (each.batch and extract.client == "batch")]


def _by_example(responses: Sequence[Response]) -> dict[str, dict[tuple[str, int], Response]]:
    """Example id -> (purpose, sample) -> response."""
    by_example: dict[str, dict[tuple[str, int], Response]] = {}
    for response in store.latest(responses).values():
        by_example.setdefault(response.id, {})[response.purpose, response.sample] = response
    return by_example


def _drop_transient(state: ExampleState) -> int:
    """Drops failures that may not occur again; returns how many."""
    slots = [slot for slot, response in state.responses.items() if response.error in TRANSIENT]
    for slot in slots:
        del state.responses[slot]
    return len(slots)


def _drop_mended(state: ExampleState, annotator: Annotator, source: str) -> int:
    """Drops failures whose cause may be gone; returns how many.

    Those are failed requests of another content or at another address, all of them with
    ASK_FAILED_AGAIN, and completions without a label that reached a smaller MAX_NEW_TOKENS.
    """
    extract = annotator.extract
    slots = []
    for slot, response in state.responses.items():
        if response.error:
            has_changed = response.source not in ("", source) or (
                _can_ask(state, slot) and annotator.request(state, *slot).key != response.key
            )
            if has_changed or extract.ask_failed_again:
                slots.append(slot)
        elif is_cut(response.finish_reason):
            is_failure = isinstance(annotator.read(state, response), ParseFailure)
            if is_failure and response.decoding.max_new_tokens < extract.max_new_tokens:
                slots.append(slot)
    for slot in slots:
        del state.responses[slot]
    return len(slots)


def _can_ask(state: ExampleState, slot: tuple[str, int]) -> bool:
    """A hint needs a gold label."""
    return slot[0] != HINT or state.example.label is not None


def _check_identity(
    response: Response, annotator: Annotator, folder: pathlib.Path, remedy: str
) -> None:
    """Raises InputError for a line of another prompt, model or decoding."""
    extract = annotator.extract
    # Each sample has another seed, which is part of the request's key.
    decoding = dataclasses.replace(
        response.decoding, seed=extract.sampling_seed, max_new_tokens=extract.max_new_tokens
    )
    for name, logged, current in (
        ("prompt", response.prompt_hash[:12], annotator.prompt_hash[:12]),
        ("TEACHER_MODEL", response.model, extract.teacher_model),
        ("decoding", decoding, extract.decoding),
    ):
        if logged != current:
            raise InputError(
                f"{folder / response.where}: EXTRACT_DIR holds an extraction with {name} "
                f"{logged!r}, now {current!r}. {remedy}"
            )


def _check_content(state: ExampleState, annotator: Annotator) -> None:
    """Raises InputError where a response belongs to another text than the example has now."""
    example = state.example
    for slot, response in state.responses.items():
        if response.error or not _can_ask(state, slot):
            continue
        request = annotator.request(state, *slot)
        if request.decoding != response.decoding:
            # MAX_NEW_TOKENS may change between two calls.
            request = dataclasses.replace(request, decoding=response.decoding)
        if request.key != response.key:
            raise InputError(
                f"{response.where}: example {response.id} of {state.unit} had another text than it "
                f"has now in {example.where or 'the data'}. Restore the data, or set another "
                "EXTRACT_DIR."
            )


def _within(states: list[ExampleState], maximum: int | None, unselected: int) -> list[ExampleState]:
    """The examples within MAX_ROWS: those with responses, then the first of the others."""
    if maximum is None:
        return states
    room = maximum - unselected - sum(bool(state.responses) for state in states)
    chosen = []
    for state in states:
        if not state.responses:
            if room <= 0:
                continue
            room -= 1
        chosen.append(state)
    return chosen
