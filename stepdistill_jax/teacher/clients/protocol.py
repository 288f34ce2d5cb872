"""OpenAI's protocol: the bodies of requests and responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepdistill_jax.teacher.clients import failures
from stepdistill_jax.teacher.requests import Completion, Request, RequestError

CHAT_PATH, COMPLETION_PATH = "/chat/completions", "/completions"


def path(request: Request) -> str:
    """The path of a request, after the endpoint's address."""
    return CHAT_PATH if request.messages else COMPLETION_PATH


def body(request: Request, is_openai: bool) -> dict[str, Any]:
    """The body of a request; OpenAI's own endpoint renamed a field of the chat form."""
    decoding = request.decoding
    renamed = is_openai and bool(request.messages)
    content: dict[str, Any] = {
        "model": request.model,
        "temperature": decoding.temperature,
        "max_completion_tokens" if renamed else "max_tokens": decoding.max_new_tokens,
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
    return content


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
        detail = f"finish_reason is {failures.one_line(reason)}"
        raise RequestError(failures.EMPTY, detail, prompt, written)
    reported = response.get("model")
    return Completion(
        text=_whole_characters(text),
        finish_reason=reason,
        prompt_tokens=prompt,
        completion_tokens=written,
        model=reported if isinstance(reported, str) and reported else model,
        seconds=seconds,
    )


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
