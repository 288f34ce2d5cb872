"""OpenAI's protocol: the body of a request, and what an answer's body says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepdistill_jax.teacher.clients import failures
from stepdistill_jax.teacher.requests import Completion, Request, RequestError

CHAT_PATH, COMPLETION_PATH = "/chat/completions", "/completions"


def path(request: Request) -> str:
    """Where a request goes, after the endpoint's address."""
    return CHAT_PATH if request.messages else COMPLETION_PATH


def body(request: Request, is_openai: bool) -> dict[str, Any]:
    """What is sent; `is_openai`: OpenAI's own endpoint, which renamed a field of the chat form."""
    decoding = request.decoding
    renamed = is_openai and bool(request.messages)
    sent: dict[str, Any] = {
        "model": request.model,
        "temperature": decoding.temperature,
        "max_completion_tokens" if renamed else "max_tokens": decoding.max_new_tokens,
    }
    if request.messages:
        sent["messages"] = [
            {"role": turn.role, "content": turn.content} for turn in request.messages
        ]
    else:
        sent["prompt"] = request.prompt
    if request.stop:
        sent["stop"] = list(request.stop)
    if decoding.top_p < 1:
        sent["top_p"] = decoding.top_p
    if decoding.temperature > 0:
        sent["seed"] = decoding.seed
    return sent


class MalformedError(Exception):
    """A body that lacks what an answer has; the message says what."""


def read(answer: Any, asked_model: str, seconds: float) -> Completion:
    """The answer in a body.

    Args:
        answer: the body, from JSON.
        asked_model: stands in where the body names no model.
        seconds: of `Completion`.

    Raises:
        MalformedError: there is none in it.
        RowError: it is empty, or the endpoint's filter kept it back.
    """
    choice = _first_choice(answer)
    text, refusal = _text(choice)
    reason = choice.get("finish_reason")
    reason = reason if isinstance(reason, str) and reason else "unknown"
    usage = answer.get("usage")
    read, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    if refusal or reason == "content_filter":
        said = failures.one_line(refusal or "finish_reason is content_filter")
        raise RequestError(failures.FILTERED, said, read, written)
    if not text.strip():
        said = f"finish_reason is {failures.one_line(reason)}"
        raise RequestError(failures.EMPTY, said, read, written)
    model = answer.get("model")
    return Completion(
        text=_whole_characters(text),
        finish_reason=reason,
        prompt_tokens=read,
        completion_tokens=written,
        model=model if isinstance(model, str) and model else asked_model,
        seconds=seconds,
    )


def _first_choice(answer: Any) -> Mapping[str, Any]:
    if not isinstance(answer, dict):
        raise MalformedError(f"expected a JSON object, found {type(answer).__name__}")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedError("the answer has no choices")
    return choices[0]


def _text(choice: Mapping[str, Any]) -> tuple[str, str]:
    """(text, refusal) of a choice; None and a missing text are ""."""
    message = choice.get("message", choice)
    if not isinstance(message, dict) or not {"content", "text"} & set(message):
        raise MalformedError("the answer's first choice has no text")
    content = message.get("content", message.get("text"))
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise MalformedError(f"the answer's text is {type(content).__name__}")
    refusal = message.get("refusal")
    return content or "", refusal if isinstance(refusal, str) else ""


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else None


def _whole_characters(text: str) -> str:
    """`text` with half characters replaced: an answer cut within one could not be written down."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
