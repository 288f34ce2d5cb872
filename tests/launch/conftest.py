import jax
import pytest

from launch import benchmark
from stepdistill_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def one_device(monkeypatch):
    """The recipe runs on one."""
    monkeypatch.setattr(benchmark, "make_mesh", lambda c: make_mesh(c, jax.devices()[:1]))
