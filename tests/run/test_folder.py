import errno
import os
import socket
import subprocess
import sys

import pytest

from launch import eval as eval_binary
from launch import train
from launch.flags import Arguments
from stepdistill_jax.parallel import processes
from stepdistill_jax.run import folder
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.folder import claim
from stepdistill_jax.spec import InputError
from stepdistill_jax.train import build


@pytest.fixture
def parse(tmp_path):
    return lambda *settings: configs.parse(
        ["demo.gin"], [f"MODEL_DIR={str(tmp_path)!r}", *settings]
    )


@pytest.fixture
def second(monkeypatch, tmp_path):
    """Makes this the second of two processes, of which the first was started with `lead`."""

    def make(lead, *, shared=True):
        def from_lead(do):
            value = do()
            if isinstance(value, dict):
                return {name: repr(setting) for name, setting in configs.values(lead).items()}
            if isinstance(value, str) and value.startswith(".shared-") and not shared:
                (tmp_path / value).unlink()  # as if on the disk of another host
            return value

        monkeypatch.setattr(processes, "count", lambda: 2)
        monkeypatch.setattr(processes, "index", lambda: 1)
        monkeypatch.setattr(processes, "from_lead", from_lead)
        monkeypatch.setattr(processes, "gather", lambda key, value: [True, value])

    return make


def test_processes_with_other_settings_than_the_lead_are_refused(parse, second):
    second(parse("DATA_DIR='/host0'", "CACHE_DIR='/host0'"))
    # Folders of a host's own are no difference.
    assert "FRACTION" in claim(parse("DATA_DIR='/host1'"))
    with pytest.raises(
        InputError,
        match=r"LEARNING_RATE=0\.5 \(process 0: 0\.002\), MESH_TENSOR=2 \(process 0: 1\)\. Start",
    ):
        claim(parse("LEARNING_RATE=0.5", "MESH_TENSOR=2"))


def test_a_folder_that_is_not_shared_is_refused(parse, second):
    second(parse(), shared=False)
    with pytest.raises(InputError, match=r"is not shared: process 1 cannot see"):
        claim(parse())


def test_whether_a_run_goes_on_is_for_the_lead_to_say(parse, monkeypatch):
    class ClaimedError(Exception):
        pass

    def claimed(config):
        raise ClaimedError

    monkeypatch.setattr(train.cluster, "start", lambda *, preemptible: None)
    monkeypatch.setattr(build.initial, "check", lambda *_: pytest.fail("begins anew"))
    monkeypatch.setattr(build, "claim", claimed)
    # Here there is no step yet.
    monkeypatch.setattr(processes, "from_lead", lambda do: [3])
    with pytest.raises(ClaimedError):
        train.main(parse())


def test_processes_that_met_by_chance_do_not_score_together(parse, second, tmp_path, monkeypatch):
    claim(parse())
    monkeypatch.setattr(eval_binary, "score", lambda config: pytest.fail("scored"))
    second(parse("EVAL_STEP='latest'"))
    arguments = Arguments(positional=(str(tmp_path),))
    with pytest.raises(InputError, match=r"EVAL_STEP='best' \(process 0: 'latest'\)"):
        eval_binary.main(arguments)
    monkeypatch.setattr(processes, "from_lead", lambda do: "['elsewhere']")
    with pytest.raises(InputError, match=r"process 1 of 2 has the folders .*, process 0 has \['el"):
        eval_binary.main(arguments)


HOLDER = """
import sys, time
from stepdistill_jax.run import folder, load

with folder.locked(load.parse(["demo.gin"], [f"MODEL_DIR={sys.argv[1]!r}"])):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_a_second_program_is_refused_until_the_first_has_ended_however_it_ends(tmp_path):
    model_dir = tmp_path / "run"
    made = configs.parse(["demo.gin"], [f"MODEL_DIR={str(model_dir)!r}"])
    command = [sys.executable, "-c", HOLDER, str(model_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(InputError) as error, folder.locked(made):
            pass
        assert str(error.value) == (
            f"MODEL_DIR={str(model_dir)!r} is in use by process {holder.pid} on "
            f"{socket.gethostname()}. Wait for it, stop it, or choose another MODEL_DIR."
        )
        holder.kill()
    with folder.locked(made):
        owner = (model_dir / ".train.lock").read_text()
        assert owner == f"process {os.getpid()} on {socket.gethostname()}"
    with folder.locked(made):
        pass


def test_a_disk_without_locks_is_named_once_and_used(tmp_path, monkeypatch, caplog):
    made = configs.parse(["demo.gin"], [f"MODEL_DIR={str(tmp_path)!r}"])

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder.records.fcntl, "flock", flock)
    with folder.locked(made):
        assert caplog.messages == [f"{tmp_path} has no locks: start no second program there"]
