import pytest
from extract_cases import KEY, drink
from teacher_server import TeacherServer


@pytest.fixture
def server():
    """An endpoint that wants `KEY` and answers about the demo."""
    with TeacherServer(answer=drink, key=KEY) as running:
        yield running


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own, with the key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("STEPDISTILL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return tmp_path
