"""Files of the Hugging Face hub: from the local cache, else fetched, else named for the user."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from etils import epath

from stepdistill_jax.spec import InputError

PREFIX = "hf:"
_SECONDS_TO_ANSWER = 10


def cached(repository: str, candidates: Sequence[str]) -> epath.Path | None:
    """The first of `candidates` that the local cache holds; asks no network.

    Raises:
        ValueError: the repository's name is malformed.
    """
    import huggingface_hub

    for file in candidates:
        path = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return epath.Path(path)
    return None


def find(name: str, repository: str, candidates: Sequence[str], remedy: str) -> epath.Path:
    """The first of `candidates` that the repository has, as a local file.

    Args:
        name: what the user wrote and where, such as ``VOCABULARY 'hf:google/t5-v1_1-base'``.
        repository: ``OWNER/NAME`` on the hub.
        candidates: file names; one of them in the local cache is taken before any other is fetched.
        remedy: what to do with a file that was fetched elsewhere.

    Raises:
        InputError: none is in the local cache, and none could be fetched.
    """
    import huggingface_hub
    from huggingface_hub import errors

    # The base of the HTTP library's own errors, whichever library this version uses.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    failure = "the repository has no such file"
    try:
        if path := cached(repository, candidates):
            return path
        for file in candidates:
            try:
                # Asked once first: a download without a network tries for half a minute, aloud.
                url = huggingface_hub.hf_hub_url(repository, file)
                huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS_TO_ANSWER)
                return epath.Path(huggingface_hub.hf_hub_download(repository, file))
            except errors.LocalEntryNotFoundError:
                raise  # no network: the others will not be fetched either
            except errors.EntryNotFoundError:
                continue
    except (OSError, ValueError, HTTPError) as error:
        # Network failures, unknown names and malformed names.
        failure = type(error).__name__
    cache = pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE)
    address = f"https://huggingface.co/{repository}/resolve/main/{candidates[0]}"
    raise InputError(
        f"{name}: {' or '.join(candidates)} is not in the local cache {cache} and could not be "
        f"fetched ({failure}); where there is a network, save {address}, copy it to this machine "
        f"and {remedy}"
    )
