"""Counts a prompt's tokens, by the teacher's tokenizer or its endpoint; refuses one too long."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from stepdistill_jax import hub
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import clients
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Request

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# Tokens beside the text of a turn, and of the start of the response, where no template is known.
# The published templates of chat models need three to five.
TURN = 5


class TokenCounter:
    """Counts tokens as the teacher does.

    Attributes:
        text: tokens of a text without those that start or end every text.
    """

    def __init__(self, text: Callable[[str], int]) -> None:
        self.text = text

    def request(self, request: Request) -> int:
        """Tokens that the teacher reads; each turn of a chat counts `TURN` more."""
        return self.text(request.text) + TURN * (1 + len(request.messages))


class TokenizerCounter(TokenCounter):
    """Counts with TEACHER_TOKENIZER.

    Attributes:
        is_exact_chat: it has a chat template; without one every turn counts `TURN` more tokens.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """`tokenizer` is one of transformers; `name` is for messages."""
        super().__init__(lambda text: len(tokenizer.encode(text, add_special_tokens=False)))
        self.name = name
        self.is_exact_chat = bool(getattr(tokenizer, "chat_template", None))
        self._tokenizer = tokenizer

    def request(self, request: Request) -> int:
        """See `TokenCounter`.

        Raises:
            InputError: the tokenizer's chat template rejects the prompt.
        """
        if not request.messages:
            return len(self._tokenizer.encode(request.prompt))
        if not self.is_exact_chat:
            return TURN + sum(self.text(message.content) + TURN for message in request.messages)
        import jinja2

        turns = [dataclasses.asdict(message) for message in request.messages]
        try:
            return self.text(
                self._tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True
                )
            )
        except jinja2.TemplateError as error:
            raise InputError(
                f"TEACHER_TOKENIZER={self.name!r}: its chat template rejects the prompt ({error}), "
                "and so would the endpoint. Set PROMPT_FORM='completion', or remove the "
                "instruction from your PROMPT_FILE."
            ) from error


def tokenizer_counter(extract: ExtractConfig) -> TokenizerCounter | None:
    """The counter of TEACHER_TOKENIZER; None where it is empty.

    Raises:
        InputError: the tokenizer is missing or cannot be loaded.
    """
    name = extract.teacher_tokenizer
    if not name:
        return None
    import transformers

    where = f"TEACHER_TOKENIZER={name!r}"
    choices = "a folder with a tokenizer, or 'hf:OWNER/NAME'"
    source = name.removeprefix(hub.PREFIX)
    if name.startswith(hub.PREFIX):
        # First, since transformers takes long to say which file is missing.
        remedy = "set TEACHER_TOKENIZER to it"
        hub.find("TEACHER_TOKENIZER", source, _FILES, remedy, "--exclude '*.safetensors'")
    else:
        folder = pathlib.Path(name).expanduser()
        if not any((folder / file).is_file() for file in _FILES):
            raise InputError(f"{where}: has no {' or '.join(_FILES)}. Set it to {choices}.")
        source = str(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        # Damaged files, unknown classes, code that would need trust, missing libraries.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{where}: cannot be loaded ({reason:.300}). Set it to {choices}, or to '' for an "
            "estimate."
        ) from error
    return TokenizerCounter(tokenizer, name)


def endpoint_counter(extract: ExtractConfig) -> TokenCounter | None:
    """Sends a request per text; None where the endpoint does not count, or there is no key."""
    try:
        count = clients.token_counter(extract)
    except InputError:
        # The client reports a missing key when it is opened.
        return None
    return None if count is None else TokenCounter(count)


def check_context(prompt_tokens: int, extract: ExtractConfig, context: int, where: str) -> None:
    """Refuses a prompt that leaves no room for the completion.

    Args:
        prompt_tokens: of the whole prompt, the example included.
        context: CONTEXT_LENGTH, else what the endpoint reports.
        where: ``file:line`` of the example.

    Raises:
        InputError: the message says by how many tokens the prompt is too long.
    """
    excess = prompt_tokens + extract.max_new_tokens - context
    if excess <= 0:
        return
    source = "CONTEXT_LENGTH" if extract.context_length else "reported by the endpoint"
    remedy = "remove exemplars (PROMPT_FILE) or use a model with a longer context"
    if extract.max_new_tokens > excess:
        remedy = f"set MAX_NEW_TOKENS={extract.max_new_tokens - excess} or less, {remedy}"
    raise InputError(
        f"{where or 'the data'}: prompt of {prompt_tokens:,} tokens and MAX_NEW_TOKENS="
        f"{extract.max_new_tokens} exceed the context of {extract.teacher_model or 'the teacher'}, "
        f"{context:,} tokens ({source}), by {excess:,}. {remedy[0].upper()}{remedy[1:]}."
    )
