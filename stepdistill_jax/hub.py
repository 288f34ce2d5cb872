"""Files of the Hugging Face hub: from its local cache, else downloaded."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

from absl import logging
from etils import epath

from stepdistill_jax.spec import InputError

PREFIX = "hf:"
_TIMEOUT_SECONDS = 10


def cached(repository: str, candidates: Sequence[str]) -> epath.Path | None:
    """The first of `candidates` that the local cache holds; uses no network.

    Raises:
        ValueError: the repository's name is malformed.
    """
    import huggingface_hub

    for file in candidates:
        path = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return epath.Path(path)
    return None


class AbsentFileError(InputError):
    """A repository that can be reached has none of the files."""


def optional(setting: str, repository: str, file: str) -> epath.Path | None:
    """A file that the repository may lack; None = it lacks it, or it cannot be reached."""
    import huggingface_hub

    try:
        found = huggingface_hub.try_to_load_from_cache(repository, file)
        # A mark in the cache: the repository is known to lack it.
        if found is not None and not isinstance(found, str):
            return None
        return find(setting, repository, (file,), remedy="")
    except AbsentFileError:
        return None
    except InputError:
        _warn_unreachable(setting, repository)
        return None


@functools.cache
def _warn_unreachable(setting: str, repository: str) -> None:
    logging.warning(
        "%s='%s%s': the hub cannot be reached, so optional files (generation_config.json, added "
        "tokens) that its local copy lacks are not checked",
        *(setting, PREFIX, repository),
    )


def find(
    setting: str, repository: str, candidates: Sequence[str], remedy: str, download: str = ""
) -> epath.Path:
    """The first of `candidates` that the repository has, as a local file.

    Args:
        setting: macro or flag that names the repository, for messages.
        repository: ``OWNER/NAME`` on the hub.
        candidates: file names; one in the local cache is preferred to a download of any other.
        remedy: what to do with the folder FOLDER that the files were copied to by hand.
        download: which files to copy by hand, as arguments of ``hf download``; "" = all.

    Raises:
        InputError: none is in the local cache, and none can be downloaded.
    """
    import huggingface_hub
    from huggingface_hub import errors

    # The base of the HTTP library's own errors, whichever library this version uses.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    where, files = f"{setting}='{PREFIX}{repository}'", " or ".join(candidates)
    try:
        if path := cached(repository, candidates):
            return path
        for file in candidates:
            try:
                # Without a network a download retries for half a minute; this fails at once.
                url = huggingface_hub.hf_hub_url(repository, file)
                huggingface_hub.get_hf_file_metadata(url, timeout=_TIMEOUT_SECONDS)
                return epath.Path(huggingface_hub.hf_hub_download(repository, file))
            except errors.LocalEntryNotFoundError:
                raise  # no network: the others cannot be downloaded either
            except errors.EntryNotFoundError:
                continue
    except errors.HFValidationError:
        problem = "expected a folder, or hf:OWNER/NAME for a repository of the hub"
        raise InputError(f"{where}: {problem}. Correct {setting}.") from None
    except errors.RepositoryNotFoundError:
        problem = f"{huggingface_hub.constants.ENDPOINT} has no such repository that you can read"
        raise InputError(
            f"{where}: {problem}. Correct the name, or run `hf auth login` for a private one."
        ) from None
    except (OSError, ValueError, HTTPError) as error:
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else f"{type(error).__name__}: {error}"
        cache = pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE)
        command = " ".join(filter(None, ("hf download", repository, download)))
        raise InputError(
            f"{where}: {files} is not in {cache} and cannot be downloaded "
            f"({reason.splitlines()[0]:.100}). Run `{command} --local-dir FOLDER` where there is a "
            f"network, copy FOLDER here and {remedy}."
        ) from error
    raise AbsentFileError(
        f"{where}: the repository has no {files}. Name a repository that has one."
    )
