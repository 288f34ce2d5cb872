"""What an endpoint's error means: one request fails, all fail, or it is worth a retry."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import re
from collections.abc import Mapping
from typing import Any

from stepdistill_jax.teacher.clients import redact
from stepdistill_jax.teacher.clients.endpoint import Endpoint
from stepdistill_jax.teacher.requests import EndpointError, RequestError, is_cut

# Reasons of a `RequestError`; they are in logs and summaries.
CONTEXT = "context too long"
FILTERED = "content filter"
EMPTY = "empty completion"
NO_ROOM = "no text within MAX_NEW_TOKENS"
MALFORMED = "malformed answer"
REFUSED = "request refused"
UNAVAILABLE = "no answer"
EXPIRED = "batch expired"
CANCELLED = "batch cancelled"
# Failures that may not occur again, and that no known endpoint charges for. With MAX_COST set they
# are charged in full where the endpoint may have.
TRANSIENT = frozenset({MALFORMED, REFUSED, UNAVAILABLE, EXPIRED, CANCELLED})

# The user decides about longer waits that an endpoint asks for.
LONGEST_WAIT = 600.0

_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|size|window)|maximum context|(?:prompt|input).{0,40}too long"
    r"|too many tokens|tokens` must be <=",
    re.IGNORECASE,
)
_FILTER = re.compile(r"content[ _-]?(?:filter|policy|management)|safety system", re.IGNORECASE)
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
# Fields that are the same in every request: an endpoint that rejects one rejects all.
_SHARED_FIELDS = {
    "model": "TEACHER_MODEL",
    "temperature": "TEMPERATURE",
    "top_p": "TOP_P",
    "max_tokens": "MAX_NEW_TOKENS",
    "max_completion_tokens": "MAX_NEW_TOKENS",
    "seed": "SAMPLING_SEED",
    "stop": "PROMPT_FILE",
}
# Names of the field of MAX_NEW_TOKENS: the first is older, the second the one of newer models.
LIMITS = ("max_tokens", "max_completion_tokens")
_UNSUPPORTED_CODES = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|does not support|unrecognized|unknown (?:parameter|field|argument)"
    r"|(?:inputs|fields) (?:are )?not permitted|unexpected (?:keyword|field|argument|parameter)",
    re.IGNORECASE,
)
_LONGEST_DETAIL = 300


@dataclasses.dataclass(frozen=True)
class Again:
    """A try that failed and is worth a retry.

    Attributes:
        reason, detail: of the `RequestError` that it becomes after the last try.
        wait: seconds that the endpoint asked for.
        busy: the endpoint reports that it is; the cause is then never the request.
        connected: something accepted the connection.
        may_be_paid: the endpoint may have written a completion, and charge for it.
    """

    reason: str
    detail: str
    wait: float | None = None
    busy: bool = False
    connected: bool = True
    may_be_paid: bool = False


def empty(finish_reason: str, prompt: int | None, written: int | None) -> RequestError:
    """The failure of a completion without text; the counts are its tokens."""
    reason = NO_ROOM if is_cut(finish_reason) else EMPTY
    return RequestError(reason, f"finish_reason is {one_line(finish_reason)}", prompt, written)


def one_line(text: object) -> str:
    """A text of the endpoint for a message: on one line, shortened, without keys."""
    line = " ".join(redact.redact(str(text)).split())
    return line if len(line) <= _LONGEST_DETAIL else line[: _LONGEST_DETAIL - 3] + "..."


def unsupported_field(status: int, body: Any) -> str:
    """The field of a request that an endpoint does not take; "" where the error is another."""
    code, _, field, message = _fields(body)
    if status not in (400, 422) or not (code in _UNSUPPORTED_CODES or _UNSUPPORTED.search(message)):
        return ""
    # pydantic, as many servers use it, and others name the field in the message alone.
    named = (name for name in _SHARED_FIELDS if re.search(rf"\b{name}\b", message))
    return field if field in _SHARED_FIELDS else next(named, "")


def classify(
    status: int, body: Any, headers: Mapping[str, str], endpoint: Endpoint
) -> Again | RequestError | EndpointError:
    """What a response of status 4xx or 5xx means."""
    code, kind, field, message = _fields(body)
    detail = f"HTTP {status}" + (f": {one_line(message)}" if message else "")
    if status in (401, 403):
        return EndpointError(
            f"{endpoint.shown} rejects the key ({detail}). Correct the environment variable "
            f"{endpoint.key_variable!r}, or name another one in TEACHER_KEY."
        )
    if status == 404:
        return EndpointError(
            f"{endpoint.shown}: unknown address or model ({detail}). Check that TEACHER_URL ends "
            "in the protocol's version, as in 'http://127.0.0.1:8000/v1', and check TEACHER_MODEL "
            "and PROMPT_FORM."
        )
    if status == 402 or code in _QUOTA_CODES or kind in _QUOTA_CODES:
        return EndpointError(
            f"{endpoint.shown}: the account of the key in {endpoint.key_variable!r} has no quota "
            f"left ({detail}). Add quota, or name another key's variable in TEACHER_KEY, and start "
            "again."
        )
    if status in (408, 409, 425, 429) or status >= 500:
        wait = retry_after(headers)
        if wait is not None and wait > LONGEST_WAIT:
            return EndpointError(
                f"{endpoint.shown} asks for a wait of {wait:.0f} s ({detail}). Start again then."
            )
        return Again(UNAVAILABLE, detail, wait, busy=status == 429)
    if status == 413 or code == "context_length_exceeded" or _TOO_LONG.search(message):
        return RequestError(CONTEXT, detail)
    if code == "content_filter" or _FILTER.search(f"{code} {message}"):
        return RequestError(FILTERED, detail)
    unsupported = unsupported_field(status, body)
    if unsupported and unsupported != "model":
        return EndpointError(
            f"{endpoint.shown} does not take {unsupported!r}, which every request has ({detail}). "
            f"Set OMIT_FIELDS=('{unsupported}',)."
        )
    if field in _SHARED_FIELDS:
        return EndpointError(
            f"{endpoint.shown} rejects {field!r}, which every request has ({detail}). Change "
            f"{_SHARED_FIELDS[field]}."
        )
    return RequestError(REFUSED, detail)


def _fields(body: Any) -> tuple[str, str, str, str]:
    """(code, type, param, message) of an error's body; "" for those that it lacks."""
    if isinstance(body, str):
        # An HTML page of a proxy does not help the user.
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
