"""Requests to a teacher and their completions: the plain data of an extraction."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import json

# Purpose of a request: the paper's few-shot question, or the same question with the gold label
# given as a hint, for examples that the teacher got wrong.
ANSWER, HINT = "answer", "hint"
# (example id, purpose, sample).
Slot = tuple[str, str, int]
# Finish reasons of a completion that reached the limit on its tokens: OpenAI's, Anthropic's,
# Google's (in any case), Mistral's.
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length")


def is_cut(finish_reason: str) -> bool:
    """Whether a completion ended because it reached MAX_NEW_TOKENS."""
    return finish_reason.lower() in _CUT


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a chat; `role` is system, user or assistant."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the teacher decodes.

    Attributes:
        temperature: 0 is greedy.
        top_p: probability mass to sample from, in (0, 1].
        max_new_tokens: limit on a completion.
        seed: for sampling, where the endpoint accepts one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Request:
    """One paid request: one sample for one example.

    Attributes:
        purpose: ANSWER or HINT.
        sample: 0 to SAMPLES - 1.
        model: the teacher's name at its endpoint.
        messages: of the chat form; () for plain completion.
        prompt: of plain completion; "" for the chat form.
        stop: texts that end a completion before the teacher writes the next question itself.
        extra: more fields of the body, as a JSON object; "" = none.
    """

    example_id: str
    purpose: str
    sample: int
    model: str
    messages: tuple[Message, ...]
    prompt: str
    stop: tuple[str, ...]
    decoding: Decoding
    extra: str = ""

    @property
    def slot(self) -> Slot:
        """The place in the log that the response fills."""
        return (self.example_id, self.purpose, self.sample)

    @functools.cached_property
    def key(self) -> str:
        """A sha256 of all that decides the completion; equal for requests of equal content."""
        # Not dataclasses.asdict: its copies take longer than all other work on an example.
        content = {
            "sample": self.sample,
            "model": self.model,
            "messages": [vars(message) for message in self.messages],
            "prompt": self.prompt,
            "stop": self.stop,
            "decoding": vars(self.decoding),
        }
        if self.extra:  # Absent where there is none, so that keys of earlier versions stay.
            content["extra"] = self.extra
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def text(self) -> str:
        """All text that the teacher reads, for counting."""
        return self.prompt or "\n".join(message.content for message in self.messages)


@dataclasses.dataclass(frozen=True)
class Completion:
    """What an endpoint returned.

    Attributes:
        finish_reason: stop, length, content_filter, or the endpoint's own word.
        prompt_tokens, completion_tokens: the endpoint's counts; None where it reports none.
        model: the name that the endpoint reports.
        seconds: from sending to the last byte, without retries.
        omitted: fields of the request that the endpoint does not take, as "stop, temperature".
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str
    seconds: float
    omitted: str = ""


class Client(abc.ABC):
    """Where completions come from.

    Attributes:
        keeps_requests: requests outlive the process, as offline batches do: the next process gets
            their completions.
    """

    keeps_requests = False

    @abc.abstractmethod
    async def complete(self, request: Request) -> Completion:
        """Sends a request, and retries it where that may help.

        Raises:
            RequestError: this request has no completion; others may have one.
            EndpointError: no request gets a completion until the user fixes the named cause.
        """

    def flush(self) -> None:  # noqa: B027 - most clients keep nothing back
        """Call when all completions so far are on disk and nothing more is sent for now."""

    async def close(self) -> None:  # noqa: B027
        """Releases connections and models."""


class RequestError(Exception):
    """One request fails (too long, refused by a filter, malformed response).

    Attributes:
        reason: short and constant, for counting.
        detail: one line, without credentials.
        prompt_tokens, completion_tokens: tokens charged all the same; None where the endpoint
            charged, or may have charged, and reports no count.
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
    """The endpoint fails for every request (invalid key, unknown model, no connection).

    The message is for the user: where, what, remedy, without credentials.

    Attributes:
        may_be_paid: the endpoint may have charged for the request all the same.
    """

    def __init__(self, message: str, may_be_paid: bool = False) -> None:
        super().__init__(message)
        self.may_be_paid = may_be_paid
