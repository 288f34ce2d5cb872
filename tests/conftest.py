"""Eight fake CPU devices, set before jax is imported, so that sharding is exercised everywhere."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from process_group import IN_HASTE

os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", IN_HASTE]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Goes before the session's own cache of programs.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax
import pytest

from stepdistill_jax.parallel import compilation

# A silent change of rank is a shape bug that numpy hides.
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs():
    """Drops what a module compiled: each program maps memory, and Linux allows 65,530 maps."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory) -> pathlib.Path:
    """Token caches and compiled programs: what one test has made, those after it find.

    All workers of a session share it, and it is never the user's own.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "caches"
    folder.mkdir(exist_ok=True)
    os.environ["STEPDISTILL_CACHE_DIR"] = str(folder)
    compilation.enable_compilation_cache(folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """`../shared` with the public data; required in CI, skipped with a word elsewhere."""
    if not SHARED.exists():
        message = f"the public data sets are not at {SHARED}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def spiece(shared: pathlib.Path) -> pathlib.Path:
    """T5's public SentencePiece model."""
    return shared / "tokenizer" / "spiece.model"


@pytest.fixture(scope="session")
def store() -> Iterator[Any]:
    """A server of Google Cloud Storage's protocol with a bucket ``bucket``.

    All clients of this process and its children are sent to it. They keep their connection, so
    there is one server for all tests, each of which writes to a folder of its own.
    """
    from storage_server import StorageServer  # whose checksums are of the extra `gcs`

    with StorageServer("bucket") as server:
        os.environ.update(server.environment())
        yield server


@pytest.fixture
def gs_folder(store, request) -> str:
    """``gs://bucket/...`` of one test's own."""
    return f"gs://bucket/{request.module.__name__}/{request.node.name}"
