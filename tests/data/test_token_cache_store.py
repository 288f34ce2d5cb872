"""A token cache that lies on an object store."""

import re

import aiohttp
import numpy as np
import pytest
from etils import epath
from test_token_cache import no_build, own_data, write_rows

from stepdistill_jax.data import token_cache
from stepdistill_jax.data.config import CACHE_DIR_VARIABLE, TokenConfig
from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.spec import FEATURES, InputError, UnavailableError


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """The disk of a machine that has built the cache, and the data that it is of."""
    folder = tmp_path_factory.mktemp("builder")
    write_rows(folder / "data")
    open_or_build(own_data(folder / "data"), TokenConfig("bytes", cache_dir=str(folder)), "train")
    return folder


@pytest.fixture
def data(builder):
    return own_data(builder / "data")


@pytest.fixture
def stored(store, gs_folder, data, builder, monkeypatch):
    """The cache as the builder has it, and where it has put it on the store."""
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(builder))
    monkeypatch.setattr(token_cache, "_build", no_build)
    tokens = TokenConfig("bytes", cache_dir=gs_folder)
    return open_or_build(data, tokens, "train"), tokens


@pytest.fixture
def other(stored, tmp_path, monkeypatch):
    """From here on this is a machine with nothing on its disk, which is this folder."""
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path))
    return tmp_path


def names(store, stored, pattern=".*"):
    """Of the files of the cache on the store."""
    built, tokens = stored
    prefix = f"{tokens.cache_dir}/{built.folder.name}/".removeprefix("gs://bucket/")
    result = store.names("bucket", f"{re.escape(prefix)}{pattern}")
    return [name.removeprefix(prefix) for name in result], prefix


def test_what_one_machine_built_another_copies_and_builds_nothing(
    store, data, stored, other, monkeypatch
):
    built, tokens = stored
    assert names(store, stored)[0] == sorted(p.name for p in built.folder.iterdir())
    copied = open_or_build(data, tokens, "train")
    assert copied.folder == other / built.folder.name
    assert copied.manifest == built.manifest
    for feature in FEATURES:
        np.testing.assert_array_equal(copied.lengths[feature], built.lengths[feature])
    assert [copied.example(i)["id"] for i in range(len(copied))] == [
        built.example(i)["id"] for i in range(len(built))
    ]
    # Nothing but the cache is left, and a second start asks the store for no rows.
    assert [p.name for p in other.iterdir()] == [built.folder.name]
    monkeypatch.setattr(token_cache, "_copy_from", no_build)
    assert len(open_or_build(data, tokens, "train")) == len(built)


def test_an_upload_that_was_cut_off_is_not_read_and_is_done_again(store, data, stored):
    _, tokens = stored
    whole, prefix = names(store, stored)
    for name in names(store, stored, "(manifest|lengths).*")[0]:
        del store.buckets["bucket"][prefix + name]
    # By the machine that has it on its disk.
    open_or_build(data, tokens, "train")
    assert names(store, stored)[0] == whole
    # The manifest comes last, so that it vouches for the rest.
    assert [n for n in store.writes if prefix in n][-1].endswith("/manifest.json")


def test_a_connection_that_breaks_is_no_full_disk(data, stored, other, monkeypatch):
    def fail(*_, **__):
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(type(epath.Path("gs://bucket/x")), "copy", fail)
    with pytest.raises(UnavailableError, match=r"Storage: Cannot write to closing transport\. Run"):
        open_or_build(data, stored[1], "train")
    assert not list(other.iterdir())


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("tokens-.*", lambda data: data[:-100], "expected .* bytes"),
        ("tokens-.*", lambda data: None, "is damaged: .*tokens-00000"),
        ("lengths.*", lambda data: data[:-4] + b"\1\1\1\1", "lengths.npy has sha256"),
        ("manifest.*", lambda data: data[:50], "is damaged: "),
    ],
)
def test_a_damaged_copy_is_named_and_not_kept(store, data, stored, other, file, harm, message):
    built, tokens = stored
    (name,), prefix = names(store, stored, file)
    harmed = harm(store.read("bucket", prefix + name))
    if harmed is None:
        del store.buckets["bucket"][prefix + name]
    else:
        store.buckets["bucket"][prefix + name].data = harmed
    place = epath.Path(tokens.cache_dir) / built.folder.name
    with pytest.raises(InputError, match=message) as raised:
        open_or_build(data, tokens, "train")
    assert f"Token cache {place} is damaged" in str(raised.value)
    assert str(raised.value).endswith("Delete the folder and run again.")
    assert str(other) not in str(raised.value)
    assert not list(other.iterdir())
