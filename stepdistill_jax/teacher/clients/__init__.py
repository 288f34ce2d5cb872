"""Where a teacher's answers come from, by CLIENT; each is opened only when it is wanted."""

from __future__ import annotations

from collections.abc import Callable

from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Client


def open(
    extract: ExtractConfig, data: DataConfig, tell: Callable[[str], None] = lambda line: None
) -> Client:
    """The client of CLIENT ("batch" is no `Client`: see `batch.Batch`).

    `tell` is called with a line for the user when the endpoint makes it wait.

    Raises:
        InputError: no key, no such model or folder, a library is missing, no answers to replay.
    """
    if extract.client == "openai":
        from stepdistill_jax.teacher.clients.openai_client import OpenAIClient

        return OpenAIClient(extract, tell)
    if extract.client == "local":
        from stepdistill_jax.teacher.clients.local import LocalClient

        return LocalClient(extract)
    if extract.client == "replay":
        from stepdistill_jax.teacher.clients.replay import Replay

        return Replay(extract, data)
    raise ValueError(f"CLIENT {extract.client!r} has no open client")


def source(extract: ExtractConfig) -> str:
    """Where the teacher is, TEACHER_MODEL being its name there: equal questions have equal answers.

    The endpoint's address, without credentials; for a model on this machine "local".
    """
    if extract.client == "local":
        return extract.client
    from stepdistill_jax.teacher.clients import endpoint

    return endpoint.address(extract)


def doubts(extract: ExtractConfig) -> list[str]:
    """What speaks against asking, a line each: nothing listens, or no model of that name is there.

    An endpoint that does not list its models, or refuses to, gives no reason to doubt; one request.
    """
    if extract.client in ("replay", "local"):
        return []
    from stepdistill_jax.teacher.clients.models import EndpointInfo

    try:
        return EndpointInfo(extract).doubts()
    except InputError:
        # Without a key there is nothing to ask; the client says so when it is opened.
        return []


def context_length(extract: ExtractConfig) -> int | None:
    """Tokens that the teacher holds, prompt and answer, by its own word; None = it does not say.

    Asks the endpoint (two small requests), and is None where it does not answer.

    Raises:
        InputError: the endpoint's address or key is missing; a local model is not there.
    """
    if extract.client == "replay":
        return None
    if extract.client == "local":
        from stepdistill_jax.teacher.clients import local

        return local.context_length(extract.teacher_model)
    from stepdistill_jax.teacher.clients.models import EndpointInfo

    return EndpointInfo(extract).context_length()


def token_counter(extract: ExtractConfig) -> Callable[[str], int] | None:
    """Counts a text's tokens as the teacher does, one request a text; None = it offers no count.

    Raises:
        InputError: as `context_length`.
    """
    if extract.client == "replay":
        return None
    if extract.client == "local":
        from stepdistill_jax.teacher.clients import local

        return local.token_counter(extract.teacher_model)
    from stepdistill_jax.teacher.clients.models import EndpointInfo

    return EndpointInfo(extract).token_counter()
