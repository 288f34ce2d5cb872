"""Hides keys in all texts that leave the process: messages, log records, files."""

from __future__ import annotations

import base64
import logging
import re
import urllib.parse

HIDDEN = "[key]"

# Key that this process has read -> what finds it: an endpoint may repeat it in any form.
_keys: dict[str, re.Pattern[str]] = {}
# Shorter values are words like "none" or "test", which local endpoints accept as a key.
_SHORTEST = 8
# So many first characters tell which key a shortened form is of.
_SHOWN = 6

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
    if len(key) >= _SHORTEST and key not in _keys:
        _keys[key] = _finder(key)


def _finder(key: str) -> re.Pattern[str]:
    """Finds a key: in any case, percent-encoded, as base64 or hex, or shortened in its middle."""
    raw = key.encode()
    plain = [key, urllib.parse.quote(key, safe=""), raw.hex()]
    # A text of 1 or 2 bytes before the key, as "Basic user:key" has, shifts its base64.
    shifted = [
        base64.b64encode(bytes(shift) + raw[: (len(raw) + shift) // 3 * 3 - shift]).decode()
        for shift in range(3)
    ]
    cores = [text[skipped:] for text, skipped in zip(shifted, (0, 2, 3), strict=True)]
    cores += [core.replace("+", "-").replace("/", "_") for core in cores]
    encoded = "|".join(map(re.escape, dict.fromkeys(cores)))
    shortened = rf"(?i:{re.escape(key[:_SHOWN])}[\w-]*(?:\.{{2,}}|…|\*+|•+)[\w*•.…-]*)"
    whole = "|".join(map(re.escape, dict.fromkeys(plain)))
    return re.compile(rf"(?i:{whole})|[\w+/]{{0,4}}(?:{encoded})[\w+/=-]*|{shortened}")


def hide_keys(text: str) -> str:
    """`text` without remembered keys, in any of their forms."""
    for key in sorted(_keys, key=len, reverse=True):
        text = _keys[key].sub(HIDDEN, text)
    return text


def redact(text: str) -> str:
    """`text` without remembered keys, texts that look like a key, and credentials in addresses."""
    text = hide_keys(text)
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
