"""Where completions come from, by CLIENT; a client's libraries are imported when it is opened."""

from __future__ import annotations

from collections.abc import Callable

from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Client


def open(
    extract: ExtractConfig, data: DataConfig, notify: Callable[[str], None] = lambda line: None
) -> Client:
    """The client of CLIENT; `notify` gets lines for the user about waits.

    Raises:
        InputError: no key, no such model or folder, a missing library, nothing to replay.
    """
    if extract.client == "openai":
        from stepdistill_jax.teacher.clients.openai_client import OpenAIClient

        return OpenAIClient(extract, notify)
    if extract.client == "batch":
        from stepdistill_jax.teacher.clients.batch_client import BatchClient

        return BatchClient(extract, notify)
    if extract.client == "local":
        from stepdistill_jax.teacher.clients.local import LocalClient

        return LocalClient(extract)
    from stepdistill_jax.teacher.clients.replay import Replay

    return Replay(extract, data)


def source(extract: ExtractConfig) -> str:
    """Names where TEACHER_MODEL is served: equal requests there have equal completions.

    The endpoint's address without credentials, or "local" for a model on this machine.
    """
    if extract.client == "local":
        return extract.client
    from stepdistill_jax.teacher.clients import endpoint

    return endpoint.address(extract)


def warnings(extract: ExtractConfig) -> list[str]:
    """Warnings before anything is sent: nothing listens, or the model is not listed.

    One request. An endpoint that does not list its models gives no warning.
    """
    if extract.client in ("replay", "local"):
        return []
    from stepdistill_jax.teacher.clients.endpoint_info import EndpointInfo

    try:
        return EndpointInfo(extract).warnings()
    except InputError:
        # The client reports a missing key when it is opened.
        return []


def context_length(extract: ExtractConfig) -> int | None:
    """Tokens that the teacher's context holds, prompt and completion; None = unknown.

    Asks the endpoint, in two small requests.

    Raises:
        InputError: the endpoint's address or key is missing, or the local model.
    """
    if extract.client == "replay":
        return None
    if extract.client == "local":
        from stepdistill_jax.teacher.clients import local

        return local.context_length(extract.teacher_model)
    from stepdistill_jax.teacher.clients.endpoint_info import EndpointInfo

    return EndpointInfo(extract).context_length()


def token_counter(extract: ExtractConfig) -> Callable[[str], int] | None:
    """Counts a text's tokens as the teacher does, one request per text; None = not offered.

    Raises:
        InputError: as `context_length`.
    """
    if extract.client == "replay":
        return None
    if extract.client == "local":
        from stepdistill_jax.teacher.clients import local

        return local.token_counter(extract.teacher_model)
    from stepdistill_jax.teacher.clients.endpoint_info import EndpointInfo

    return EndpointInfo(extract).token_counter()
