"""What is asked of a teacher and what comes back: the plain data of an extraction."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Protocol

# What a request is for: the paper's few-shot question, or the question again with the gold label
# given, for rows that the teacher got wrong.
ANSWER, HINT = "answer", "hint"


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a chat; role is system, user or assistant."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a teacher writes.

    Attributes:
        temperature: 0 is greedy.
        top_p: share of the probability that is sampled from, in (0, 1].
        max_new_tokens: written at most.
        seed: of sampling, where the endpoint takes one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Request:
    """One paid question: one sample for one row.

    Attributes:
        row_id: the `Example.id` that it is about.
        purpose: ANSWER or HINT.
        sample: 0 to SAMPLES - 1.
        model: the teacher's name at its endpoint.
        messages: of the chat form; () for plain completion.
        prompt: of plain completion; "" for the chat form.
        stop: texts that end the answer, where the teacher would run on into the next question.
        decoding: how it is written.
    """

    row_id: str
    purpose: str
    sample: int
    model: str
    messages: tuple[Message, ...]
    prompt: str
    stop: tuple[str, ...]
    decoding: Decoding

    @functools.cached_property
    def key(self) -> str:
        """A sha256 of all that decides the answer; equal for equal questions, whatever the row."""
        # Not dataclasses.asdict, whose copies take longer than all the rest of a row's handling.
        content = {
            "sample": self.sample,
            "model": self.model,
            "messages": [vars(message) for message in self.messages],
            "prompt": self.prompt,
            "stop": self.stop,
            "decoding": vars(self.decoding),
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def text(self) -> str:
        """All that the teacher reads, for counting."""
        return self.prompt or "\n".join(message.content for message in self.messages)


@dataclasses.dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: as it came.
        finish_reason: stop, length, content_filter, or what else the endpoint calls it.
        prompt_tokens, completion_tokens: read and written, by the endpoint's own count; None where
            it says none.
        model: the name by which the endpoint answered.
        seconds: from sending to the last byte, retries left out.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str
    seconds: float


class Client(Protocol):
    """Where answers come from."""

    async def complete(self, request: Request) -> Completion:
        """Asks once, with retries of its own.

        Raises:
            RowError: this request has no answer; others may.
            EndpointError: no request will have one until somebody mends what it names.
        """

    async def close(self) -> None:
        """Lets go of connections and models."""


class RequestError(Exception):
    """One request cannot be answered (too long, refused by a filter, malformed answer).

    Attributes:
        reason: short and constant, for counting.
        detail: one line, without credentials.
        prompt_tokens, completion_tokens: paid for all the same; None where something was, or may
            have been, and the endpoint does not say how much.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        prompt_tokens: int | None = 0,
        completion_tokens: int | None = 0,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens


class EndpointError(Exception):
    """The endpoint answers nothing (wrong key or model, no connection after all retries).

    The message is for the user: what, where, the remedy; without credentials. Rows already
    answered are safe.

    Attributes:
        may_be_paid: the request may have been paid for all the same.
    """

    def __init__(self, message: str, may_be_paid: bool = False) -> None:
        super().__init__(message)
        self.may_be_paid = may_be_paid
