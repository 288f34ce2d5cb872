from __future__ import annotations

import base64
import logging
import urllib.parse

import pytest

from stepdistill_jax.teacher.clients import redact

SECRET = "pass word/+of&mine"


@pytest.fixture(autouse=True)
def remembered(monkeypatch):
    monkeypatch.setattr(redact, "_keys", {})
    redact.remember(SECRET)
    redact.remember("none")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"wrong key {SECRET}!", "wrong key [key]!"),
        (f"?key={urllib.parse.quote(SECRET, safe='')}", "?key=[key]"),
        ("Incorrect API key provided: sk-proj-Ab12_Cd34.", "Incorrect API key provided: [key]"),
        ("provided: sk-ab***********yz1234, see", "provided: [key], see"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer [key]"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer [key]'}"),
        ("sent Bearer none", "sent Bearer [key]"),
        ('"api_key": "xyz123"', '"api_key": "[key]"'),
        ("hf_AbCdEfGhIj is wrong", "[key] is wrong"),
        ("http://me:pw@host:80/v1 fails", "http://host:80/v1 fails"),
    ],
)
def test_keys_are_hidden(text, shown):
    assert redact.redact(text) == shown


BASE64 = base64.b64encode


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"got {SECRET.upper()}", "got [key]"),
        (f"got {SECRET.encode().hex()}", "got [key]"),
        (f"got {BASE64(SECRET.encode()).decode()}!", "got [key]!"),
        (f"Basic {BASE64(f'me:{SECRET}'.encode()).decode()}", "Basic [key]"),
        (f"got {BASE64(f'u:{SECRET}'.encode()).decode()}.", "got [key]."),
        (f"got {BASE64(f'{SECRET}:'.encode()).decode()}.", "got [key]."),
        (f"got {base64.urlsafe_b64encode(SECRET.encode()).decode()}", "got [key]"),
    ],
)
def test_keys_in_other_forms_are_hidden(text, shown):
    assert redact.redact(text) == shown
    assert SECRET[4:9] not in redact.hide_keys(text)


@pytest.mark.parametrize(
    "form", ["{0}...{1}", "{0}…{1}", "{0}****{1}", "{0}•••{1}", "provided: {0}......{1}"]
)
def test_keys_that_are_shortened_are_hidden(form):
    key = "abcdefgh-0123456789-wxyz"
    redact.remember(key)
    for first in (6, 12):
        text = form.format(key[:first], key[-4:])
        assert "wxyz" not in (hidden := redact.hide_keys(text))
        assert "abcdef" not in hidden
    assert redact.hide_keys("abcdef and more") == "abcdef and more"


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("length", [8, 9, 10, 31])
def test_no_alignment_of_base64_shows_a_key(shift, length):
    key = "Kj7_pQ2xW9-zR4tY8uVbN3mL6cD1fG5"[:length]
    redact.remember(key)
    text = BASE64(b"x" * shift + key.encode() + b"yy").decode()
    assert redact.hide_keys(f"<{text}>") == "<[key]>"


@pytest.mark.parametrize(
    "text",
    [
        "none of the models is called none",
        "a risk-averse task-specific desk-lamp",
        "mail me@host.org, or see https://host.org/a@b",
        "Rate limit reached for requests",
    ],
)
def test_other_text_is_left_alone(text):
    assert redact.redact(text) == text


def test_an_address_is_shown_without_credentials_and_query():
    given = "https://user:pass@host.example:8443/v1?api-key=12345678#x"
    assert redact.address(given) == "https://host.example:8443/v1"


def test_libraries_below_do_not_log_requests(caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.DEBUG)
    redact.quiet_loggers()
    for name in ("openai._base_client", "httpx", "httpcore.http11"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
