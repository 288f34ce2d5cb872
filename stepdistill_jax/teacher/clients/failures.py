"""What a failure at an endpoint means: for one row, for all of them, or for this moment alone."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import re
from collections.abc import Mapping
from typing import Any

from stepdistill_jax.teacher.clients import redact
from stepdistill_jax.teacher.clients.endpoint import Endpoint
from stepdistill_jax.teacher.requests import EndpointError, RequestError

# Reasons of a `RequestError`.
CONTEXT = "context too long"
FILTERED = "content filter"
EMPTY = "empty completion"
MALFORMED = "malformed answer"
REFUSED = "request refused"
UNAVAILABLE = "no answer"
EXPIRED = "batch expired"
CANCELLED = "batch cancelled"
# Those that may be different at another time, and which no endpoint is known to charge for; under
# MAX_COST they count in full where it may.
PASSING = frozenset({MALFORMED, REFUSED, UNAVAILABLE, EXPIRED, CANCELLED})

# Longer requests of an endpoint to wait are for the user to decide on.
LONGEST_WAIT = 600.0

_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|size|window)|maximum context|(?:prompt|input).{0,40}too long"
    r"|too many tokens|tokens` must be <=",
    re.IGNORECASE,
)
_FILTER = re.compile(r"content[ _-]?(?:filter|policy|management)|safety system", re.IGNORECASE)
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
# Fields that are the same in every request: an endpoint that refuses one refuses all.
_SHARED_FIELDS = {
    "model": "TEACHER_MODEL",
    "temperature": "TEMPERATURE",
    "top_p": "TOP_P",
    "max_tokens": "MAX_NEW_TOKENS",
    "max_completion_tokens": "MAX_NEW_TOKENS",
    "seed": "SAMPLING_SEED",
    "stop": "PROMPT_FILE",
}
_LONGEST_DETAIL = 300


@dataclasses.dataclass(frozen=True)
class Again:
    """A try that failed in a way that may pass.

    Attributes:
        reason, detail: of the `RequestError` that it becomes when there are no tries left.
        wait: seconds that the endpoint asked for.
        busy: the endpoint said so; it is then never the row's fault.
        connected: something answered.
        may_be_paid: the endpoint may have written an answer, and charge for it.
    """

    reason: str
    detail: str
    wait: float | None = None
    busy: bool = False
    connected: bool = True
    may_be_paid: bool = False


def one_line(text: object) -> str:
    """Somebody else's text for a message: on one line, not long, without keys."""
    line = " ".join(redact.redact(str(text)).split())
    return line if len(line) <= _LONGEST_DETAIL else line[: _LONGEST_DETAIL - 3] + "..."


def judge(
    status: int, body: Any, headers: Mapping[str, str], endpoint: Endpoint
) -> Again | RequestError | EndpointError:
    """What an answer of 4xx or 5xx means."""
    code, kind, field, message = _fields(body)
    said = f"HTTP {status}" + (f": {one_line(message)}" if message else "")
    if status in (401, 403):
        return EndpointError(
            f"{endpoint.shown} refuses the key ({said}); correct the environment variable "
            f"{endpoint.key_variable!r}, or name another in TEACHER_KEY"
        )
    if status == 404:
        return EndpointError(
            f"{endpoint.shown} does not know the address of the request, or the model ({said}); "
            "TEACHER_URL ends in the protocol's version, as in 'http://127.0.0.1:8000/v1'; correct "
            "it, TEACHER_MODEL, or PROMPT_FORM"
        )
    if status == 402 or code in _QUOTA_CODES or kind in _QUOTA_CODES:
        return EndpointError(
            f"{endpoint.shown}: the account behind the environment variable "
            f"{endpoint.key_variable!r} has no quota left ({said}); add to it, or name another "
            "key's variable in TEACHER_KEY, and start again"
        )
    if status in (408, 409, 425, 429) or status >= 500:
        wait = retry_after(headers)
        if wait is not None and wait > LONGEST_WAIT:
            return EndpointError(
                f"{endpoint.shown} asks to wait for {wait:.0f} s ({said}); start again then"
            )
        return Again(UNAVAILABLE, said, wait, busy=status == 429)
    if status == 413 or code == "context_length_exceeded" or _TOO_LONG.search(message):
        return RequestError(CONTEXT, said)
    if code == "content_filter" or _FILTER.search(f"{code} {message}"):
        return RequestError(FILTERED, said)
    if field in _SHARED_FIELDS:
        return EndpointError(
            f"{endpoint.shown} refuses {field!r} of every request ({said}); correct "
            f"{_SHARED_FIELDS[field]}"
        )
    return RequestError(REFUSED, said)


def _fields(body: Any) -> tuple[str, str, str, str]:
    """(code, type, param, message) of an error's body; "" where it does not say."""
    if isinstance(body, str):
        # A page of a proxy says nothing to the user.
        return "", "", "", "" if body.lstrip().startswith("<") else body
    if not isinstance(body, dict):
        return "", "", "", ""
    message = body.get("message") or body.get("detail") or body.get("error") or ""
    code, kind, field = (str(body.get(name) or "") for name in ("code", "type", "param"))
    return code, kind, field, str(message)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` (seconds, or a date) or ``retry-after-ms`` asks for."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if seconds >= 0:
            return seconds
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
