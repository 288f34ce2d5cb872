"""What is different where files lie on Google Cloud Storage (``gs://``) instead of a disk.

All files of a run are read and written through `etils.epath`, which knows both. A store has no
folders, no locks, no appending and no renaming; what it has is objects that are written whole or
not at all. Orbax and tensorstore bring their own client.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import tempfile
from typing import Any

from etils import epath

from stepdistill_jax.spec import InputError, UnavailableError

SCHEME = "gs://"
_TO_READ = ("storage.objects.list", "storage.objects.get")
# Orbax asks for the first, to learn what kind of bucket it is.
_TO_WRITE = (
    "storage.buckets.get",
    *_TO_READ,
    "storage.objects.create",
    "storage.objects.delete",
)
# What a store that does not answer is given before a run says so.
PATIENCE_SECONDS = 20.0
_CLIENTS = frozenset({"gcsfs", "google", "aiohttp", "requests", "urllib3"})
# tensorstore has plain ValueErrors; these once it has tried for minutes.
_TENSORSTORE = re.compile("(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): .*(gs://|tensorstore)", re.S)
# Too slow, too often: the other codes from 400 to 499 are refusals.
_PASSING_CODES = frozenset({408, 429})


def _configure() -> None:
    """Has epath read ``gs://`` through gcsfs, and gcsfs look anew at every listing.

    By itself epath takes TensorFlow wherever that is installed, which costs seconds of start-up.
    And gcsfs remembers every listing for good: what another process writes is never seen, such as
    the checkpoints of a run that is followed. Both read their settings when they are first used.
    """
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')
    if "fsspec.config" in sys.modules:
        settings = sys.modules["fsspec.config"].conf.setdefault("gcs", {})
        settings.setdefault("use_listings_cache", False)


_configure()


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies on a store, not on a disk of this machine's."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> str:
    """The one name of a folder: links resolved, no slash at the end."""
    return os.fspath(path).rstrip("/") if is_remote(path) else os.path.realpath(path)


@functools.cache
def on_disk(path: epath.Path) -> epath.Path:
    """`path`, for libraries that read disks alone; of a file on a store a copy.

    The copy is deleted when the process ends.
    """
    if not is_remote(path):
        return path
    digest = hashlib.sha256(os.fspath(path).encode()).hexdigest()
    folder = epath.Path(_scratch().name) / digest
    folder.mkdir(parents=True, exist_ok=True)
    # A copy that failed may have left a part.
    return path.copy(folder / path.name, overwrite=True)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="stepdistill_jax.")


def check(name: str, path: epath.PathLike, *, write: bool = False) -> None:
    """Asks a store, before any work is done, whether it can be used; says nothing of a disk.

    Args:
        name: macro or flag, for the error.
        path: its value.
        write: whether anything will be written.

    Raises:
        InputError: an unknown scheme, no client installed, no credentials, no such bucket, or no
            permission.
        UnavailableError: no answer.
    """
    path = os.fspath(path)
    if not is_remote(path):
        return
    bucket, _, inside = path.removeprefix(SCHEME).partition("/")
    if not path.startswith(SCHEME) or not bucket or not inside:
        raise InputError(
            f"{name}={path!r}: expected a folder on a disk, or gs://BUCKET/FOLDER on Google Cloud "
            "Storage"
        )
    try:
        problem = _problem(bucket, _TO_WRITE if write else _TO_READ)
    except UnavailableError as error:
        raise UnavailableError(f"{name}={path!r}: {error}") from error
    if problem:
        raise InputError(f"{name}={path!r}: {problem}")


@functools.cache
def _problem(bucket: str, permissions: tuple[str, ...]) -> str:
    """Why a bucket cannot be used so, and what to do; "" where it can.

    Raises:
        UnavailableError: it gives no answer, which is not remembered.
    """
    try:
        import gcsfs  # noqa: F401 - asked for; epath imports it by name
        from google.api_core import exceptions, retry
        from google.auth import exceptions as auth_exceptions
        from google.cloud import storage
    except ImportError as error:
        return (
            f"Google Cloud Storage needs a client that is not installed ({error}); "
            "pip install 'stepdistill-jax[gcs]'"
        )
    login = (
        "attach a service account to the machine, or run gcloud auth application-default login, "
        "or name a key file in GOOGLE_APPLICATION_CREDENTIALS"
    )
    again = {
        "timeout": PATIENCE_SECONDS / 2,
        "retry": retry.Retry(timeout=PATIENCE_SECONDS, maximum=PATIENCE_SECONDS / 4),
    }
    try:
        there = _client(storage).bucket(bucket)
        held = there.test_iam_permissions(list(permissions), **again)
        if permissions == _TO_READ and set(permissions) - set(held):
            # Objects of a public bucket may be readable by lists of their own.
            next(iter(there.list_blobs(max_results=1, **again)), None)
            return ""
    except auth_exceptions.DefaultCredentialsError:
        return f"there are no credentials for Google Cloud here; {login}"
    except exceptions.NotFound:
        return f"there is no bucket {bucket!r}; create it, or correct the name"
    except (
        exceptions.Forbidden,
        exceptions.Unauthorized,
        auth_exceptions.RefreshError,  # expired or revoked
    ) as error:
        # A machine's own credentials come over the network too.
        if isinstance(error.__cause__, auth_exceptions.TransportError):
            raise _no_answer(error) from error
        return f"these credentials may not use bucket {bucket!r} ({in_line(error)}); {login}"
    except Exception as error:  # no network, a proxy
        raise _no_answer(error) from error
    lacking = [permission for permission in permissions if permission not in held]
    if lacking:
        return (
            f"these credentials lack {', '.join(lacking)} in bucket {bucket!r}; grant the roles "
            "Storage Object User and Storage Legacy Bucket Reader"
        )
    return ""


def _no_answer(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"Google Cloud Storage gave no answer within {PATIENCE_SECONDS:.0f} s "
        f"({in_line(error)}); check the network and the credentials, and run again"
    )


def _client(storage: Any) -> Any:
    try:
        return storage.Client()
    except OSError:
        # The credentials name no project. No object needs one, but Orbax makes such clients too.
        os.environ["GOOGLE_CLOUD_PROJECT"] = "none"
        return storage.Client()


def failure(error: BaseException) -> InputError | None:
    """What a store's client raised once its own retries had come to nothing, in one line.

    Returns:
        `UnavailableError` where the store may answer later, another `InputError` where it has
        refused; None where the error is not of such a client.
    """
    said = f"Google Cloud Storage: {in_line(error)}"
    of_client = type(error).__module__.partition(".")[0] in _CLIENTS
    # gcsfs has OSErrors without a number for what it is forbidden to do.
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden: ")
    code = getattr(error, "code", None) or getattr(error, "status", None) or 0
    refused = of_client and 400 <= int(code) < 500 and int(code) not in _PASSING_CODES
    if forbidden or refused or type(error).__name__ == "DefaultCredentialsError":
        return InputError(f"{said}; once that is allowed, the same command continues")
    if of_client or (isinstance(error, ValueError) and _TENSORSTORE.search(str(error))):
        return UnavailableError(f"{said}; once it answers, the same command continues")
    return None


def raise_failure(error: BaseException) -> None:
    """Raises `failure` of an error, where it is one, before a caller takes it for a damaged file.

    Raises:
        InputError, UnavailableError: see `failure`.
    """
    failed = failure(error)
    if failed:
        raise failed from error


def in_line(error: BaseException) -> str:
    """An error's own words, in one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
