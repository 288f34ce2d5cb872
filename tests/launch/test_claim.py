import pytest

from launch.claim import claim
from stepdistill_jax import config as configs
from stepdistill_jax.parallel import processes
from stepdistill_jax.spec import InputError


def test_processes_with_other_settings_than_the_lead_are_refused(tmp_path, monkeypatch):
    def parse(*settings):
        return configs.parse(["demo.gin"], [f"MODEL_DIR={str(tmp_path)!r}", *settings])

    lead = parse("DATA_DIR='/host0'", "CACHE_DIR='/host0'")
    monkeypatch.setattr(processes, "from_lead", lambda do: ("text", lead))
    # Folders of a host's own are no difference.
    assert claim(parse("DATA_DIR='/host1'")) == "text"
    with pytest.raises(
        InputError,
        match=r"LEARNING_RATE=0\.5 \(process 0: 0\.002\), MESH_TENSOR=2 \(process 0: 1\); start",
    ):
        claim(parse("LEARNING_RATE=0.5", "MESH_TENSOR=2"))
