"""An endpoint's address and key; no other module reads a key."""

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
# Sent to an endpoint that needs no key; the library refuses to send without one.
_PLACEHOLDER = "none"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Address and key of an endpoint.

    Attributes:
        url: with the version, as in ``http://127.0.0.1:8000/v1``.
        key: never shown, not by repr either.
        key_variable: the environment variable for the key.
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
        """Whether it is OpenAI's."""
        return _is_openai(self.url)

    def options(self, timeout: float, retries: int) -> dict[str, Any]:
        """Arguments of `openai.OpenAI` and `openai.AsyncOpenAI`; `timeout` is in seconds."""
        redact.quiet_loggers()
        parts = urllib.parse.urlsplit(self.url)
        return {
            "api_key": self.key or _PLACEHOLDER,
            "base_url": parts._replace(query="").geturl(),
            "default_query": dict(urllib.parse.parse_qsl(parts.query)),
            # Azure reads a key from this header.
            "default_headers": {"api-key": self.key} if _is_azure(self.url) and self.key else {},
            "timeout": timeout,
            "max_retries": retries,
        }

    def beside(self, path: str) -> str:
        """An address of the same server outside of ``/v1``."""
        parts = urllib.parse.urlsplit(self.url)
        root = parts.path.rstrip("/").removesuffix("/v1")
        return parts._replace(path=root + path, query="", fragment="").geturl()


def address(extract: ExtractConfig) -> str:
    """The address of TEACHER_URL, else OPENAI_BASE_URL, else OpenAI's; no credentials."""
    url = extract.teacher_url or os.environ.get(URL_VARIABLE, "") or OPENAI_URL
    return redact.address(url).rstrip("/")


def find(extract: ExtractConfig) -> Endpoint:
    """The endpoint of TEACHER_URL, else OPENAI_BASE_URL, else OpenAI's.

    Raises:
        InputError: the address is invalid, or it is OpenAI's and there is no key.
    """
    url, origin = extract.teacher_url, "TEACHER_URL"
    if not url:
        url, origin = os.environ.get(URL_VARIABLE, ""), URL_VARIABLE
    url = url or OPENAI_URL
    if not _is_address(url):
        raise InputError(
            f"{origin}={redact.address(url)!r}: not a URL. Write it with scheme and version, "
            "as in 'http://127.0.0.1:8000/v1'."
        )
    variable = extract.teacher_key
    key = os.environ.get(variable, "").strip() if variable else ""
    redact.remember(key)
    if not key and _is_openai(url):
        raise InputError(
            f"{redact.address(url)} needs a key, but the environment variable {variable!r} "
            "(TEACHER_KEY) is empty. Set it, or name another variable in TEACHER_KEY or another "
            "endpoint in TEACHER_URL."
        )
    if not key.isascii() or not key.isprintable():
        raise InputError(
            f"the environment variable {variable!r} (TEACHER_KEY) has characters that are not "
            "allowed in a key. Set it again."
        )
    return Endpoint(url, key, variable)


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _is_azure(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    return host.endswith((".azure.com", ".azure.us", ".azure.cn"))


def _is_openai(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    return host == "openai.com" or host.endswith(".openai.com")
