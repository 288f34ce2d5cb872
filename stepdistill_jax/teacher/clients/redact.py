"""Hides keys in all texts that leave the process: messages, log records, files."""

from __future__ import annotations

import logging
import re
import urllib.parse

HIDDEN = "[key]"

# Keys that this process has read: an endpoint may repeat them in any form.
_keys: set[str] = set()
# Shorter values are words like "none" or "test", which local endpoints accept as a key.
_SHORTEST = 8

_LOOKS_LIKE_A_KEY = re.compile(
    r"""(?x)
    (?P<before> \b(?:Bearer|Basic)\s+
      | (?:api[-_]?key|authorization)["']?\s*[:=]\s*["']?(?:Bearer\s+|Basic\s+)? )?
    (?P<key> (?<![\w-]) (?:sk|pk|hf|gsk|xai|rk)[-_][\w*.-]{6,} | (?(before)[^\s"',;]+|(?!)) )
    """,
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)


def remember(key: str) -> None:
    """Hides `key` in all later texts, whatever its form."""
    if len(key) >= _SHORTEST:
        _keys.add(key)


def redact(text: str) -> str:
    """`text` without remembered keys, texts that look like a key, and credentials in addresses."""
    for key in sorted(_keys, key=len, reverse=True):
        for form in {key, urllib.parse.quote(key, safe="")}:
            text = text.replace(form, HIDDEN)
    text = _LOOKS_LIKE_A_KEY.sub(lambda match: (match["before"] or "") + HIDDEN, text)
    return _CREDENTIALS.sub(r"\g<scheme>", text)


def address(url: str) -> str:
    """A URL for messages: without user, password and query."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return redact(url)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
    return redact(shown.geturl())


def quiet_loggers() -> None:
    """Keeps the HTTP libraries from logging requests: at lower levels they print headers."""
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logger = logging.getLogger(name)
        if logger.level < logging.WARNING:
            logger.setLevel(logging.WARNING)
