import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver
from extract_cases import KEY, drink, settings
from teacher_server import TeacherServer

from launch import extract
from launch.flags import Arguments
from stepdistill_jax.spec import InputError


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


@pytest.fixture
def run(place, server, capsys):
    """Runs the binary's main in this process -> (exit code or message, stdout, stderr)."""

    def started(*more, positional=(), files=("extract/demo.gin",), folder="out", **flags):
        given = settings(place, server, *more, folder=folder) if files else more
        with flagsaver.flagsaver(**flags):
            try:
                code = extract.main(Arguments(files, given, (), positional))
            except InputError as error:
                code = str(error)
        said = capsys.readouterr()
        return code, said.out, said.err

    absl_flags.FLAGS(["extract"])
    return started
