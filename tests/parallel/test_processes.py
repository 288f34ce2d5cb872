import json
import time

import process_group
import pytest

from stepdistill_jax.parallel import processes
from stepdistill_jax.spec import EXIT_UNAVAILABLE

# Each process writes what became of every call, in the order of the calls.
PROGRAM = """
import json, pathlib, sys, time
from stepdistill_jax.parallel import cluster
from stepdistill_jax.parallel import processes
from stepdistill_jax.spec import InputError

cluster.start()
folder, found = pathlib.Path(sys.argv[1]), {"lead": processes.is_lead()}
made = folder / "made"

def make():
    if not made.exists():
        time.sleep(0.5)
        made.write_text(str(processes.index()))
    return made.read_text()

class OddError(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")

def refuse():
    raise InputError("the lead's own")

def fail():
    raise KeyError("k")

def fail_oddly():
    raise OddError(code=7)

found["value"] = processes.from_lead(lambda: processes.index() + 7)
found["made"] = processes.lead_first(make)
for name, call in {
    "refused": lambda: processes.from_lead(refuse),
    "refused first": lambda: processes.lead_first(refuse),
    "failed": lambda: processes.from_lead(fail),
    "failed oddly": lambda: processes.lead_first(fail_oddly),
    "no JSON": lambda: processes.from_lead(lambda: sys.stdout),
    "different": lambda: processes.refuse_difference("data", f"d{processes.index()}", "Mend it."),
    "same": lambda: processes.refuse_difference("data", "d", "Mend it."),
}.items():
    try:
        found[name] = call()
    except Exception as error:
        found[name] = str(error)
if processes.index() == 1:
    time.sleep(0.5)
    (folder / "late").touch()
processes.meet()
found["met"] = (folder / "late").exists()
(folder / f"found{processes.index()}").write_text(json.dumps(found))
"""
# One of two meets with an error of its own, while the other waits for it.
ERROR = """
from launch import flags
from stepdistill_jax.parallel import cluster
from stepdistill_jax.parallel import processes
from stepdistill_jax.spec import InputError

def main(arguments):
    cluster.HEARTBEAT_SECONDS = 15
    cluster.start()
    if processes.index() == {number}:
        raise InputError("this disk is full")
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices("all")

flags.run_with_arguments(main)
"""


def test_one_process_is_the_lead_and_does_all_itself():
    assert processes.is_lead()
    assert processes.from_lead(lambda: 3) == 3
    assert processes.lead_first(lambda: 4) == 4
    processes.refuse_difference("data", "d", "Mend it.")


def test_the_lead_does_and_decides_for_all(tmp_path):
    command = ["-c", PROGRAM, str(tmp_path)]
    with process_group.ProcessGroup(2, 1, command, tmp_path) as group:
        assert group.wait(120) == [0, 0], group.output()
    lead, other = [json.loads((tmp_path / f"found{i}").read_text()) for i in range(2)]
    assert lead["lead"]
    assert not other["lead"]
    for found in (lead, other):
        assert (found["value"], found["made"]) == (7, "0")
        assert found["refused"] == found["refused first"] == "the lead's own"
        assert found["same"] is None
        assert found["met"]
        assert "JSON serializable" in found["no JSON"]
    assert (lead["failed"], other["failed"]) == ("'k'", "KeyError: 'k'")
    assert (lead["failed oddly"], other["failed oddly"]) == ("code 7", "OddError: code 7")
    assert lead["different"] is None
    assert other["different"] == "process 1 of 2 has the data d1, process 0 has d0. Mend it."


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_in_one_process_ends_the_other(tmp_path, number):
    start = time.monotonic()
    command = ["-c", ERROR.format(number=number)]
    with process_group.ProcessGroup(2, 1, command, tmp_path) as group:
        codes = group.wait(180)
    assert time.monotonic() - start < 180
    assert codes[number] == 2, group.output()
    assert group.logs[number].read_text().splitlines()[-1] == "error: this disk is full"
    assert codes[1 - number] == EXIT_UNAVAILABLE, group.output()
    assert "continues from the last checkpoint" in group.logs[1 - number].read_text()
