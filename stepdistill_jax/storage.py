"""Files on Google Cloud Storage (``gs://``) instead of a disk.

All files of a run are read and written through `etils.epath`, which supports both. A store has no
folders, locks, appending or renaming; an object is written completely or not at all. Orbax and
tensorstore have their own clients.
"""

from __future__ import annotations

import errno
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
# A full, read-only or forbidden folder is not a defect of the program.
DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
)
_TO_READ = ("storage.objects.list", "storage.objects.get")
# Orbax needs the first to determine the kind of bucket.
_TO_WRITE = (
    "storage.buckets.get",
    *_TO_READ,
    "storage.objects.create",
    "storage.objects.delete",
)
# A run reports a store that does not answer after this time.
PATIENCE_SECONDS = 20.0
_CLIENTS = frozenset({"gcsfs", "google", "aiohttp", "requests", "urllib3"})
# tensorstore raises plain ValueErrors; these after minutes of retries.
_TENSORSTORE = re.compile("(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): .*(gs://|tensorstore)", re.S)
# Timeout and rate limit; the other codes from 400 to 499 are refusals.
_PASSING_CODES = frozenset({408, 429})


def _configure() -> None:
    """Makes epath read ``gs://`` through gcsfs, and gcsfs not cache listings.

    By default epath uses TensorFlow if it is installed, which costs seconds of startup. And gcsfs
    caches every listing without end, so it never sees what another process writes, such as the
    checkpoints of a followed run. Both read their settings on first use.
    """
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')
    if "fsspec.config" in sys.modules:
        settings = sys.modules["fsspec.config"].conf.setdefault("gcs", {})
        settings.setdefault("use_listings_cache", False)


_configure()


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is on a store, not on a local disk."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> str:
    """The unique name of a folder: links resolved, no trailing slash."""
    return os.fspath(path).rstrip("/") if is_remote(path) else os.path.realpath(path)


@functools.cache
def on_disk(path: epath.Path) -> epath.Path:
    """`path`, or for a file on a store a local copy, which is deleted when the process ends."""
    if not is_remote(path):
        return path
    digest = hashlib.sha256(os.fspath(path).encode()).hexdigest()
    folder = epath.Path(_scratch().name) / digest
    folder.mkdir(parents=True, exist_ok=True)
    # A failed copy may have left a partial file.
    return path.copy(folder / path.name, overwrite=True)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="stepdistill_jax.")


def check(name: str, path: epath.PathLike, *, write: bool = False) -> None:
    """Checks, before any work is done, that a store can be used; ignores local paths.

    Args:
        name: macro or flag, for the error.
        path: its value.
        write: whether the run writes there.

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
            f"{name}={path!r}: expected a local folder or gs://BUCKET/FOLDER on Google Cloud "
            "Storage."
        )
    try:
        problem = _problem(bucket, _TO_WRITE if write else _TO_READ)
    except UnavailableError as error:
        raise UnavailableError(f"{name}={path!r}: {error}") from error
    if problem:
        raise InputError(f"{name}={path!r}: {problem}")


@functools.cache
def _problem(bucket: str, permissions: tuple[str, ...]) -> str:
    """Why a bucket cannot be used, and what to do; "" if it can.

    Raises:
        UnavailableError: it does not answer; this is not cached.
    """
    try:
        import gcsfs  # noqa: F401 - epath imports it by name
        from google.api_core import exceptions, retry
        from google.auth import exceptions as auth_exceptions
        from google.cloud import storage
    except ImportError as error:
        return (
            f"Google Cloud Storage needs a client that is not installed ({error}). "
            "Run pip install 'stepdistill-jax[gcs]'."
        )
    login = (
        "Attach a service account to the machine, run gcloud auth application-default login, or "
        "set GOOGLE_APPLICATION_CREDENTIALS to a key file."
    )
    retries = {
        "timeout": PATIENCE_SECONDS / 2,
        "retry": retry.Retry(timeout=PATIENCE_SECONDS, maximum=PATIENCE_SECONDS / 4),
    }
    try:
        handle = _client(storage).bucket(bucket)
        granted = handle.test_iam_permissions(list(permissions), **retries)
        if permissions == _TO_READ and set(permissions) - set(granted):
            # The objects of a public bucket may be readable through their own access lists.
            next(iter(handle.list_blobs(max_results=1, **retries)), None)
            return ""
    except auth_exceptions.DefaultCredentialsError:
        return f"no credentials for Google Cloud. {login}"
    except exceptions.NotFound:
        return f"no bucket {bucket!r}. Create it, or correct the name."
    except (
        exceptions.Forbidden,
        exceptions.Unauthorized,
        auth_exceptions.RefreshError,  # expired or revoked
    ) as error:
        # A machine's credentials come over the network too.
        if isinstance(error.__cause__, auth_exceptions.TransportError):
            raise _no_answer(error) from error
        return f"access to bucket {bucket!r} denied ({in_line(error)}). {login}"
    except Exception as error:  # no network, a proxy
        raise _no_answer(error) from error
    missing = [permission for permission in permissions if permission not in granted]
    if missing:
        return (
            f"the credentials lack {', '.join(missing)} in bucket {bucket!r}. Grant the roles "
            "Storage Object User and Storage Legacy Bucket Reader."
        )
    return ""


def _no_answer(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"Google Cloud Storage did not answer within {PATIENCE_SECONDS:.0f} s "
        f"({in_line(error)}). Check the network and the credentials, and run again."
    )


def _client(storage: Any) -> Any:
    try:
        return storage.Client()
    except OSError:
        # The credentials name no project. Objects need none, but Orbax makes such clients too.
        os.environ["GOOGLE_CLOUD_PROJECT"] = "none"
        return storage.Client()


def failure(error: BaseException) -> InputError | None:
    """The error of a store's client after its retries, in one line.

    Returns:
        `UnavailableError` if the store may answer later, another `InputError` if it refused; None
        if the error is not of such a client.
    """
    message = f"Google Cloud Storage: {in_line(error)}"
    of_client = type(error).__module__.partition(".")[0] in _CLIENTS
    # gcsfs raises OSErrors without a number for denied requests.
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden: ")
    code = getattr(error, "code", None) or getattr(error, "status", None) or 0
    refused = of_client and 400 <= int(code) < 500 and int(code) not in _PASSING_CODES
    if forbidden or refused or type(error).__name__ == "DefaultCredentialsError":
        return InputError(f"{message}. Grant access and run the same command; it continues.")
    if of_client or (isinstance(error, ValueError) and _TENSORSTORE.search(str(error))):
        return UnavailableError(f"{message}. Run the same command later; it continues.")
    return None


def disk_failure(error: BaseException) -> str:
    """The reason in any library's error about a full, read-only or forbidden disk; else ""."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return os.strerror(error.errno)
    text = str(error)
    return next((reason for code in DISK_ERRORS if (reason := os.strerror(code)) in text), "")


def raise_failure(error: BaseException) -> None:
    """Raises `failure` of an error if it is one, so that it does not count as a damaged file.

    Raises:
        InputError, UnavailableError: see `failure`.
    """
    if failed := failure(error):
        raise failed from error


def in_line(error: BaseException) -> str:
    """An error's message, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
