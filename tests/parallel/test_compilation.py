import os
import pathlib
import subprocess
import sys

from stepdistill_jax.parallel import compilation

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import sys
import jax
from jax import monitoring
from stepdistill_jax.parallel import compilation

hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event))
compilation._WORTH_SECONDS = 0.0
compilation.enable_compilation_cache(sys.argv[1])
print(float(jax.jit(lambda x: x * 3)(2.0)), hits.count("/jax/compilation_cache/cache_hits"))
"""


def run(root, **environment):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_second_process_finds_the_first_one_s_programs(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout.split() == ["6.0", "0"]
    value, hits = second.stdout.split()
    assert value == "6.0"
    assert int(hits) > 0
    # One folder for each kind of host, since a CPU's machine code runs on its like alone.
    (host,) = (tmp_path / "xla").iterdir()
    assert list(host.iterdir())


def test_so_does_one_on_another_machine_where_they_lie_on_a_store(store, gs_folder):
    first, second = run(gs_folder), run(gs_folder)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout.split() == ["6.0", "0"]
    value, hits = second.stdout.split()
    assert value == "6.0"
    assert int(hits) > 0
    inside = gs_folder.removeprefix("gs://bucket/")
    assert store.names("bucket", f"{inside}/xla/{compilation.host()}/.*-cache")


def test_jax_s_own_variable_goes_first(tmp_path):
    done = run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file")
    assert (done.returncode, done.stdout.split()) == (0, ["6.0", "0"]), done.stderr
