"""What an endpoint reports of its models: names, context length, token counts."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import openai

from stepdistill_jax.teacher.clients import endpoint as endpoints
from stepdistill_jax.teacher.clients import failures
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import EndpointError

_SHOWN = 20
_SECONDS = 10.0
# Fields of an entry of /v1/models: vLLM's and OpenRouter's; llama.cpp's are under "meta".
_LENGTH_FIELDS = ("max_model_len", "context_length", "n_ctx", "n_ctx_train")
# Path beside /v1, and the fields for the text: vLLM's and llama.cpp's; llama-cpp-python's.
_TOKENIZERS = (("/tokenize", ("prompt", "content")), ("/extras/tokenize/count", ("input",)))


def _nearest(model: str, names: Sequence[str]) -> str:
    """The model with the most similar name, and all models."""
    close = difflib.get_close_matches(model, names, n=1, cutoff=0.4)
    hint = f"; did you mean {failures.one_line(close[0])!r}?" if close else "."
    shown = failures.one_line(", ".join(sorted(names)[:_SHOWN]))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{hint} It has {shown}{more}"


def _is_called(model: str, name: str) -> bool:
    """Whether an endpoint that lists `name` accepts `model` for it.

    The tag "latest" of Ollama and the prefix "models/" of Google are optional, llama.cpp lists a
    path.
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
    """Asks an endpoint about itself; what it does not offer is None."""

    def __init__(self, extract: ExtractConfig) -> None:
        """Raises InputError where the endpoint's address or key is missing."""
        self._model = extract.teacher_model
        self._endpoint = endpoints.find(extract)
        self._client = openai.OpenAI(**self._endpoint.options(_SECONDS, retries=0))

    def warnings(self) -> list[str]:
        """See `clients.warnings`."""
        try:
            missing = self.missing(self._model)
        except openai.APITimeoutError:
            return [f"warning: {self._endpoint.shown}: no list of models in {_SECONDS:g} s"]
        except openai.APIConnectionError as error:
            cause = failures.one_line(error.__cause__ or error)
            return [f"warning: nothing answers at {self._endpoint.shown} ({cause})"]
        return [f"warning: {missing}"] if missing else []

    def missing(self, model: str) -> str:
        """The message for a model that the endpoint does not list; "" where it lists none.

        Raises:
            openai.APIConnectionError: nothing answers.
        """
        try:
            listed = self._client.get("/models", cast_to=object)
        except openai.APIConnectionError:
            raise
        except (openai.OpenAIError, json.JSONDecodeError):
            return ""
        names = [str(entry["id"]) for entry in _entries(listed)]
        if not names or any(_is_called(model, name) for name in names):
            return ""
        nearest = _nearest(model, names)
        return f"{self._endpoint.shown} has no model {model!r}{nearest}. Correct TEACHER_MODEL."

    def context_length(self) -> int | None:
        """Tokens of the context as it is served, else of the model."""
        if self._endpoint.is_openai:
            return None
        props = self._get(self._endpoint.beside("/props"))
        settings = props.get("default_generation_settings", {}) if isinstance(props, dict) else {}
        entries = _entries(self._get("/models"))
        chosen = [entry for entry in entries if entry["id"] == self._model]
        if not chosen and len(entries) == 1:
            chosen = entries  # a server of one model serves it under any name
        for fields in (settings, *chosen, *(entry.get("meta") for entry in chosen)):
            for name in _LENGTH_FIELDS:
                value = fields.get(name) if isinstance(fields, dict) else None
                if isinstance(value, int) and value > 0:
                    return value
        return None

    def token_counter(self) -> Callable[[str], int] | None:
        """Counts a text's tokens at the endpoint, as vLLM and llama.cpp offer it."""
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
                f"{self._endpoint.shown} stopped counting tokens. Restart it, or set "
                "TEACHER_TOKENIZER."
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
