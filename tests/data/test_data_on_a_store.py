"""Rows and a vocabulary that lie on an object store."""

import pytest
from etils import epath
from test_token_cache import own_data, write_rows

from stepdistill_jax.data import vocabulary
from stepdistill_jax.data.config import DATA_DIR_VARIABLE, DataConfig
from stepdistill_jax.data.join import load_pairs
from stepdistill_jax.data.read import find_data_dir
from stepdistill_jax.data.sources import SOURCES
from stepdistill_jax.spec import InputError


def test_rows_are_those_of_the_files_on_a_disk(gs_folder, tmp_path):
    write_rows(tmp_path)
    write_rows(epath.Path(gs_folder))
    pairs, _ = load_pairs(own_data(gs_folder), "train")
    assert pairs == load_pairs(own_data(tmp_path), "train")[0]
    assert pairs


def test_a_vocabulary_is_that_of_the_file_on_a_disk(gs_folder, tmp_path):
    model = vocabulary._demo_model()
    (tmp_path / "spiece.model").write_bytes(model)
    (epath.Path(gs_folder) / "spiece.model").write_bytes(model)
    want = vocabulary.load_vocabulary(str(tmp_path)).fingerprint
    for name in (gs_folder, f"{gs_folder}/spiece.model"):
        assert vocabulary.load_vocabulary(name).fingerprint == want


def test_a_bucket_that_is_not_there_is_one_line(store, monkeypatch):
    message = "='gs://nobody/x': no bucket 'nobody'"
    with pytest.raises(InputError, match=f"^VOCABULARY{message}"):
        vocabulary.load_vocabulary("gs://nobody/x")
    monkeypatch.setenv(DATA_DIR_VARIABLE, "gs://nobody/x")
    with pytest.raises(InputError, match=f"^{DATA_DIR_VARIABLE}{message}"):
        find_data_dir(DataConfig("cqa"), SOURCES["cqa"])
    with pytest.raises(InputError, match=f"^DATA_DIR{message}"):
        find_data_dir(own_data("gs://nobody/x"), SOURCES["jsonl"])
