"""Where an endpoint is and with which key: the one place that reads a key."""

from __future__ import annotations

import dataclasses
import os
import urllib.parse
from typing import Any

from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.clients import redact
from stepdistill_jax.teacher.config import ExtractConfig

URL_VARIABLE = "OPENAI_BASE_URL"
OPENAI_URL = "https://api.openai.com/v1"
# What an endpoint gets that wants no key; the library sends none without one.
_PLACEHOLDER = "none"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Address and key of an endpoint.

    Attributes:
        url: with the version, as in ``http://127.0.0.1:8000/v1``.
        key: never shown, not by repr either.
        key_variable: the environment variable that the key is from, or would be.
    """

    url: str
    key: str = dataclasses.field(repr=False)
    key_variable: str

    @property
    def shown(self) -> str:
        """The address for messages, without credentials."""
        return redact.address(self.url)

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own."""
        return _is_openai(self.url)

    def options(self, timeout: float, retries: int) -> dict[str, Any]:
        """Of `openai.OpenAI` and `openai.AsyncOpenAI`; seconds and tries after the first."""
        redact.quiet_loggers()
        return {
            "api_key": self.key or _PLACEHOLDER,
            "base_url": self.url,
            "timeout": timeout,
            "max_retries": retries,
        }

    def beside(self, path: str) -> str:
        """An address of the same server outside of the protocol's version."""
        parts = urllib.parse.urlsplit(self.url)
        root = parts.path.rstrip("/").removesuffix("/v1")
        return parts._replace(path=root + path, query="", fragment="").geturl()


def address(extract: ExtractConfig) -> str:
    """The address of TEACHER_URL, else of the environment, else OpenAI's own; no credentials."""
    url = extract.teacher_url or os.environ.get(URL_VARIABLE, "") or OPENAI_URL
    return redact.address(url).rstrip("/")


def find(extract: ExtractConfig) -> Endpoint:
    """The endpoint of TEACHER_URL, else of the environment, else OpenAI's own.

    Raises:
        InputError: the address is none, or it is OpenAI's own and there is no key.
    """
    url, origin = extract.teacher_url, "TEACHER_URL"
    if not url:
        url, origin = os.environ.get(URL_VARIABLE, ""), URL_VARIABLE
    url = url or OPENAI_URL
    if not _is_address(url):
        raise InputError(
            f"{origin} is {redact.address(url)!r}, which is no address; write it with its scheme "
            "and version, as in 'http://127.0.0.1:8000/v1'"
        )
    variable = extract.teacher_key
    key = os.environ.get(variable, "").strip() if variable else ""
    redact.remember(key)
    if not key and _is_openai(url):
        raise InputError(
            f"no key for {redact.address(url)}: the environment variable {variable!r} "
            "(TEACHER_KEY) is empty; set it, or name another variable in TEACHER_KEY, or another "
            "endpoint in TEACHER_URL"
        )
    if not key.isascii() or not key.isprintable():
        raise InputError(
            f"the environment variable {variable!r} (TEACHER_KEY) holds characters that no key "
            "has; set it again"
        )
    return Endpoint(url, key, variable)


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _is_openai(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    return host == "openai.com" or host.endswith(".openai.com")
