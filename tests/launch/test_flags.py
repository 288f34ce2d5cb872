import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from stepdistill_jax.spec import EXIT_UNAVAILABLE

ROOT = pathlib.Path(__file__).parents[2]

# A binary as the shipped ones are; what it does is said by its first argument.
PROGRAM = '''
"""Says what it was given."""
import errno
import os
import sys

from launch import flags


def main(config):
    print(config.model_dir, config.seed)
    if config.seed == 99:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/demo/config.gin")
    if config.seed in (96, 97):
        from gcsfs.retry import HttpError

        said = {96: (403, "No access"), 97: (503, "Service Unavailable")}[config.seed]
        raise HttpError(dict(zip(("code", "message"), said)))
    if config.seed == 95:
        import jax.numpy

        jax.numpy.zeros(1 << 50, "int8").block_until_ready()
    if config.seed == 98:
        raise KeyError("a defect")
    return 75 if config.seed == 75 else None


if __name__ == "__main__":
    flags.run(main)
'''


def launch(tmp_path, *arguments, stdout=subprocess.PIPE):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_flags_and_macros_reach_the_configuration(tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "seed.gin").write_text("SEED = 4\nMODEL_DIR = 'from/file'\n")
    done = launch(
        tmp_path,
        "--gin_file=demo.gin",
        "--gin_file=seed.gin",
        "--gin_search_paths=elsewhere,extra",
        "--gin.MODEL_DIR=runs/a b",
    )
    assert (done.returncode, done.stdout) == (0, "runs/a b 4\n"), done.stderr


def test_exit_code_of_the_binary(tmp_path):
    assert launch(tmp_path, "--gin_file=demo.gin", "--gin.SEED=75").returncode == 75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --gin_file is missing. Name a run file, as in --gin_file=demo.gin"),
        (["--gin_file=dmo.gin"], "Did you mean demo.gin?"),
        (["--gin_file=demo.gin", "--gin.SEEED=1"], "Did you mean SEED?"),
        (["--gin_file=demo.gin", "SEED=1"], "error: SEED=1: not a flag"),
        (
            ["--gin_flie=demo.gin"],
            "error: Unknown command line flag 'gin_flie'. Did you mean: gin_file ?",
        ),
        (["-v=x"], "error: --verbosity=x: expected a whole number. See --help"),
        (["--logtostderr=maybe"], "error: --logtostderr=maybe: expected true or false. See --help"),
        (
            ["--gin_file=demo.gin", "--gin.SEED=99"],
            "error: runs/demo/config.gin: No space left on device. Free disk space",
        ),
        (
            ["--gin_file=demo.gin", "--gin.SEED=96"],
            "error: Google Cloud Storage: No access, 403. Grant access and run the same command",
        ),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_outage_of_a_store_is_one_line_and_an_exit_code_of_its_own(tmp_path):
    done = launch(tmp_path, "--gin_file=demo.gin", "--gin.SEED=97")
    assert done.returncode == EXIT_UNAVAILABLE
    assert done.stderr == (
        "error: Google Cloud Storage: Service Unavailable, 503. Run the same command later; it "
        "continues.\n"
    )


def test_too_little_device_memory_is_one_line_with_its_remedies(tmp_path):
    done = launch(tmp_path, "--gin_file=demo.gin", "--gin.SEED=95")
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: out of device memory: RESOURCE_EXHAUSTED: .*1125899906842624 bytes.*\. Lower "
        r"BATCH_SIZE .*raise MICROBATCHES.*\n",
        done.stderr,
    )


def test_a_defect_shows_its_stack_trace(tmp_path):
    done = launch(tmp_path, "--gin_file=demo.gin", "--gin.SEED=98")
    assert done.returncode not in (0, 2)
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_flags_run_files_and_macros(tmp_path, flag):
    done = launch(tmp_path, flag)
    assert done.returncode == 0
    for expected in (
        "Says what it was given.",
        "--gin_search_paths",
        "demo_standard.gin",
        "models/t5_1_1_base.gin",
        "--gin.BATCH_SIZE=64\n      Pairs per step over all devices.",
        "--gin.WATCH_PERIOD=30.0",
    ):
        assert expected in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--gin_file=demo.gin", "--gin.SEED=90"]])
def test_a_reader_that_leaves_ends_the_program_quietly(tmp_path, arguments):
    """As `| head` does: no trace, and the exit code that a shell shows for ls."""
    reader, writer = os.pipe()
    os.close(reader)
    done = launch(tmp_path, *arguments, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


# Says that it runs, then works on; a second signal must not wait for `finally`.
WORKING = """
import time
from launch import flags

def main(arguments):
    try:
        print("works", flush=True)
        time.sleep(60)
    finally:
        print("closes", flush=True)
        time.sleep(60 if arguments.positional else 0)

flags.run_with_arguments(main)
"""


def started(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_is_one_line_and_exit_code_75(number):
    with started(WORKING) as process:
        assert process.stdout.readline() == "works\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (75, "closes\n")
    assert stderr.strip() == f"stopped by {number.name}. Run the same command again."


def test_a_second_stop_signal_ends_at_once():
    with started(WORKING, "slow") as process:
        assert process.stdout.readline() == "works\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "closes\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_during_the_imports_is_one_line(number, tmp_path):
    # Stands for jax, whose import takes seconds.
    (tmp_path / "absl.py").write_text("import time; print('imports', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.report"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "imports\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75
    assert stderr.strip() == f"stopped by {number.name} in start-up"
