"""OpenAI's protocol: the bodies of requests and responses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from stepdistill_jax.data.thoughts import without_thoughts
from stepdistill_jax.teacher.clients import failures, redact
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Completion, Request, RequestError

CHAT_PATH, COMPLETION_PATH = "/chat/completions", "/completions"


def path(request: Request) -> str:
    """The path of a request, after the endpoint's address."""
    return CHAT_PATH if request.messages else COMPLETION_PATH


# What each field does, for the line that tells the user of its loss.
_WITHOUT = {
    "stop": "completions are cut at the prompt's stop text here",
    "temperature": "the model samples at its own temperature, whatever TEMPERATURE says",
    "top_p": "TOP_P has no effect",
    "seed": "SAMPLING_SEED has no effect",
}


class Dialect:
    """The fields that an endpoint takes, as far as OMIT_FIELDS and its errors have said.

    Attributes:
        omitted: fields that no request has.
        limit: the field of MAX_NEW_TOKENS.
    """

    def __init__(self, extract: ExtractConfig, is_openai: bool) -> None:
        """OpenAI's own endpoint renamed a field of the chat form."""
        is_renamed = is_openai and extract.prompt_form == "chat"
        self.omitted = {*extract.omit_fields} - {*failures.LIMITS}
        self.limit = failures.LIMITS[is_renamed or failures.LIMITS[0] in extract.omit_fields]
        self._refused = {*extract.omit_fields} & {*failures.LIMITS}

    @property
    def text(self) -> str:
        """The omitted fields, for a log."""
        return ", ".join(sorted(self.omitted))

    def adapt(self, field: str, sent: Mapping[str, Any]) -> str | None:
        """Leaves out or renames a field that the endpoint rejects in all further requests.

        Args:
            field: its name.
            sent: the body that was rejected.

        Returns:
            A line for the user; "" where this is known already; None = nothing can be done.
        """
        if field not in sent:
            return None
        if field in failures.LIMITS:
            if field != self.limit:
                return ""
            self._refused.add(field)
            others = [name for name in failures.LIMITS if name not in self._refused]
            if not others:
                return None
            self.limit = others[0]
            return f"takes no {field!r}: MAX_NEW_TOKENS is sent as {self.limit!r}"
        if field not in _WITHOUT:
            return None
        if field in self.omitted:
            return ""
        self.omitted.add(field)
        return f"takes no {field!r}: no further request has it, and {_WITHOUT[field]}"


def body(request: Request, dialect: Dialect) -> dict[str, Any]:
    """The body of a request."""
    decoding = request.decoding
    content: dict[str, Any] = {
        "model": request.model,
        "temperature": decoding.temperature,
        dialect.limit: decoding.max_new_tokens,
    }
    if request.messages:
        content["messages"] = [
            {"role": turn.role, "content": turn.content} for turn in request.messages
        ]
    else:
        content["prompt"] = request.prompt
    if request.stop:
        content["stop"] = list(request.stop)
    if decoding.top_p < 1:
        content["top_p"] = decoding.top_p
    if decoding.temperature > 0:
        content["seed"] = decoding.seed
    content = {name: value for name, value in content.items() if name not in dialect.omitted}
    return content | (json.loads(request.extra) if request.extra else {})


class MalformedError(Exception):
    """A body that is not a response of the protocol; the message says why."""


def read(response: Any, model: str, seconds: float) -> Completion:
    """The completion in a response's JSON; `model` is used where it names none.

    Raises:
        MalformedError: the body has no completion.
        RequestError: the completion is empty, or the endpoint's filter withholds it.
    """
    choice = _first_choice(response)
    text, refusal = _text(choice)
    reason = choice.get("finish_reason")
    reason = reason if isinstance(reason, str) and reason else "unknown"
    usage = response.get("usage")
    prompt, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    if refusal or reason == "content_filter":
        detail = failures.one_line(refusal or "finish_reason is content_filter")
        raise RequestError(failures.FILTERED, detail, prompt, written)
    if not text.strip():
        raise failures.empty(reason, prompt, written)
    reported = response.get("model")
    return Completion(
        # What an endpoint repeats of the request's headers must not reach a file.
        text=redact.hide_keys(_whole_characters(text)),
        finish_reason=redact.hide_keys(reason),
        prompt_tokens=prompt,
        completion_tokens=written,
        model=redact.hide_keys(reported) if isinstance(reported, str) and reported else model,
        seconds=seconds,
    )


def cut(completion: Completion, stop: tuple[str, ...]) -> Completion:
    """The completion up to its first stop text, which some endpoints ignore or reject.

    A stop text within a reasoning model's thoughts ends nothing.
    """
    text = completion.text
    answer = without_thoughts(text)
    start = len(text) if answer is None else text.rfind(answer)
    ends = [end for each in stop if (end := text.find(each, start)) >= 0]
    if not ends:
        return completion
    return dataclasses.replace(completion, text=text[: min(ends)], finish_reason="stop")


def _first_choice(response: Any) -> Mapping[str, Any]:
    if not isinstance(response, dict):
        raise MalformedError(f"the response is {type(response).__name__}, expected a JSON object")
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedError("the response has no choices")
    return choices[0]


def _text(choice: Mapping[str, Any]) -> tuple[str, str]:
    """(text, refusal) of a choice; None and a missing text are ""."""
    message = choice.get("message", choice)
    if not isinstance(message, dict) or not {"content", "text"} & set(message):
        raise MalformedError("the first choice has no text")
    content = message.get("content", message.get("text"))
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise MalformedError(f"the text is {type(content).__name__}, expected str")
    refusal = message.get("refusal")
    return content or "", refusal if isinstance(refusal, str) else ""


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else None


def _whole_characters(text: str) -> str:
    """`text` without lone surrogates, which a completion cut within a character has."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
