"""A run whose folder, caches and start lie on an object store, against one on a disk."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from process_group import environment

from launch import report
from launch.flags import Arguments
from stepdistill_jax.checkpoint import initial, restore
from stepdistill_jax.eval.follow import steps_to_score
from stepdistill_jax.export.checkpoints import open_checkpoint
from stepdistill_jax.export.conversion import convert
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.parallel import compilation
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.eval_config import EvalConfig
from stepdistill_jax.spec import InputError
from stepdistill_jax.train.clock import PHASES

ROOT = pathlib.Path(__file__).parents[2]
STEPS, PERIOD = 24, 8
SETTINGS = {
    "TRAIN_STEPS": STEPS,
    "WARMUP_STEPS": 4,
    "EVAL_PERIOD": STEPS,
    "CHECKPOINT_PERIOD": PERIOD,
    "LOG_PERIOD": 1,
    "FRACTION": 0.1,
    "NUM_ENCODER_LAYERS": 1,
    "EVAL_SPLITS": ("validation",),
    "DROPOUT_RATE": 0.1,
}
RUN, CACHE = "gs://bucket/runs/one", "gs://bucket/cache"
# As on a machine where TensorFlow is not installed: python reads it at its start.
BLOCKED = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "seqio"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
"""


def program(module, *arguments, **settings):
    flags = [f"--gin.{name}={value!r}" for name, value in settings.items()]
    return [sys.executable, "-m", f"launch.{module}", *arguments, *flags]


def train(model_dir, **more):
    return program("train", "--gin_file=demo.gin", **SETTINGS, MODEL_DIR=str(model_dir), **more)


def finish(command, env):
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    return tmp_path_factory.mktemp("machines")


@pytest.fixture(scope="module")
def local(remote, machines):
    """A run on a disk, never interrupted; of the other it has the compiled programs alone."""
    programs = f"{CACHE}/xla/{compilation.host()}"
    env = environment(
        STEPDISTILL_CACHE_DIR=str(machines / "first_disk"), JAX_COMPILATION_CACHE_DIR=programs
    )
    finish(train(machines / "run"), env)
    return machines


@pytest.fixture(scope="module")
def remote(store, machines):
    """One on a store: killed while it saves step 16, and continued on another machine."""
    folder = machines
    unfinished = f"bucket/runs/one/checkpoints/{2 * PERIOD}/commit_success.txt"
    store.refused = re.compile(unfinished)
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            train(RUN, CACHE_DIR=CACHE),
            cwd=ROOT,
            env=environment(STEPDISTILL_CACHE_DIR=str(folder / "first_disk")),
            stdout=log,
            stderr=log,
        )
        try:
            seen = store.wait_for_write(unfinished, timeout=400)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
    store.refused = re.compile("(?!)")
    assert seen, (folder / "log").read_text()[-3000:]
    killed = restore.available_steps(RUN), store.names("bucket", "runs/one/checkpoints/16/.*")
    (folder / "without").mkdir()
    (folder / "without" / "sitecustomize.py").write_text(BLOCKED)
    paths = os.pathsep.join([str(folder / "without"), str(ROOT)])
    said = finish(
        train(RUN, CACHE_DIR=CACHE),
        environment(STEPDISTILL_CACHE_DIR=str(folder / "other_disk"), PYTHONPATH=paths),
    )
    return {"killed": killed, "said": said, "disk": folder / "other_disk"}


def parameters(step_folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every parameter of a checkpoint on a disk, read without the project's code."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(step_folder / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def rows(text: str, *left_out: str) -> list[dict]:
    """Lines of JSON without the figures that depend on the clock."""
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k not in left_out} for row in found]


def test_a_save_that_was_cut_off_is_no_checkpoint_and_the_run_goes_on_before_it(remote):
    steps, written = remote["killed"]
    assert steps == [PERIOD]
    assert written  # much of it had arrived
    assert f"continued from step {PERIOD}" in remote["said"]


def test_the_final_parameters_are_those_of_the_run_on_a_disk(store, local, remote, tmp_path):
    # The objects as files, so that what reads them knows no store.
    prefix = f"runs/one/checkpoints/{STEPS}/"
    for name in store.names("bucket", f"{prefix}.*"):
        path = tmp_path / name.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read("bucket", name))
    want, got = parameters(local / "run" / "checkpoints" / str(STEPS)), parameters(tmp_path)
    assert want.keys() == got.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_metrics_predictions_and_results_are_those_of_the_run_on_a_disk(store, local, remote):
    clock = ["pairs_per_second", "tokens_per_second", "data_wait", "mfu", "device_seconds"]
    clock += [f"{phase}_seconds" for phase in PHASES]
    for name in ("metrics.jsonl", "results.jsonl", "costs.jsonl"):
        want = rows((local / "run" / name).read_text(), *clock)
        got = rows(store.read("bucket", f"runs/one/{name}").decode(), *clock)
        assert got == want, name
    assert [row["step"] for row in got] == [8, 16, 24]
    name = f"eval/validation/{STEPS}/predictions.jsonl"
    assert store.read("bucket", f"runs/one/{name}") == (local / "run" / name).read_bytes()
    listed = {n.split("/")[2] for n in store.names("bucket", "runs/one/.*")}
    assert listed == {p.name for p in (local / "run").iterdir() if not p.name.startswith(".")}


def test_the_second_machine_found_tokens_and_programs_on_the_store(store, remote):
    (kind,) = {name.split("/")[2] for name in store.names("bucket", "cache/xla/.*")}
    programs = store.names("bucket", f"cache/xla/{kind}/jit_step-.*")
    assert [store.writes.count(f"bucket/{name}") for name in programs] == [1] * len(programs)
    assert programs
    assert {p.name.split("-")[1] for p in remote["disk"].iterdir()} == {"train", "validation"}


def test_eval_and_report_read_it_where_it_lies(store, local, remote):
    env = environment(STEPDISTILL_CACHE_DIR=str(local / "first_disk"))
    settings = {"EVAL_SPLITS": ("test",), "CACHE_DIR": str(local / "first_disk")}
    said = finish(program("eval", RUN, str(local / "run"), **settings), env)
    name = f"eval/test/{STEPS}/predictions.jsonl"
    assert store.read("bucket", f"runs/one/{name}") == (local / "run" / name).read_bytes()
    assert f"{RUN} step {STEPS} test: accuracy" in said
    report.main(Arguments(positional=("gs://bucket/runs",)), "gs://bucket/report")
    report.main(Arguments(positional=(str(local / "run"),)), str(local / "report"))
    want = (local / "report" / "results.csv").read_text().splitlines()
    got = store.read("bucket", "report/results.csv").decode().splitlines()
    # But for the run's name, and seconds at the end.
    assert [line.split(",")[1:9] for line in got] == [line.split(",")[1:9] for line in want]
    assert b"<html" in store.read("bucket", "report/index.html")


def test_another_run_starts_from_it(remote):
    config = configs.read(RUN)
    shapes = abstract_params(config.model)
    initial.check(RUN, config.model, config.tokens.vocabulary)
    params = initial.initial_params(f"{RUN}/checkpoints/{STEPS}", _placed(shapes))
    want = initial.initial_params(RUN, _placed(shapes))
    assert _equal(params, want)
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        initial.check("gs://bucket/runs/none", config.model, "")


@pytest.mark.parametrize("form", ["hf", "orbax", "t5x"])
def test_it_is_converted_from_the_store_to_the_store(store, remote, form):
    out = f"gs://bucket/converted/{form}"
    convert(open_checkpoint(RUN), form, out)
    config = configs.read(RUN)
    params = initial.initial_params(out, _placed(abstract_params(config.model)))
    want = initial.initial_params(RUN, _placed(abstract_params(config.model)))
    assert _equal(params, want)
    with pytest.raises(InputError, match="is not empty"):
        convert(open_checkpoint(RUN), form, out)


def test_a_run_is_followed_as_its_checkpoints_appear(store, remote, gs_folder):
    inside = gs_folder.removeprefix("gs://bucket/")
    later = [f"checkpoints/{STEPS}", "finished.json"]

    def arrive(name):
        for old in store.names("bucket", f"runs/one/{name}.*"):
            new = old.replace("runs/one", inside, 1)
            store.write("bucket", new, store.read("bucket", old), {})

    arrive(f"checkpoints/{2 * PERIOD}")
    steps = steps_to_score(
        gs_folder, EvalConfig(step="all", watch=True), sleep=lambda _: arrive(later.pop(0))
    )
    assert [step for step, _ in steps] == [2 * PERIOD, STEPS]


def test_a_bucket_that_is_not_there_is_one_line(store, tmp_path):
    done = subprocess.run(
        train("gs://nobody/run"),
        cwd=ROOT,
        env=environment(STEPDISTILL_CACHE_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: MODEL_DIR='gs://nobody/run': no bucket 'nobody'. Create it, or correct the name."
    )
    assert "Traceback" not in done.stderr
    assert not (ROOT / "gs:").exists()


def _placed(shapes):
    import jax

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _equal(one, other) -> bool:
    import jax

    return bool(jax.tree.all(jax.tree.map(np.array_equal, one, other)))
