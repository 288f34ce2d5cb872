"""The GKE manifests: what Kubernetes does at each exit code, and consistent sizes."""

import math
import pathlib
import re

import kubernetes_validate
import pytest
import yaml

import launch
from stepdistill_jax.run import load
from stepdistill_jax.spec import (
    EXIT_INCOMPLETE,
    EXIT_INPUT_ERROR,
    EXIT_NON_FINITE,
    EXIT_PREEMPTED,
    EXIT_UNAVAILABLE,
)

ROOT = pathlib.Path(__file__).parents[2]
GKE = ROOT / "launch/gke"
JOBSET = yaml.safe_load((GKE / "jobset.yaml").read_text())
BATCH_EVAL = yaml.safe_load((GKE / "batch_eval.yaml").read_text())
SLICE = JOBSET["spec"]["replicatedJobs"][0]
TRAIN = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "t"}, **SLICE["template"]}
EVICTED = "evicted"


@pytest.mark.parametrize("job", [TRAIN, BATCH_EVAL], ids=["train", "batch_eval"])
def test_jobs_match_the_kubernetes_schema(job):
    kubernetes_validate.validate(job, "1.32", strict=True)


def pod(job):
    return job["spec"]["template"]["spec"]


@pytest.mark.parametrize("job", [TRAIN, BATCH_EVAL], ids=["train", "batch_eval"])
def test_hosts_times_chips_equals_the_topology(job):
    (container,) = pod(job)["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    topology = pod(job)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    hosts = job["spec"]["completions"] if job is TRAIN else 1
    assert hosts * int(chips) == math.prod(map(int, topology.split("x")))
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert pod(job)["restartPolicy"] == "Never"


def matching_rule(job, ending):
    """(action, message) of the podFailurePolicy rule that matches an exit code or an eviction."""
    (container,) = pod(job)["containers"]
    for number, rule in enumerate(job["spec"]["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        if codes:
            assert (codes["containerName"], codes["operator"]) == (container["name"], "In")
        if ending == EVICTED and "onPodConditions" in rule:
            what = "Pod default/x-0 has condition DisruptionTarget"
        elif codes and ending in codes["values"]:
            name = container["name"]
            what = f"Container {name} for pod default/x-0 failed with exit code {ending}"
        else:
            continue
        return rule["action"], f"{what} matching {rule['action']} rule at index {number}"
    return "Count", ""


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (EXIT_INPUT_ERROR, "FailJobSet"),
        (EXIT_NON_FINITE, "FailJobSet"),
        (EXIT_PREEMPTED, "RestartJobSetAndIgnoreMaxRestarts"),
        (EVICTED, "RestartJobSetAndIgnoreMaxRestarts"),
        (EXIT_UNAVAILABLE, "RestartJobSet"),
        (1, "RestartJobSet"),
        (137, "RestartJobSet"),
        (23, "RestartJobSet"),
    ],
)
def test_training_at_each_exit_code(ending, expected):
    action, message = matching_rule(TRAIN, ending)
    # All hosts of a slice restart together, so the end of a pod is the end of the Job.
    assert TRAIN["spec"]["backoffLimit"] == 0
    assert action in ("FailJob", "Count")
    reason = "PodFailurePolicy" if action == "FailJob" else "BackoffLimitExceeded"
    for rule in JOBSET["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            assert rule["action"] == expected
            return
    # The default action counts towards maxRestarts.
    assert expected == "RestartJobSet"
    assert JOBSET["spec"]["failurePolicy"]["maxRestarts"] > 0


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (EXIT_INPUT_ERROR, "FailJob"),
        (EXIT_INCOMPLETE, "FailIndex"),
        (EXIT_PREEMPTED, "Ignore"),
        (EVICTED, "Ignore"),
        (EXIT_UNAVAILABLE, "Count"),
        (1, "Count"),
    ],
)
def test_batch_eval_at_each_exit_code(ending, expected):
    assert matching_rule(BATCH_EVAL, ending)[0] == expected
    assert BATCH_EVAL["spec"]["backoffLimitPerIndex"] > 0


def test_each_pod_knows_its_share():
    (container,) = pod(BATCH_EVAL)["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["EVAL_WORKERS"]["value"] == str(BATCH_EVAL["spec"]["completions"])
    # JAX reads this variable first, and finds one process.
    assert variables["TPU_WORKER_HOSTNAMES"]["value"] == "localhost"
    path = variables["EVAL_WORKER"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize("job", [TRAIN, BATCH_EVAL], ids=["train", "batch_eval"])
def test_arguments_parse(job):
    (container,) = pod(job)["containers"]
    program, *arguments = container["args"]
    binary = pathlib.Path(launch.__file__).with_name(f"{program.removeprefix('launch.')}.py")
    assert binary.exists()
    files = [a.split("=", 1)[1] for a in arguments if a.startswith("--gin_file=")]
    settings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    parsed = load.parse(files or ["esnli.gin"], settings)
    if job is TRAIN:
        # Hosts share no disk.
        assert parsed.model_dir.startswith("gs://")


def test_the_image_contains_every_package():
    copied = re.findall(r"^COPY (.*) \S+$", (GKE / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert not [name for name in names if not (ROOT / name).exists()]
    setup = (ROOT / "setup.py").read_text()
    packages = re.search(r"include=\[(.*?)\]", setup).group(1)
    folders = set(re.findall(r'"(\w+)\*"', packages)) | {"gin"}
    assert folders == {name for name in names if (ROOT / name).is_dir()}
