"""A preflight finds what would end a run hours later, and leaves the run alone."""

import contextlib
import errno
import pathlib
import re
import socket
import subprocess
import sys

import jax
import process_group
import pytest

from stepdistill_jax import records
from stepdistill_jax.checkpoint import manager
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.run import load
from stepdistill_jax.run.folder import claim
from stepdistill_jax.spec import InputError
from stepdistill_jax.train import preflight, preflight_checks
from stepdistill_jax.train.build import make_parts, make_trainer
from stepdistill_jax.train.clock import Clock

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("FRACTION=0.1", "EVAL_SPLITS=('validation',)", "NUM_ENCODER_LAYERS=1", "METHOD=standard")


@pytest.fixture
def attempt(tmp_path, capsys, monkeypatch):
    """Runs a preflight of a small demo; returns the exit code and check -> (result, text)."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*overrides):
        given = (f"MODEL_DIR={str(tmp_path / 'run')!r}",)
        code = preflight.run(load.parse(["demo.gin"], [*given, *SMALL, *overrides]))
        return code, rows(capsys.readouterr().out)

    return run


@pytest.fixture
def one_device(monkeypatch):
    """Compiles sooner; several devices are the two processes' affair."""
    monkeypatch.setattr(preflight_checks, "make_mesh", lambda c: make_mesh(c, jax.devices()[:1]))


def rows(text):
    """The printed table: check -> (result, what was found and the remedy)."""
    found, last = {}, ""
    lines = text[text.index("check   ") :].splitlines()
    for line in lines[1 : [line.startswith("preflight:") for line in lines].index(True)]:
        name = line[:17].strip()
        if name:
            found[name] = (line[17:25].strip(), line[33:])
            last = name
        else:
            found[last] = (found[last][0], f"{found[last][1]}\n{line.strip()}")
    return found


def tree(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_good_run_passes_and_its_folder_stays_as_it_was(attempt, one_device, tmp_path):
    made = load.parse(
        ["demo.gin"],
        [f"MODEL_DIR={str(tmp_path / 'run')!r}", *SMALL],
    )
    mesh = preflight_checks.make_mesh(made.mesh)
    evaluator = Evaluator(made, mesh)
    with manager.manager(made.model_dir) as checkpoints:
        trainer, state, _ = make_trainer(
            made, mesh, make_parts(made, mesh), evaluator, checkpoints, claim(made), Clock()
        )
        trainer._save(state, 300, [], None)
        manager.wait(checkpoints)
        trainer.log.close()
    before = tree(tmp_path / "run")
    code, found = attempt()
    assert code == 0
    assert {result for result, _ in found.values()} == {"ok"}
    assert tree(tmp_path / "run") == before
    assert found["devices"][1].startswith("8 x cpu on one host")
    assert found["run"][1] == "would continue from step 300 of 800"
    assert found["weights"][1] == "the run's own, of step 300"
    assert "for 500 steps" in found["step"][1]
    assert "equal bit for bit" in found["save and restore"][1]
    # The same folder as another run would have it.
    code, found = attempt("ALPHA=0.1", "MESH_FSDP=3")
    assert code == 2
    assert found["run"][0] == "FAILED"
    assert "holds a run with ALPHA=0.5 (now 0.1)" in found["run"][1]


def test_inputs_that_are_cut_and_batches_beyond_the_rows_are_told(attempt, one_device):
    _, found = attempt("MAX_INPUT_LENGTH=4", "BATCH_SIZE=201", "MESH_FSDP=3")
    result, said = found["data: train"]
    assert result == "ok"
    assert "; CUT to the maximum length: label_inputs 200, rationale_inputs 200" in said
    assert said.endswith("; FEWER than BATCH_SIZE=201, lower it")
    assert "FEWER" not in found["data: validation"][1]
    assert "FEWER" not in attempt("BATCH_SIZE=200", "MESH_FSDP=3")[1]["data: train"][1]


def test_labels_that_are_longer_than_what_is_decoded_are_counted(attempt, one_device, caplog):
    attempt("MAX_DECODE_LENGTH=1", "MESH_FSDP=3")
    assert "MAX_DECODE_LENGTH=1: 200 of 200 labels of train are longer" in caplog.text
    caplog.clear()
    attempt("MESH_FSDP=3")
    assert "MAX_DECODE_LENGTH" not in caplog.text


def test_every_fault_is_found_in_one_go(attempt, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, found = attempt(
        f"MODEL_DIR={str(tmp_path / 'file' / 'run')!r}",
        "MESH_FSDP=3",
        "VOCAB_SIZE=100",
        "INITIAL_CHECKPOINT=/no/such/run",
        "METHOD=step_by_step",
        f"RATIONALES='file:{tmp_path}/none_{{split}}.jsonl'",
    )
    assert code == 2
    for check, text in {
        "MODEL_DIR": "cannot be written: Not a directory\n-> Choose another MODEL_DIR",
        "mesh": "needs 3 devices, and there are 8\n-> Set one of the three to -1",
        "embeddings": "VOCAB_SIZE=100 is smaller .* has 623 ids\n-> Set VOCAB_SIZE to at least 623",
        "weights": "'/no/such/run': no checkpoint in this folder",
        "data: train": r"none_train\.jsonl does not exist\n-> Correct RATIONALES",
        "data: validation": r"none_validation\.jsonl does not exist",
    }.items():
        assert found[check][0] == "FAILED"
        assert re.search(text, found[check][1])
    assert {c for c, (result, _) in found.items() if result == "not run"} == {
        "room",
        "state",
        "step",
        "decode",
        "save and restore",
    }
    assert not (tmp_path / "run").exists()


def test_a_store_that_cannot_be_used_is_the_first_word(attempt):
    code, found = attempt("MODEL_DIR='s3://bucket/run'", "MESH_FSDP=3")
    assert code == 2
    assert next(iter(found)) == "stores"
    assert found["stores"][0] == "FAILED"
    assert "expected a local folder or gs://BUCKET/FOLDER" in found["stores"][1]
    for check in ("MODEL_DIR", "run", "weights"):
        assert found[check] == ("not run", "needs stores")


def test_a_loss_that_is_not_finite_fails(attempt, one_device, tmp_path):
    code, found = attempt("LEARNING_RATE=1e30", "CLIP_NORM=0.0", "WARMUP_STEPS=0")
    assert code == 2
    assert found["step"][0] == "FAILED"
    assert "Lower LEARNING_RATE=1e+30" in found["step"][1]
    assert found["decode"] == ("not run", "needs step")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_cannot_hold_the_checkpoints_fails(attempt, monkeypatch):
    class Usage:
        free = 2**20

    monkeypatch.setattr(
        "stepdistill_jax.train.preflight_checks.shutil.disk_usage", lambda path: Usage
    )
    code, found = attempt("MESH_FSDP=3")
    assert code == 2
    assert found["room"][0] == "FAILED"
    assert "has 1.0 MiB free\n-> Free disk space, lower KEEP_CHECKPOINTS=2" in found["room"][1]


def test_what_comes_back_otherwise_than_it_was_saved_fails(attempt, one_device, monkeypatch):
    real = manager.restore

    def damaged(checkpoints, step, abstract):
        state, data, identity = real(checkpoints, step, abstract)
        return state.replace(step=state.step + 1), data, identity

    monkeypatch.setattr(manager, "restore", damaged)
    code, found = attempt()
    assert code == 2
    assert found["save and restore"][0] == "FAILED"
    assert "differs from the saved one" in found["save and restore"][1]


def test_a_method_that_trains_nothing_is_refused(shared):
    overrides = [f"DATA_DIR={str(shared / 'data')!r}", "METHOD=teacher", "MODEL_DIR=unused"]
    with pytest.raises(InputError, match=r"METHOD='teacher' trains nothing .*without --preflight"):
        preflight.run(load.parse(["svamp.gin"], overrides))


@pytest.mark.parametrize(
    ("error", "found", "remedy"),
    [
        (InputError("a is 1; set b; set c"), "a is 1; set b", "set c"),
        (InputError("a.b: x; y 1.5. Set b. Or set c; d."), "a.b: x; y 1.5", "Set b. Or set c; d."),
        (InputError("a is 1"), "a is 1", ""),
        (OSError(errno.ENOSPC, "No space left", "x/y"), "x/y: No space left", "Free disk space"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
            "out of device memory: RESOURCE_EXHAUSTED: Out of memory",
            "Lower BATCH_SIZE",
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: No space left on device"),
            "JaxRuntimeError: RESOURCE_EXHAUSTED: No space left on device",
            "Read the stack trace above.",
        ),
        (KeyError("k"), "KeyError: 'k'", "Read the stack trace above."),
    ],
)
def test_whatever_goes_wrong_has_its_words(error, found, remedy):
    got = preflight.explain(error)
    assert got[0] == found
    assert got[1].startswith(remedy)


def test_a_failure_of_some_hosts_names_them():
    bad = (preflight.FAILED, "no file", "copy it")
    good = (preflight.OK, "fine", "")
    assert preflight._joined({"a": good, "b": bad}) == (preflight.FAILED, "b: no file", "copy it")
    assert preflight._joined({"a": bad, "b": bad}) == bad
    assert preflight._joined({"a": good, "b": good}) == good


def two_processes(tmp_path, flags, own=({}, {}), folders=("", "")):
    """A preflight of two processes of one device each; (exit codes, table of the first)."""
    port = process_group.free_port()
    processes = []
    with contextlib.ExitStack() as stack:
        for index in range(2):
            folder = tmp_path / folders[index]
            folder.mkdir(exist_ok=True)
            environment = process_group.environment(
                PYTHONPATH=str(ROOT),
                COLUMNS="400",
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(index),
                **own[index],
            )
            command = [sys.executable, "-m", "launch.train", "--preflight", "--gin_file=demo.gin"]
            command += [f"--gin.{flag}" for flag in (*SMALL, *flags)]
            out, error = (
                stack.enter_context(open(tmp_path / f"{stream}{index}", "w"))
                for stream in ("out", "error")
            )
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=error
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        codes = [process.wait(500) for process in processes]
    # JAX's CPU collectives greet on stdout.
    said = [
        "\n".join(
            line
            for line in (tmp_path / f"out{index}").read_text().splitlines()
            if not line.startswith("[Gloo]")
        )
        for index in range(2)
    ]
    assert "preflight:" in said[0], (tmp_path / "error0").read_text()[-3000:]
    assert said[1] == ""
    return codes, rows(said[0])


def test_two_processes_pass_together(tmp_path):
    codes, found = two_processes(
        tmp_path, [f"MODEL_DIR={str(tmp_path / 'run')!r}", "METHOD=standard"]
    )
    assert codes == [0, 0]
    assert {result for result, _ in found.values()} == {"ok"}
    assert found["devices"][1].startswith("1 x cpu on each of 2 hosts")
    assert found["hosts"][1].startswith("2 hosts alike: python")
    assert found["mesh"][1] == "replica 1 x fsdp 2 x tensor 1"
    assert not (tmp_path / "run").exists()


def test_a_process_that_differs_is_named(tmp_path):
    # Their working folders differ, so that the relative MODEL_DIR is not one they share.
    codes, found = two_processes(
        tmp_path,
        ["MODEL_DIR=run"],
        own=({}, {"LIBTPU_INIT_ARGS": "--planted"}),
        folders=("a", "b"),
    )
    assert codes == [2, 2]
    host = socket.gethostname()
    assert (
        f"{host} (process 1) has LIBTPU_INIT_ARGS --planted, {host} (process 0) has unset"
        in found["hosts"][1]
    )
    assert found["MODEL_DIR shared"][0] == "FAILED"
    assert "Choose a MODEL_DIR that all hosts share" in found["MODEL_DIR shared"][1]
    # Each would wait in it for what the other writes elsewhere.
    assert found["state"] == ("not run", "needs MODEL_DIR shared")


def test_write_atomic_is_what_the_folder_is_tried_with(attempt, monkeypatch):
    def refused(path, text):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(records, "write_atomic", refused)
    code, found = attempt("MESH_FSDP=3")
    assert code == 2
    assert "cannot be written: Permission denied" in found["MODEL_DIR"][1]
