"""Tokens that were added to a published tokenizer, which its SentencePiece model does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from stepdistill_jax.spec import InputError

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_JSON = "tokenizer.json"
_ADDED = "added_tokens.json"
# Files that list added tokens.
_FILES = (_ADDED, "special_tokens_map.json", TOKENIZER_CONFIG, TOKENIZER_JSON)
# Tokens of every T5 tokenizer.
_T5_TOKENS = re.compile(r"<pad>|</s>|<unk>|▁?<extra_id_\d+>")


def refuse(setting: str, find: Callable[[str], epath.Path | None]) -> None:
    """Refuses a tokenizer with added tokens: other ids than Hugging Face's would be silent.

    Args:
        setting: macro and value that name the tokenizer, for the message.
        find: a file of the tokenizer by its name; None = it has no such file.

    Raises:
        InputError: it has added tokens (naming them), or a file is damaged.
    """
    paths = [(name, find(name)) for name in _FILES]
    tokens = [token for name, path in paths if path for token in _listed(read_json(path), name)]
    added = list(dict.fromkeys(token for token in tokens if not _T5_TOKENS.fullmatch(token)))
    if added:
        shown = ", ".join(map(repr, added[:8])) + (", ..." if len(added) > 8 else "")
        raise InputError(
            f"{setting}: its tokenizer has {len(added)} added tokens, which SentencePiece cannot "
            f"read: {shown}. Use a tokenizer without added tokens, and parameters trained with it."
        )


def _listed(document: Mapping[str, Any], name: str) -> list[str]:
    """The added and special tokens of one of `_FILES`."""
    if name == _ADDED:
        return list(document)
    decoder = document.get("added_tokens_decoder")
    entries = [
        *(decoder.values() if isinstance(decoder, dict) else ()),
        *(document.get("added_tokens") or ()),
        *(document.get("additional_special_tokens") or ()),
        *(document.get(token) for token in ("pad_token", "eos_token", "unk_token")),
    ]
    texts = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
    return [text for text in texts if isinstance(text, str)]


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file of a Hugging Face checkpoint.

    Raises:
        InputError: the file holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: invalid JSON: {error}. Download the file again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object. Download the file again.")
    return value
