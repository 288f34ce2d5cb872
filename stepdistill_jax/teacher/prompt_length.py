"""An extraction's prompt before the row: what it says, and how long it is by whoever counts it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable

from stepdistill_jax import records
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import clients, store, tokens
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.prompts import Prompt
from stepdistill_jax.teacher.requests import Request


def request_count(extract: ExtractConfig) -> Callable[[Request], int] | None:
    """The endpoint's own count of a request's tokens, with some for each turn; None without one."""
    count = _endpoint_count(extract)
    if count is None:
        return None
    return lambda request: count(request.text) + tokens.TURN * (1 + len(request.messages))


def before_row(
    prompt: Prompt, extract: ExtractConfig, counter: tokens.Counter | None
) -> int | None:
    """Tokens before the row, by TEACHER_TOKENIZER, else by the endpoint; None where neither counts.

    Raises:
        EndpointError: the endpoint counted a moment ago, and does not any more.
    """
    count = _endpoint_count(extract) if counter is None else counter
    return None if count is None else count(prompt.prefix_text())


def _endpoint_count(extract: ExtractConfig) -> Callable[[str], int] | None:
    try:
        return clients.token_counter(extract)
    except InputError:
        # Without a key there is nothing to ask; the client says so when it is opened.
        return None


def shown(prompt: Prompt, extract: ExtractConfig, counter: tokens.Counter | None) -> str:
    """The prompt before the row, and how long it is."""
    text = prompt.prefix_text()
    counted = before_row(prompt, extract, counter)
    length = f"{len(text.encode()):,} bytes"
    reason = ""
    if counted is not None:
        length = f"{counted:,} tokens, {length}"
    else:
        reason = " (nothing counts tokens: TEACHER_TOKENIZER is empty and no endpoint offers it)"
    count = len(prompt.exemplars)
    of = f"{count} exemplar{'s' * (count != 1)}, from {prompt.source}"
    return f"{text}\n\n{length} before the row{reason}; {of}; hash {prompt.hash}"


def write(folder: pathlib.Path, prompt: Prompt, hash: str, tokens_before: int | None) -> None:
    """Writes ``prompt.json``."""
    content = {
        "hash": hash,
        "format": prompt.format,
        "tokens": tokens_before,
        "prefix": prompt.prefix_text(),
        "exemplars": [
            {
                "id": exemplar.example.id,
                "input": exemplar.example.input,
                "choices": list(exemplar.example.choices),
                "rationale": exemplar.rationale,
                "label": exemplar.example.label,
            }
            for exemplar in prompt.exemplars
        ],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    records.write_atomic(folder / store.PROMPT_FILE, text)


def written(folders: Iterable[pathlib.Path], hash: str) -> int | None:
    """What was counted of this prompt when one of the folders was asked; None = nothing."""
    for folder in folders:
        path = folder / store.PROMPT_FILE
        try:
            found = json.loads(records.decode_utf8(path.read_bytes(), str(path)))
        except (FileNotFoundError, json.JSONDecodeError, InputError):
            # It is written anew in any case.
            continue
        if isinstance(found, dict) and found.get("hash") == hash:
            count = found.get("tokens")
            if isinstance(count, int):
                return count
    return None
