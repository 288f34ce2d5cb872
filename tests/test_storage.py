"""Files on an object store, against a server of its protocol on the loopback."""

import json
import os
import subprocess
import sys

import google.auth
import pytest
import requests
from etils import epath
from gcsfs.retry import HttpError
from google.api_core import exceptions
from google.auth import exceptions as auth_exceptions
from google.auth.credentials import AnonymousCredentials

from stepdistill_jax import records, storage
from stepdistill_jax.spec import (
    EXIT_INPUT_ERROR,
    EXIT_UNAVAILABLE,
    InputError,
    UnavailableError,
)

OUTAGE = "Error reading gs://bucket/x/.zarray: All 32 retry attempts failed"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)


@pytest.fixture(autouse=True)
def _ask_anew():
    storage._problem.cache_clear()


def names(store, gs_folder):
    return store.names("bucket", f"{gs_folder.removeprefix('gs://bucket/')}/.*")


def writes(store, name):
    return store.writes.count(name.removeprefix("gs://"))


def test_a_file_is_written_as_one_object_under_its_own_name(store, gs_folder):
    path = f"{gs_folder}/a/b.jsonl"
    rows = [{"text": "é\n"}, {"text": "x" * 3_000_000}]
    records.write_jsonl(path, rows)
    assert [row for _, row in records.read_jsonl(path)] == rows
    assert writes(store, path) == 1
    assert names(store, gs_folder) == [path.removeprefix("gs://bucket/")]


def test_what_another_process_writes_is_seen(store, gs_folder):
    # gcsfs by itself remembers a listing for good, and a run that is followed would never move.
    steps = epath.Path(gs_folder) / "checkpoints"
    (steps / "10" / "done").write_text("")
    assert [p.name for p in steps.iterdir()] == ["10"]
    assert not (steps / "20").exists()
    write = "import sys; from etils import epath; epath.Path(sys.argv[1]).write_text('')"
    subprocess.run([sys.executable, "-c", write, str(steps / "20" / "done")], check=True)
    assert [p.name for p in steps.iterdir()] == ["10", "20"]
    assert (steps / "20").exists()


def test_a_listing_of_several_pages_is_whole(store, gs_folder):
    for number in range(250):
        store.write("bucket", f"{gs_folder.removeprefix('gs://bucket/')}/{number:03}/x", b"", {})
    assert [p.name for p in epath.Path(gs_folder).iterdir()] == [f"{n:03}" for n in range(250)]


def test_tensorstore_replaces_what_it_has_read_and_nothing_newer(store, gs_folder):
    import tensorstore as ts

    bucket, _, inside = gs_folder.removeprefix("gs://").partition("/")
    kv = ts.KvStore.open({"driver": "gcs", "bucket": bucket, "path": f"{inside}/"}).result()
    first = kv.write("key", b"one").result().generation
    kv.write("key", b"two", if_equal=first).result()
    kv.write("key", b"three", if_equal=first).result()
    assert kv.read("key").result().value == b"two"


def test_lines_are_rewritten_seldom_and_are_there_after_a_flush(store, gs_folder, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: clock[0])
    path = f"{gs_folder}/metrics.jsonl"
    lines = records.LineWriter(path, ["kept\n"])
    for number in range(100):
        clock[0] += 1
        lines.write(f"{number}\n")
    # One object more than three times a minute, whatever the number of lines.
    assert writes(store, path) == 1 + 3
    assert epath.Path(path).read_text().splitlines()[-1] == "89"
    lines.flush()
    lines.flush()
    assert writes(store, path) == 1 + 4
    assert epath.Path(path).read_text() == "kept\n" + "".join(f"{n}\n" for n in range(100))
    lines.write("last\n")
    lines.close()
    assert epath.Path(path).read_text().endswith("99\nlast\n")


def test_a_bucket_that_can_be_used_is_asked_once(store, gs_folder):
    storage.check("MODEL_DIR", gs_folder, write=True)
    storage.check("CACHE_DIR", f"{gs_folder}/cache", write=True)
    storage.check("MODEL_DIR", "runs/one", write=True)
    assert storage._problem.cache_info().misses == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://nobody/run", "no bucket 'nobody'. Create it, or correct the name"),
        ("gs://readable/run", r"lack storage\.objects\.create, storage\.objects\.delete in bucket"),
        ("gs://closed/run", r"lack storage\.buckets\.get, storage\.objects\.list, .* Grant the"),
        ("gs://bucket", "expected a local folder or gs://BUCKET/FOLDER"),
        ("s3://bucket/run", "expected a local folder or gs://BUCKET/FOLDER"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(store, path, message):
    store.buckets |= {"readable": {}, "closed": {}}
    store.permissions = {
        "readable": ("storage.buckets.get", "storage.objects.list", "storage.objects.get"),
        "closed": (),
    }
    with pytest.raises(InputError, match=message) as raised:
        storage.check("MODEL_DIR", path, write=True)
    assert str(raised.value).startswith(f"MODEL_DIR='{path}': ")
    assert "\n" not in str(raised.value)


def test_reading_needs_no_right_to_write(store):
    store.buckets["readable"] = {}
    store.permissions["readable"] = storage._TO_READ
    storage.check("INITIAL_CHECKPOINT", "gs://readable/run")


def test_what_may_be_listed_may_be_read(store):
    """As of a public bucket, whose objects say themselves who may read them."""
    store.buckets |= {"public": {}, "closed": {}}
    store.permissions |= {"public": ("storage.objects.list",), "closed": ()}
    storage.check("INITIAL_CHECKPOINT", "gs://public/t5")
    with pytest.raises(InputError, match=r"bucket 'closed' denied .*storage\.objects\.list"):
        storage.check("INITIAL_CHECKPOINT", "gs://closed/t5")


def test_credentials_without_a_project_will_do(store, monkeypatch):
    def default(**_):
        return AnonymousCredentials(), os.environ["GOOGLE_CLOUD_PROJECT"] or None

    monkeypatch.setattr(google.auth, "default", default)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", store.url)
    for name in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.setenv(name, "")
    storage.check("MODEL_DIR", "gs://bucket/run", write=True)


def test_a_client_that_is_not_installed(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        InputError, match=r"not installed .*\. Run pip install 'stepdistill-jax\[gcs\]'"
    ):
        storage.check("MODEL_DIR", "gs://bucket/run")


def test_no_credentials(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    # Else it would ask the machine's own metadata server, which only Google's machines have.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(InputError, match=r"no credentials for Google Cloud\. Attach a service"):
        storage.check("MODEL_DIR", "gs://bucket/run")


def test_credentials_that_are_refused(store, monkeypatch):
    class Forbidding(dict):
        def __contains__(self, name):
            raise type(store).Error(403, "The account is disabled.")

    monkeypatch.setattr(store, "buckets", Forbidding())
    with pytest.raises(InputError, match=r"bucket 'bucket' denied .*The account is disabled"):
        storage.check("MODEL_DIR", "gs://bucket/run")


def test_no_network(monkeypatch, impatient):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UnavailableError, match=r"did not answer within 1 s .*Check the network"):
        storage.check("MODEL_DIR", "gs://bucket/run")


def test_what_fails_later_is_one_line_too(store):
    store.buckets["readable"] = {}
    store.permissions["readable"] = storage._TO_READ
    with pytest.raises(OSError, match="Forbidden") as raised:
        records.write_atomic("gs://readable/run/x", "text")
    failed = storage.failure(raised.value)
    assert failed.exit_code == EXIT_INPUT_ERROR
    message = str(failed)
    assert message.startswith("Google Cloud Storage: Forbidden: ")
    assert "does not have storage.objects.create access" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (requests.exceptions.ConnectionError("Connection aborted."), EXIT_UNAVAILABLE),
        (HttpError({"code": 429, "message": "Slow down"}), EXIT_UNAVAILABLE),
        (HttpError({"code": 401, "message": "Who are you?"}), EXIT_INPUT_ERROR),
        (exceptions.ServiceUnavailable("Try again"), EXIT_UNAVAILABLE),
        (exceptions.NotFound("No such bucket"), EXIT_INPUT_ERROR),
        (auth_exceptions.TransportError("No metadata"), EXIT_UNAVAILABLE),
        (auth_exceptions.DefaultCredentialsError("None here"), EXIT_INPUT_ERROR),
        (ValueError(f'ABORTED: Error opening "zarr" driver: {OUTAGE}'), EXIT_UNAVAILABLE),
        (ValueError("NOT_FOUND: Error reading gs://bucket/x/.zarray"), None),
        (RuntimeError("UNAVAILABLE: tensorstore is not what said this"), None),
        (ValueError("UNAVAILABLE: another process"), None),
        (OSError("disk full"), None),
        (ValueError("Forbidden: no store's"), None),
    ],
)
def test_a_failure_passes_or_is_for_good_or_is_no_stores(error, code):
    assert getattr(storage.failure(error), "exit_code", None) == code


def test_reading_a_store_loads_no_tensorflow(store, gs_folder):
    path = f"{gs_folder}/x.jsonl"
    records.write_jsonl(path, [{"a": 1}])
    program = (
        "import json, sys; from stepdistill_jax import records; "
        "rows = [row for _, row in records.read_jsonl(sys.argv[1])]; "
        "print(json.dumps([rows, 'tensorflow' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [[{"a": 1}], False]


def test_a_file_for_libraries_that_know_disks_alone(store, gs_folder, tmp_path, monkeypatch):
    local = epath.Path(tmp_path / "weights")
    assert storage.on_disk(local) is local
    remote = epath.Path(gs_folder) / "weights"
    remote.write_bytes(b"\0" * 1000)

    def fail(*_, **__):
        raise requests.exceptions.ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(type(remote), "copy", fail)
        with pytest.raises(requests.exceptions.ConnectionError):
            storage.on_disk(remote)
    copy = storage.on_disk(remote)
    assert not storage.is_remote(copy)
    assert copy.read_bytes() == b"\0" * 1000
    assert storage.on_disk(remote) == copy
