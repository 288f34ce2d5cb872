"""``prompt.json``: the prompt of an extraction, for people, and its length in tokens."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable

from stepdistill_jax import records
from stepdistill_jax.teacher.prompts import Prompt
from stepdistill_jax.teacher.store import PROMPT_FILE


def write(folder: pathlib.Path, prompt: Prompt, prefix_tokens: int | None) -> None:
    """Writes the file; `prefix_tokens` are those before the example, None = not counted."""
    content = {
        "hash": prompt.hash,
        "format": prompt.format,
        "tokens": prefix_tokens,
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
    records.write_atomic(folder / PROMPT_FILE, text)


def prefix_tokens(folders: Iterable[pathlib.Path], prompt_hash: str) -> int | None:
    """The length of a prompt as written in the first of the folders that knows it; None = none."""
    for folder in folders:
        try:
            content = json.loads((folder / PROMPT_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            # Missing or damaged; it is written anew in any case.
            continue
        if isinstance(content, dict) and content.get("hash") == prompt_hash:
            tokens = content.get("tokens")
            if isinstance(tokens, int):
                return tokens
    return None
