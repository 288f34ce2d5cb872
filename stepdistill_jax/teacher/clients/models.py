"""What an endpoint says of its models: their names, how much they hold, how they count tokens."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import openai

from stepdistill_jax.teacher.clients import endpoint as endpoints
from stepdistill_jax.teacher.clients import failures
from stepdistill_jax.teacher.clients.endpoint import Endpoint
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import EndpointError

_SHOWN = 20
_SECONDS = 10.0
# Fields of an entry of /v1/models: vLLM's and OpenRouter's; llama.cpp's are under "meta".
_LENGTH_FIELDS = ("max_model_len", "context_length", "n_ctx", "n_ctx_train")
# Address beside /v1, and the fields that a text is sent in: vLLM's prompt and llama.cpp's content;
# llama-cpp-python's.
_TOKENIZERS = (("/tokenize", ("prompt", "content")), ("/extras/tokenize/count", ("input",)))


async def unknown_model(
    client: openai.AsyncOpenAI, endpoint: Endpoint, model: str
) -> EndpointError | None:
    """What to tell of a 404 where the endpoint lists its models and `model` is none of them."""
    try:
        names = [
            str(entry["id"]) for entry in _entries(await client.get("/models", cast_to=object))
        ]
    except (openai.OpenAIError, json.JSONDecodeError):
        return None
    if not names or model in names:
        return None
    told = f"{endpoint.shown} has no model {model!r}{_nearest(model, names)}"
    return EndpointError(f"{told}; correct TEACHER_MODEL")


def _nearest(model: str, names: Sequence[str]) -> str:
    """What there is in place of `model`, the most alike first."""
    close = difflib.get_close_matches(model, names, n=1, cutoff=0.4)
    hint = f"; did you mean {failures.one_line(close[0])!r}?" if close else "."
    shown = failures.one_line(", ".join(sorted(names)[:_SHOWN]))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{hint} It has {shown}{more}"


def _is_called(model: str, name: str) -> bool:
    """Whether an endpoint that lists `name` is asked for it as `model` too.

    Ollama leaves a tag of "latest" out, Google's "models/" is optional, llama.cpp's is a path.
    """
    return model in (name, name.removesuffix(":latest"), name.rpartition("/")[2])


def _entries(listed: Any) -> list[Mapping[str, Any]]:
    data = listed.get("data") if isinstance(listed, dict) else None
    return [
        entry
        for entry in (data if isinstance(data, list) else ())
        if isinstance(entry, dict) and "id" in entry
    ]


class EndpointInfo:
    """Asks an endpoint about itself; whatever it does not offer is None."""

    def __init__(self, extract: ExtractConfig) -> None:
        """Raises InputError where the endpoint's address or key is missing."""
        self._model = extract.teacher_model
        self._endpoint = endpoints.find(extract)
        self._client = openai.OpenAI(**self._endpoint.options(_SECONDS, retries=0))

    def doubts(self) -> list[str]:
        """See `clients.doubts`."""
        try:
            listed = self._client.get("/models", cast_to=object)
        except openai.APITimeoutError:
            return [f"warning: {self._endpoint.shown} did not list its models in {_SECONDS:g} s"]
        except openai.APIConnectionError as error:
            cause = failures.one_line(error.__cause__ or error)
            return [f"warning: nothing answers at {self._endpoint.shown} ({cause})"]
        except (openai.OpenAIError, json.JSONDecodeError):
            return []
        names = [str(entry["id"]) for entry in _entries(listed)]
        if not names or any(_is_called(self._model, name) for name in names):
            return []
        told = f"{self._endpoint.shown} lists no model {self._model!r}"
        return [f"warning: {told}{_nearest(self._model, names)}; is TEACHER_MODEL right?"]

    def context_length(self) -> int | None:
        """Tokens that the model holds, prompt and answer: what is served, else what it can."""
        if self._endpoint.is_openai:
            return None
        props = self._get(self._endpoint.beside("/props"))
        settings = props.get("default_generation_settings", {}) if isinstance(props, dict) else {}
        entries = _entries(self._get("/models"))
        chosen = [entry for entry in entries if entry["id"] == self._model]
        if not chosen and len(entries) == 1:
            chosen = entries  # a server of one model, which it serves under any name
        for fields in (settings, *chosen, *(entry.get("meta") for entry in chosen)):
            for name in _LENGTH_FIELDS:
                value = fields.get(name) if isinstance(fields, dict) else None
                if isinstance(value, int) and value > 0:
                    return value
        return None

    def token_counter(self) -> Callable[[str], int] | None:
        """Counts a text's tokens at the endpoint: vLLM's and llama.cpp's ways."""
        if self._endpoint.is_openai:
            return None
        for path, fields in _TOKENIZERS:
            url = self._endpoint.beside(path)
            if self._count(url, fields, "a") is not None:
                return functools.partial(self._count_or_raise, url, fields)
        return None

    def _count_or_raise(self, url: str, fields: tuple[str, ...], text: str) -> int:
        count = self._count(url, fields, text)
        if count is None:
            raise EndpointError(
                f"{self._endpoint.shown} does not count tokens any more; start it again, or set "
                "TEACHER_TOKENIZER"
            )
        return count

    def _count(self, url: str, fields: tuple[str, ...], text: str) -> int | None:
        try:
            body = {"model": self._model, **dict.fromkeys(fields, text)}
            answer = self._client.post(url, cast_to=object, body=body)
        except (openai.OpenAIError, json.JSONDecodeError):
            return None
        if not isinstance(answer, dict):
            return None
        if isinstance(answer.get("tokens"), list):
            return len(answer["tokens"])
        return answer["count"] if isinstance(answer.get("count"), int) else None

    def _get(self, url: str) -> Any:
        try:
            return self._client.get(url, cast_to=object)
        except (openai.OpenAIError, json.JSONDecodeError):
            return None
