import os
import time
import types

import jax
import process_group
import pytest
import requests
from jax._src.clusters import cloud_tpu_cluster

from launch import train
from stepdistill_jax.parallel import cluster, processes
from stepdistill_jax.spec import EXIT_INPUT_ERROR, EXIT_UNAVAILABLE, InputError, UnavailableError

MEET = """
from stepdistill_jax.parallel import cluster
cluster._QUIET_SECONDS, cluster.MEETING_SECONDS = 1, 3
cluster.start()
"""


@pytest.fixture
def meetings(monkeypatch):
    """What JAX was asked to join, instead of joining it."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    monkeypatch.setattr(cluster.ctypes, "CDLL", lambda name: pytest.MonkeyPatch)
    monkeypatch.setattr(pytest.MonkeyPatch, "signal", lambda *_: None, raising=False)
    for name in cluster.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield calls
    jax.config.update("jax_enable_preemption_service", True)


@pytest.fixture
def tpu_hosts(monkeypatch):
    """Makes this machine a TPU host, as far as JAX's detection can see, of the named hosts."""
    before = jax.config.jax_platforms

    def make(names: str, platforms: str = "tpu,cpu") -> None:
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", names)
        monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")
        jax.config.update("jax_platforms", platforms)

    yield make
    jax.config.update("jax_platforms", before)


def test_a_process_that_is_alone_meets_nobody(meetings):
    cluster.start()
    assert meetings == []


def test_a_tpu_pod_needs_no_words(meetings, tpu_hosts):
    tpu_hosts("host-0,host-1")
    cluster.start()
    (given,) = meetings
    assert given["cluster_detection_method"] == "gketpu"
    assert "coordinator_address" not in given


@pytest.mark.parametrize(("names", "platforms"), [("host-0", "tpu,cpu"), ("host-0,host-1", "cpu")])
def test_a_single_tpu_host_and_a_host_without_its_tpu_meet_nobody(
    meetings, tpu_hosts, names, platforms
):
    tpu_hosts(names, platforms)
    cluster.start()
    assert meetings == []


def test_a_host_that_cannot_say_whether_it_is_alone_does_not_guess(
    meetings, tpu_hosts, monkeypatch
):
    def no_metadata(key):
        raise ConnectionError("no metadata server")

    tpu_hosts("host-0")
    monkeypatch.delenv("MEGASCALE_NUM_SLICES")
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", no_metadata)
    with pytest.raises(
        UnavailableError, match=r"number of hosts is unknown \(GkeTpuCluster: no metadata serv"
    ):
        cluster.start()
    for name, value in zip(cluster.VARIABLES, ("a:1", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    cluster.start()
    assert meetings == []


def test_processes_that_cannot_meet_may_do_so_later(meetings, tpu_hosts, monkeypatch):
    def refuse(**given):
        raise RuntimeError("UNKNOWN: Failed to start the service\nport in use")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    tpu_hosts("host-0,host-1")
    with pytest.raises(UnavailableError, match=r"cannot connect at .*: UNKNOWN: Failed to start"):
        cluster.start()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("wrong"), EXIT_INPUT_ERROR),
        (requests.exceptions.ConnectionError("outage"), EXIT_UNAVAILABLE),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Connection reset by peer"), EXIT_UNAVAILABLE),
        (RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE"), EXIT_UNAVAILABLE),
        (KeyError("a defect"), 1),
    ],
)
def test_how_one_of_several_ends_says_whether_a_later_start_may_help(monkeypatch, error, code):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(cluster, "leave", end)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended) as ended:
        cluster.end(error)
    assert ended.value.args == (code,)


def test_the_environment_says_where(meetings, monkeypatch):
    values = ("10.0.0.1:1234", "3", "2")
    for name, value in zip(cluster.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    cluster.start(preemptible=True)
    (given,) = meetings
    assert given["coordinator_address"] == "10.0.0.1:1234"
    assert (given["num_processes"], given["process_id"]) == (3, 2)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    cluster.start()
    assert len(meetings) == 1


def test_what_a_worker_of_a_job_starts_is_alone(meetings, monkeypatch):
    for name, value in {
        **{"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"},
        **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    }.items():
        monkeypatch.setenv(name, value)
    cluster.start()
    assert meetings.pop()["cluster_detection_method"] == "slurm"
    for name, value in cluster.alone().items():
        monkeypatch.setenv(name, value)
    cluster.start()
    assert meetings == []


@pytest.mark.parametrize(("method", "preemptible"), [("standard", True), ("teacher", False)])
def test_sigterm_becomes_a_notice_only_where_a_loop_asks_for_it(monkeypatch, method, preemptible):
    class StartedError(Exception):
        pass

    def start(*, preemptible=False):
        raise StartedError(preemptible)

    monkeypatch.setattr(cluster, "start", start)
    with pytest.raises(StartedError, match=str(preemptible)):
        train.main(types.SimpleNamespace(method=method))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ("", "2", ""),
            r"JAX_NUM_PROCESSES=2 but no JAX_COORDINATOR_ADDRESS and no JAX_PROCESS_ID\. Set all",
        ),
        (("a:1", "two", "0"), "JAX_NUM_PROCESSES='two' .* expected a whole number"),
        (("a:1", "2", "2"), "JAX_PROCESS_ID=2 .* expected 0 to 1, of JAX_NUM_PROCESSES=2"),
        (("a:1", "0", "0"), "JAX_NUM_PROCESSES=0 .* expected 1 or more"),
        (("a", "2", "0"), "JAX_COORDINATOR_ADDRESS='a' .* expected HOST:PORT"),
    ],
)
def test_half_of_an_environment_is_one_clear_error(meetings, monkeypatch, values, message):
    for name, value in zip(cluster.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        cluster.start()
    assert meetings == []


def test_an_address_that_is_not_known_yet_is_not_told(monkeypatch, capfd):
    codes = []
    monkeypatch.setattr(cluster.os, "_exit", codes.append)
    cluster._nobody_came()
    assert codes == [EXIT_UNAVAILABLE]
    assert capfd.readouterr().err.startswith(
        "error: the processes did not connect at the coordinator's address within 300 s: nothing"
    )


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "process 0 answers, but other processes are missing. Start every process"),
        (1, "nothing answers there. Start process 0 on that host"),
    ],
)
def test_processes_that_do_not_come_end_the_wait_with_one_line(tmp_path, number, message):
    start = time.monotonic()
    with process_group.ProcessGroup(2, 1, ["-c", MEET], tmp_path, only=[number]) as group:
        assert group.wait(120) == [EXIT_UNAVAILABLE], group.output()
    assert time.monotonic() - start < 120
    lines = group.logs[number].read_text().splitlines()
    assert [line for line in lines if "error" in line] == [lines[-1]]
    assert any("for the other processes at 127.0.0.1:" in line for line in lines)
    assert lines[-1].startswith(
        f"error: process {number} of 2: the processes did not connect at 127."
    )
    assert "within 3 s" in lines[-1]
    assert message in lines[-1]


@pytest.mark.parametrize(
    ("platforms", "tpus", "chosen"), [("", 0, "cpu"), ("", 4, ""), ("tpu", 0, "tpu")]
)
def test_without_an_accelerator_jax_uses_the_cpu_unless_told_otherwise(
    monkeypatch, platforms, tpus, chosen
):
    config = types.SimpleNamespace(jax_platforms=platforms)
    config.update = lambda name, value: setattr(config, name, value)
    monkeypatch.setattr(cluster, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("JAX_FORCE_TPU_INIT", raising=False)
    for name, value in {
        "num_available_tpu_chips_and_device_id": (tpus, None),
        "has_visible_nvidia_gpu": False,
    }.items():
        monkeypatch.setattr(cluster.hardware_utils, name, lambda value=value: value)
    cluster._skip_missing_tpu()
    assert config.jax_platforms == chosen
