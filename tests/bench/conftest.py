import jax
import pytest

from stepdistill_jax.bench import run_speed
from stepdistill_jax.parallel.mesh import make_mesh


@pytest.fixture
def one_device(monkeypatch):
    """The recipe runs on one."""
    monkeypatch.setattr(run_speed, "make_mesh", lambda c: make_mesh(c, jax.devices()[:1]))
