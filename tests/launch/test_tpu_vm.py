"""The scripts for TPU VMs, against a stand-in for gcloud that runs the remote part locally."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STAND_IN = pathlib.Path(__file__).with_name("cloud.py")
WHERE = ("--zone=us-central2-b", "--project=ours")
WORKER = "stepdistill/code/launch/tpu_worker.sh"
STATUS = f"if [ -f {WORKER} ]; then bash {WORKER} status; else echo worker $(hostname) bare -; fi"
# Stands in for Python on a worker: records its arguments, prints a line, and exits with the next
# code of the file `codes`. "wait" exits with 75 at SIGTERM; "late 1" exits with 1 after two status
# calls.
PYTHON = r"""#!/usr/bin/env bash
if [ "$1" = -c ]; then echo "Python versions"; exit 0; fi
printf '%s\n' "$@" >>"$HOME/received"; echo -- >>"$HOME/received"
env | grep '^TPU_\|^KEY=' | sort >"$HOME/environment"
echo "step 20: validation label accuracy 97.00%"
code=$(head -n 1 "$CLOUD/codes"); sed -i '1{$!d}' "$CLOUD/codes"
asked() { grep -c "tpu_worker.sh status" "$CLOUD/calls.jsonl"; }
case "$code" in
  late*) end=$(($(asked) + 2)); until [ "$(asked)" -ge "$end" ]; do sleep 0.05; done
    exit "${code#late }" ;;
  wait) ;;
  *) exit "$code" ;;
esac
trap 'echo saved; exit 75' TERM
for _ in $(seq 600); do sleep 0.05; done
"""
UV = """#!/usr/bin/env bash
echo "$@" >>"$HOME/uv"
for last; do :; done
if [ "$1" = venv ]; then mkdir -p "$last/bin"; cp "$CLOUD/python" "$last/bin/python"; fi
"""


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cloud:
    """A checkout with the scripts, and TPU VMs that are folders."""

    def __init__(self, folder):
        self.folder = folder
        self.checkout = folder / "checkout"
        for path in (ROOT / "launch").glob("tpu_*.sh"):
            (self.checkout / "launch").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, self.checkout / "launch")
        (self.checkout / "constraints.txt").write_text("")
        (self.checkout / "gin").mkdir()
        (self.checkout / "gin/esnli.gin").write_text("")
        for command in ("init --quiet", "add ."):
            subprocess.run(["git", *command.split()], cwd=self.checkout, check=True)
        write_script(
            folder / "bin/gcloud", f'#!/bin/sh\nexec {sys.executable} -S {STAND_IN} "$@"\n'
        )
        write_script(folder / "bin/uv", UV)
        write_script(folder / "python", PYTHON)
        for name, text in (("size", "1"), ("codes", "0"), ("tpu-vm", "-")):
            (folder / name).write_text(text)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "CLOUD": str(folder),
            "STATE_DIR": str(folder / "state"),
            "NAME": "vm",
            "ZONE": "us-central2-b",
            "PROJECT": "ours",
            "ACCELERATOR": "v5litepod-16",
            "POLL_SECONDS": "0.1",
            "BACKOFF_SECONDS": "0",
        }

    def set(self, name, *lines):
        (self.folder / name).write_text("\n".join(map(str, lines)))

    def run(self, *arguments, code=0, stdin="", **environment):
        done = subprocess.run(
            ["bash", str(self.checkout / "launch/tpu_vm.sh"), *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def calls(self):
        """The command lines since the previous call of `calls`."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def record(self, *arguments, **environment):
        """The command lines of a call, recorded without effect."""
        (self.folder / "record_only").touch()
        self.run(*arguments, **environment)
        (self.folder / "record_only").unlink()
        return self.calls()

    def home(self, worker=0):
        return self.folder / "workers" / str(worker)

    def received(self, worker=0):
        """The arguments of each start of a worker's program."""
        runs = (self.home(worker) / "received").read_text().split("\n--\n")
        return [run.split("\n") for run in runs if run]

    def wait_for(self, text, worker=0):
        """Waits until a worker's log contains `text`."""
        log = self.home(worker) / "stepdistill/run.log"
        for _ in range(600):
            if log.exists() and text in log.read_text():
                return
            time.sleep(0.05)
        raise AssertionError(f"{text!r} did not come: {log.read_text() if log.exists() else ''}")


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for path in tmp_path.glob("workers/*/stepdistill/run.pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture
def ready(cloud):
    """A cloud with a VM of two workers, set up."""
    cloud.set("size", 2)
    cloud.run("create")
    cloud.run("setup")
    cloud.calls()
    return cloud


def tpu_vm(verb, *rest):
    return ["gcloud", "compute", "tpus", "tpu-vm", verb, "vm", *WHERE, *rest]


def queued(verb, *rest):
    return ["gcloud", "compute", "tpus", "queued-resources", verb, "vm", *rest]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            (),
            [tpu_vm("create", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite")],
        ),
        (
            (
                "--spot",
                "--accelerator=v4-32",
                "--create_flag=--network=n",
                "--create_flag=--tags=a,b",
            ),
            [
                tpu_vm(
                    *("create", "--accelerator-type=v4-32", "--version=tpu-ubuntu2204-base"),
                    *("--spot", "--network=n", "--tags=a,b"),
                )
            ],
        ),
        (
            ("--queued", "--spot", "--accelerator=v6e-16"),
            [
                queued(
                    *("create", "--node-id=vm", *WHERE, "--accelerator-type=v6e-16"),
                    *("--runtime-version=v2-alpha-tpuv6e", "--spot"),
                ),
                queued("describe", *WHERE, "--format=value(state.state)"),
            ],
        ),
        (
            ("--accelerator=v5p-8", "--version=mine"),
            [tpu_vm("create", "--accelerator-type=v5p-8", "--version=mine")],
        ),
    ],
)
def test_create(cloud, flags, expected):
    cloud.set("queued-resources", "ACTIVE")
    cloud.run("create", *flags)
    assert cloud.calls() == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("logs",), [tpu_vm("ssh", "--worker=0", f"--command=bash {WORKER} log 100 -F")]),
        (
            ("logs", "--worker=3", "--lines=7", "--no_follow", "--ssh_flag=--internal-ip"),
            [tpu_vm("ssh", "--worker=3", "--internal-ip", f"--command=bash {WORKER} log 7")],
        ),
        (("stop",), [tpu_vm("ssh", "--worker=all", f"--command=bash {WORKER} stop 120")]),
        (("delete", "--yes"), [tpu_vm("delete", "--quiet")]),
        (
            ("delete", "--yes", "--queued"),
            [],
        ),
        (
            ("fetch", "--model_dir=gs://b/runs/x/"),
            [
                [
                    *("gcloud", "storage", "rsync", "gs://b/runs/x", "runs/x"),
                    *("--recursive", "--exclude=(^|/)checkpoints/.*"),
                ]
            ],
        ),
    ],
)
def test_commands(cloud, arguments, expected):
    if "--queued" in arguments:
        expected = [queued("delete", *WHERE, "--force", "--quiet")]
    assert cloud.record(*arguments) == expected


def test_sync_and_setup(cloud):
    cloud.run("create")
    cloud.calls()
    cloud.run("setup")
    copy, unpack, setup = cloud.calls()
    archive = cloud.folder / "state/vm.tar.gz"
    assert copy == [
        *("gcloud", "compute", "tpus", "tpu-vm", "scp", str(archive), "vm:stepdistill.tar.gz"),
        *(*WHERE, "--worker=all"),
    ]
    assert unpack[:-1] == tpu_vm("ssh", "--worker=all")
    assert setup == tpu_vm(
        "ssh", "--worker=all", f"--command=env PYTHON_VERSION=3.11 bash {WORKER} setup"
    )
    venv = cloud.home() / "stepdistill/venv"
    assert (cloud.home() / "uv").read_text().splitlines() == [
        f"venv --quiet --allow-existing --python 3.11 {venv}",
        f"pip install --quiet --python {venv}/bin/python -c constraints.txt -e .[tpu]",
    ]


def test_sync_sends_tracked_files_with_local_changes(ready):
    code = ready.home(1) / "stepdistill/code"
    (ready.checkout / "kept file.gin").write_text("A = 1\n")
    subprocess.run(["git", "add", "."], cwd=ready.checkout, check=True)
    (ready.checkout / "own.gin").write_text("B = 1\n")
    said = ready.run("sync").stderr
    assert "not sent, because git does not track it: own.gin (git add what the run needs)" in said
    # More names than a pipe buffers.
    for number in range(1500):
        (ready.checkout / f"{number:050}.log").touch()
    assert f"{4:050}.log (git add what the run needs)" in ready.run("sync").stderr
    (code / "runs").mkdir()
    (code / "runs/metrics.jsonl").touch()
    (ready.checkout / "kept file.gin").write_text("A = 2\n")
    (ready.checkout / "constraints.txt").unlink()
    ready.run("sync")
    found = sorted(str(p.relative_to(code)) for p in code.rglob("*") if p.is_file())
    scripts = [f"launch/tpu_{name}.sh" for name in ("settings", "vm", "worker")]
    assert found == ["gin/esnli.gin", "kept file.gin", *scripts, "runs/metrics.jsonl"]
    assert (code / "kept file.gin").read_text() == "A = 2\n"


ODD = (
    "--gin_file=esnli.gin",
    '--gin.EVAL_SPLITS=("validation", "test")',
    "--gin.RATIONALES='file:it is \"$HOME\" `pwd`.jsonl'",
    "",
    "a\\b*&;|<>~#!",
)


def test_arguments_arrive_unchanged(ready):
    said = ready.run("run", "--bucket=gs://ours/", "--env=KEY=a b'c", "--", *ODD).stderr
    assert "MODEL_DIR is gs://ours/vm (from BUCKET); a MODEL_DIR in a gin file is ignored" in said
    copy, call = ready.calls()
    sent_by = ["gcloud", "compute", "tpus", "tpu-vm", "scp", str(ready.folder / "state/vm.env")]
    assert copy == [*sent_by, "vm:stepdistill.env", *WHERE, "--worker=all"]
    assert not (ready.folder / "state/vm.env").exists()
    assert call[:-1] == tpu_vm("ssh", "--worker=all")
    sent = ["-m", "launch.train", *ODD, "--gin.MODEL_DIR=gs://ours/vm"]
    assert shlex.split(call[-1].removeprefix("--command=")) == [
        *("bash", WORKER, "start", "python", *sent)
    ]
    for worker in (0, 1):
        ready.wait_for("exit code 0", worker)
        assert ready.received(worker) == [sent]
        assert (ready.home(worker) / "environment").read_text() == "KEY=a b'c\n"
        # A value of the environment may be a key.
        assert "a b'c" not in (ready.home(worker) / "stepdistill/run.log").read_text()
        assert not (ready.home(worker) / "stepdistill.env").exists()
    shown = ready.run("run", "--dry_run", "--env=KEY=a b'c", "--", *ODD).stdout
    assert "stepdistill.env" in shown
    assert "a b" not in shown
    assert oct((ready.folder / "state/vm.tpu_vm").stat().st_mode)[-3:] == "600"


def test_a_run_continues_is_shown_and_is_stopped(ready):
    ready.set("codes", "wait")
    ready.run("run", "--", "--gin.MODEL_DIR=gs://b/x")
    ready.wait_for("accuracy 97.00%", 0)
    ready.wait_for("accuracy 97.00%", 1)
    ready.calls()
    said = ready.run("status").stdout
    assert ready.calls() == [
        tpu_vm("describe", "--format=value(state)"),
        tpu_vm("ssh", "--worker=all", f"--command={STATUS}"),
    ]
    assert said.startswith("vm (v5litepod-16) is READY\nworker ")
    assert said.count(" running ") == 2
    assert said.count("step 20: validation label accuracy 97.00%") == 2
    again = ready.run("run", "--", "--gin.MODEL_DIR=gs://b/y", code=2).stderr
    assert "a run is in progress (pid " in again
    said = ready.run("stop").stdout
    assert said.count(": stopped, exit code 75") == 2
    assert ready.run("status").stdout.count(" exit 75 saved") == 2
    said = ready.run("logs", "--no_follow", "--lines=2").stdout
    assert said.splitlines()[0] == "saved"
    assert "exit code 75" in said.splitlines()[1]


def test_a_program_that_does_not_stop_is_killed(ready):
    ready.set("codes", "wait")
    stubborn = PYTHON.replace("trap 'echo saved; exit 75' TERM", "trap '' TERM; echo deaf")
    write_script(ready.home(0) / "stepdistill/venv/bin/python", stubborn)
    ready.run("run", "--", "--gin.MODEL_DIR=gs://b/x")
    ready.wait_for("deaf", 0)
    ready.wait_for("step 20", 1)
    assert "killed, because it did not stop within 1 s" in ready.run("stop", "--seconds=1").stdout
    said = ready.run("status").stdout.splitlines()
    assert " exit 137 " in said[1]
    assert " exit 75 " in said[2]


def test_each_worker_evaluates_its_share_alone(ready):
    ready.run("eval", "--", "gs://b/sweep/*", "--gin.EVAL_STEP=all")
    alone = (
        "TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1 TPU_VISIBLE_CHIPS=0,1,2,3 "
        "TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=localhost"
    )
    asked, *starts = ready.calls()
    assert asked == tpu_vm("describe", "--format=value(networkEndpoints.len())")
    assert starts == [
        tpu_vm(
            "ssh",
            f"--worker={worker}",
            f"--command=bash {WORKER} start {alone} python -m launch.batch_eval "
            f"--worker={worker} --workers=2 'gs://b/sweep/*' --gin.EVAL_STEP=all",
        )
        for worker in (0, 1)
    ]
    for worker in (0, 1):
        ready.wait_for("exit code 0", worker)
        assert (ready.home(worker) / "environment").read_text().split() == sorted(alone.split())
    # A single-host slice needs none of these variables.
    ready.run("delete", "--yes")
    ready.set("size", 1)
    for command in ("create", "setup"):
        ready.run(command)
    ready.run("eval", "--", "gs://b/x")
    ready.wait_for("exit code 0")
    assert (ready.home() / "environment").read_text() == ""


@pytest.mark.parametrize(
    ("accelerator", "workers"),
    [("v5litepod-4", 1), ("v6e-8", 1), ("v5litepod-64", 16), ("v4-32", 4)],
)
def test_a_dry_run_shows_every_worker_of_a_slice(ready, accelerator, workers):
    shown = ready.run("eval", "--dry_run", f"--accelerator={accelerator}", "--", "gs://b/x").stdout
    assert shown.count(f"--workers={workers} ") == workers


@pytest.mark.parametrize(
    ("subcommand", "arguments"),
    [
        ("run", ("--gin_file=own.gin", "--gin_search_paths=/mine")),
        ("run", ("--gin_file=/mine/own.gin", "--gin_file", "esnli.gin")),
        ("eval", ("--from_file", "/mine/folders", "gs://b/x", "--gin.EVAL_STEP=all")),
        ("eval", ("gs://b/x", "--verbosity", "0")),
    ],
)
def test_paths_that_workers_may_have_are_accepted(ready, subcommand, arguments):
    given = ("--gin.MODEL_DIR=gs://b/x",) if subcommand == "run" else ()
    shown = ready.run(subcommand, "--dry_run", "--", *arguments, *given).stdout
    assert f" {' '.join(arguments)}" in shown
    local = ready.run("eval", "--dry_run", "--local", "--", "runs/a", "--gin_file=none.gin").stdout
    assert "runs/a --gin_file=none.gin" in local


def verbs(calls):
    """One word for each command line."""
    known = ("status", "start", "setup", "stop", "mkdir")
    return [
        next((word for word in known if f"{word}" in call[-1]), "ssh")
        if call[4] == "ssh"
        else call[4]
        for call in calls
    ]


MADE = ["create", "scp", "mkdir", "setup"]


def test_a_preempted_vm_is_recreated_and_the_run_continues(ready):
    ready.set("codes", "wait")
    ready.run("run", "--spot", "--", *ODD, "--gin.MODEL_DIR=gs://b/x")
    ready.wait_for("step 20", 1)
    ready.set("codes", 0)
    # Preempted while `keep` watches; its programs end with it.
    ready.set("tpu-vm", "READY", "PREEMPTED", "-")
    pids = [int((ready.home(w) / "stepdistill/run.pid").read_text()) for w in (0, 1)]
    ready.calls()
    # NAME and ZONE come from the state file of the only VM.
    said = ready.run("keep", NAME="", ZONE="", PROJECT="", ACCELERATOR="").stderr
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)
    assert "vm is PREEMPTED; recreating it" in said
    assert said.endswith("vm has finished\n")
    calls = ready.calls()
    done = verbs(calls)
    again = ["describe", "status", "describe", "delete", *MADE, "status", "start"]
    assert done[: len(again)] == again
    assert set(done[len(again) :]) == {"describe", "status"}
    assert calls[4] == tpu_vm(
        *("create", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot")
    )
    for worker in (0, 1):
        assert ready.received(worker) == [["-m", "launch.train", *ODD, "--gin.MODEL_DIR=gs://b/x"]]


@pytest.mark.parametrize(
    ("codes", "code", "starts", "message"),
    [
        (("75", "75", "0"), 0, 3, "vm was preempted and saved; starting again"),
        (("1", "75", "1", "0"), 0, 4, "the run on vm ended with exit code 1; trying again in 0 s"),
        (("1", "134"), 134, 3, "ended with exit code 134; giving up after 3 failures"),
        (("69", "75", "0"), 0, 3, "the run on vm ended with exit code 69; trying again in 0 s"),
        (("69", "69"), 69, 3, "ended with exit code 69; giving up after 3 failures"),
        (("75", "2"), 2, 2, "ended with exit code 2, which a restart cannot fix"),
        (("3",), 3, 1, "ended with exit code 3, which a restart cannot fix"),
        (("4",), 4, 1, "ended with exit code 4, which a restart cannot fix"),
    ],
)
def test_keep_follows_the_exit_codes(cloud, codes, code, starts, message):
    cloud.run("create")
    cloud.run("setup")
    cloud.set("codes", *codes)
    cloud.run("run", "--", "--gin.MODEL_DIR=gs://b/x")
    cloud.wait_for("exit code")
    assert message in cloud.run("keep", code=code, MAX_FAILURES="3").stderr
    assert len(cloud.received()) == starts


def test_a_long_run_resets_the_count_of_crashes(cloud):
    for command in ("create", "setup"):
        cloud.run(command)
    cloud.set("codes", "late 1", "late 1", "0")
    cloud.run("run", "--", "--gin.MODEL_DIR=gs://b/x")
    said = cloud.run("keep", MAX_FAILURES="2", LASTING_SECONDS="0").stderr
    assert said.count("the run on vm ended with exit code 1; trying again in 0 s") == 2
    assert len(cloud.received()) == 3


def test_keep_asks_for_a_vm_until_there_is_capacity(cloud):
    for command in ("create", "setup"):
        cloud.run(command)
    cloud.run("run", "--spot", "--", "--gin.MODEL_DIR=gs://b/x")
    cloud.wait_for("exit code 0")
    cloud.set("tpu-vm", "PREEMPTED", "-")
    cloud.set("capacity", *["none"] * 4, "yes")
    said = cloud.run("keep", MAX_FAILURES="2").stderr
    assert said.count("vm cannot be created; trying again in 0 s") == 4
    assert said.endswith("vm has finished\n")


def test_keep_survives_a_failed_count_of_workers(cloud):
    for command in ("create", "setup"):
        cloud.run(command)
    cloud.set("endpoints", "UNAVAILABLE", "-")
    said = cloud.run("eval", "--", "gs://b/*", code=1).stderr
    assert "gcloud cannot count the workers of vm: ERROR: (gcloud) UNAVAILABLE" in said
    cloud.set("endpoints", "UNAVAILABLE", "-")
    said = cloud.run("keep").stderr
    assert "the run on vm did not start; trying again in 0 s" in said
    assert said.endswith("vm has finished\n")


def test_workers_that_wait_for_a_crashed_one_are_stopped(ready):
    ready.set("codes", "wait")
    ready.run("run", "--", "--gin.MODEL_DIR=gs://b/x")
    ready.wait_for("step 20", 0)
    ready.wait_for("step 20", 1)
    subprocess.run(
        ["bash", str(ready.home(1) / WORKER), "stop"],
        env={**ready.environment, "HOME": str(ready.home(1))},
        check=True,
    )
    (ready.home(1) / "stepdistill/run.exit").write_text("134")
    # The waiting worker saved at SIGTERM; the crash's exit code still decides.
    said = ready.run("keep", code=134, MAX_FAILURES="1").stderr
    assert "the run on vm ended with exit code 134; giving up after 1 failures" in said
    assert " exit 75 saved" in ready.run("status").stdout
    ready.set("codes", 0)
    ready.run("keep")
    assert [len(ready.received(worker)) for worker in (0, 1)] == [2, 2]


def test_keep_sets_up_a_bare_worker_and_tolerates_gcloud_errors(cloud):
    cloud.run("create")
    cloud.run("setup")
    cloud.run("run", "--", "--gin.MODEL_DIR=gs://b/x")
    cloud.wait_for("exit code 0")
    shutil.rmtree(cloud.home() / "stepdistill")
    cloud.set("tpu-vm", "DENIED", "-")
    said = cloud.run("keep").stderr
    assert "gcloud cannot describe vm: ERROR: (gcloud) PERMISSION_DENIED: no access" in said
    assert len(cloud.received()) == 2
    cloud.set("tpu-vm", "DENIED")
    said = cloud.run("keep", code=1, MAX_FAILURES="2").stderr
    assert "vm cannot be reached or created; giving up after 2 failures" in said


def test_a_queued_resource_is_awaited_and_requested_again(cloud):
    cloud.set("queued-resources", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    said = cloud.run("create", "--queued", "--spot").stderr
    assert "the queued resource vm is PROVISIONING; checking again in 0.1 s" in said
    assert verbs(cloud.calls()) == ["create", "describe", "describe", "describe"]
    cloud.run("setup")
    cloud.run("run", "--", "--gin.MODEL_DIR=gs://b/x")
    cloud.wait_for("exit code 0")
    cloud.calls()
    cloud.set("queued-resources", "SUSPENDED", "ACTIVE")
    cloud.run("resume")
    cloud.wait_for("exit code 0")
    calls = cloud.calls()
    assert verbs(calls) == ["describe", "delete", "create", "describe", *MADE[1:], "start"]
    assert calls[1] == queued("delete", *WHERE, "--force", "--quiet")
    assert cloud.received() == [["-m", "launch.train", "--gin.MODEL_DIR=gs://b/x"]]
    cloud.run("delete", "--yes")
    cloud.set("queued-resources", "FAILED")
    assert "the queued resource vm is FAILED" in cloud.run("create", "--queued", code=1).stderr


def test_fetch_copies_results_without_checkpoints(ready):
    ready.run("run", "--local", "--", "--gin.MODEL_DIR='runs/mine'")
    folder = ready.home(0) / "stepdistill/code/runs/mine"
    for name in ("config.gin", "eval/test/20/metrics.json", "checkpoints/20/state"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    ready.calls()
    ready.run("fetch", "--out=here")
    assert ready.calls() == [
        tpu_vm("ssh", "--worker=0", f"--command=bash {WORKER} pack runs/mine"),
        [
            *("gcloud", "compute", "tpus", "tpu-vm", "scp", "vm:stepdistill/results.tar.gz"),
            *("here/results.tar.gz", *WHERE, "--worker=0"),
        ],
    ]
    here = ready.folder / "here"
    found = sorted(str(p.relative_to(here)) for p in here.rglob("*") if p.is_file())
    assert found == ["config.gin", "eval/test/20/metrics.json"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--queued", "--spot"),
        ("setup", "--ssh_flag=--internal-ip"),
        ("run", "--bucket=b", "--", *ODD),
        ("status",),
        ("stop",),
        ("eval", "--accelerator=v4-16", "--", "gs://b/*"),
        ("fetch", "--model_dir=gs://b/x"),
        ("keep",),
        ("delete", "--yes"),
    ],
)
def test_a_dry_run_prints_the_commands_of_a_real_run(ready, arguments):
    ready.set("queued-resources", "ACTIVE")
    ready.run("run", "--", "--gin.MODEL_DIR=gs://b/x")
    ready.wait_for("exit code 0", 0)
    ready.wait_for("exit code 0", 1)
    ready.calls()
    printed = (
        ready.run(*arguments, "--dry_run")
        if "--" not in arguments
        else ready.run(arguments[0], "--dry_run", *arguments[1:])
    )
    assert ready.calls() == []
    if arguments[0] == "keep":
        # As a dry run assumes.
        ready.set("tpu-vm", "PREEMPTED", "-")
    if arguments[0] == "create":
        shutil.rmtree(ready.folder / "workers")
    ready.run(*arguments)
    # Compares words: a command may contain newlines, and other programs run between gcloud's.
    said = shlex.split(printed.stdout)
    count = said.count("gcloud")
    calls = ready.calls()
    # `keep` checks a run again that has not ended yet.
    assert len(calls) == count or (arguments == ("keep",) and len(calls) > count)
    left = iter(said)
    assert not [word for call in calls[:count] for word in call if word not in left]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            ("creat",),
            {},
            "creat: unknown subcommand; the nearest is create. Use one of: create setup",
        ),
        (("fecth",), {}, "fecth: unknown subcommand; the nearest is fetch."),
        (("status",), {"NAME": ""}, "NAME is missing. Pass --name=NAME or set NAME"),
        (("status",), {"ZONE": ""}, "ZONE is missing. Pass --zone=ZONE"),
        (("status",), {"NAME": "a b"}, "NAME=a b: expected lowercase letters"),
        (("create",), {"ACCELERATOR": ""}, "ACCELERATOR is missing. Pass --accelerator="),
        (
            ("create",),
            {"ACCELERATOR": "v5e-8"},
            "Cloud TPU calls v5e v5litepod. Write v5litepod-8.",
        ),
        (("create",), {"ACCELERATOR": "v9-8"}, "ACCELERATOR=v9-8: its runtime version is unknown."),
        (("status",), {"PATH": "/nowhere"}, "gcloud is not on PATH. Install the Google Cloud CLI"),
        (("run", "--gin_file=a"), {}, "--gin_file=a: unknown flag of run. Put the run's arguments"),
        (
            ("run", "--", "--gin_file=esnli.gin"),
            {},
            "MODEL_DIR is missing, and gin files are not read here.",
        ),
        (("run", "--", "--gin_file=a.gin"), {}, "--gin_file=a.gin: no such file in "),
        (("run", "--", "--gin_file", "a"), {}, "--gin_file=a: no such file in "),
        (("run", "--", "--gin_file=gin"), {}, "--gin_file=gin: no such file in "),
        (
            ("run", "--", "--gin_file=untracked.gin"),
            {},
            "--gin_file=untracked.gin: git does not track it, so sync does not send it.",
        ),
        (
            ("run", "--", "--gin_file=CHECKOUT/gin/esnli.gin"),
            {},
            "gin/esnli.gin: the workers do not have this path. Write --gin_file=gin/esnli.gin.",
        ),
        (
            ("logs", "--lines=08"),
            {},
            "--lines=08: expected a whole number without leading zeros. Write --lines=30",
        ),
        (("eval", "--", "gs://b/x", "runs/a"), {}, "runs/a is on the workers' own disks. Pass"),
        (("status",), {"BUCKET": "s3://x"}, "BUCKET=s3://x: expected gs://BUCKET/PATH. Correct"),
        (
            ("run", "--env=KEY"),
            {},
            "--env=KEY: the name or the value is missing. Write --env=NAME=VALUE.",
        ),
        (("create", "--spot=yes"), {}, "--spot=yes: --spot takes no value. Write --spot."),
        (("create", "--zone"), {}, "--zone: the value is missing. Write --zone=VALUE."),
        (("stop", "--seconds=abc"), {}, "--seconds=abc: expected a whole number"),
        (("keep",), {"POLL_SECONDS": "1m"}, "POLL_SECONDS=1m: expected a number of seconds. Write"),
        (("run", "--", "--gin.MODEL_DIR=runs/a"), {}, "MODEL_DIR=runs/a is on the workers' own"),
        (("resume",), {}, "no run was started on vm yet. Start one with"),
        (("keep",), {}, "no run was started on vm yet. Start one with"),
        (
            ("fetch",),
            {},
            "MODEL_DIR is unknown: no run was started with one. Pass --model_dir=DIR.",
        ),
        (("delete",), {}, "not deleted. Answer y, or pass --yes."),
    ],
)
def test_wrong_input_gives_one_line(cloud, arguments, environment, message):
    if "PATH" in environment:
        # Only the programs that the script itself needs.
        for name in ("bash", "dirname", "tr", "basename"):
            (cloud.folder / "few").mkdir(exist_ok=True)
            (cloud.folder / "few" / name).symlink_to(shutil.which(name))
        environment = {"PATH": str(cloud.folder / "few")}
    (cloud.checkout / "gin/untracked.gin").touch()
    arguments = [argument.replace("CHECKOUT", str(cloud.checkout)) for argument in arguments]
    done = cloud.run(*arguments, code=2, **environment)
    assert message in done.stderr
    # gcloud was not called.
    assert cloud.calls() == []
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1


def test_delete_forgets_the_vm_after_confirmation(ready):
    done = ready.run("delete", stdin="y\n")
    assert "delete vm in us-central2-b and everything on its disks? [y/N]" in done.stderr
    assert ready.calls() == [tpu_vm("delete", "--quiet")]
    assert not list((ready.folder / "state").iterdir())
