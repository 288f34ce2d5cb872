import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stepdistill_jax.data import token_cache, token_shards
from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.join import ColumnConfig, DataConfig, load_pairs
from stepdistill_jax.data.token_cache import TokenCache, open_or_build
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.spec import FEATURES, InputError

ROOT = pathlib.Path(__file__).parents[2]
ROWS = 40


def write_rows(folder, count=ROWS):
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = (
            {
                "x": f"{split} {'long ' * (i % 5)}</s>{i}",
                "y": "yes" if i % 2 else "no",
                "r": None if i % 4 == 0 else f"because of {i}",
            }
            for i in range(count)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_data(folder):
    columns = ColumnConfig(
        train_file="train.jsonl",
        validation_file="validation.jsonl",
        test_file="test.jsonl",
        input_template="{x}",
        label_column="y",
        rationale_column="r",
        label_set=("yes", "no"),
    )
    return DataConfig("jsonl", data_dir=str(folder), columns=columns)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder)
    return own_data(folder)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return TokenConfig("bytes", cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def cache(data, tokens):
    return open_or_build(data, tokens, "train")


@pytest.fixture
def copy(cache, tmp_path):
    """A copy of the cache that a test may damage."""
    folder = tmp_path / cache.folder.name
    folder.mkdir()
    for file in cache.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def no_build(*_):
    raise AssertionError("built again")


def folders(root):
    return sorted(path.name for path in pathlib.Path(root).iterdir())


def test_rows_are_the_pairs_in_order_with_tokens_texts_and_weights(cache, data):
    pairs, _ = load_pairs(data, "train")
    encode = load_vocabulary("bytes").encode
    assert len(cache) == len(pairs) == ROWS
    for index, pair in enumerate(pairs):
        row = cache.example(index)
        texts = {name: row[name] for name in ("id", "input", "label", "gold", "rationale")}
        assert texts == {
            "id": pair.id,
            "input": pair.input,
            "label": pair.label,
            "gold": pair.gold,
            "rationale": pair.rationale,
        }
        assert row["choices"] == ("yes", "no")
        assert row["label_inputs"].tolist() == [*encode(f"predict: {pair.input}"), 1]
        assert row["rationale_inputs"].tolist() == [*encode(f"explain: {pair.input}"), 1]
        assert row["label_targets"].tolist() == [*encode(pair.label), 1]
        assert row["rationale_targets"].tolist() == [*encode(pair.rationale or ""), 1]
        assert (row["label_weight"], row["rationale_weight"]) == (1.0, float(index % 4 != 0))


def test_training_reads_tokens_and_weights_alone(cache):
    assert set(cache[3]) == {*FEATURES, "label_weight", "rationale_weight"}
    assert all(cache[3][feature].dtype == np.int32 for feature in FEATURES)
    for index in (-1, ROWS):
        with pytest.raises(IndexError, match=f"of {ROWS} pairs"):
            cache[index]


def test_lengths_are_those_of_the_stored_features(cache):
    for feature in FEATURES:
        assert cache.lengths[feature].dtype == np.int32
        assert cache.lengths[feature].tolist() == [len(cache[i][feature]) for i in range(ROWS)]


def test_the_manifest_counts_tokens_truncations_and_unknowns(data, tokens, cache):
    full = cache.lengths["label_inputs"]
    manifest = cache.manifest
    assert manifest.percentiles["label_inputs"]["100"] == full.max()
    assert manifest.percentiles["label_inputs"]["50"] == np.percentile(full, 50, method="higher")
    assert manifest.mean["label_inputs"] == pytest.approx(full.mean())
    assert set(manifest.truncated.values()) == {0}
    assert manifest.report["kept"] == ROWS
    limit = int(np.percentile(full, 60))
    short = TokenConfig("bytes", max_input_length=limit, cache_dir=tokens.cache_dir)
    cut = open_or_build(data, short, "train")
    assert cut.manifest.truncated["label_inputs"] == np.sum(full > limit) > 0
    assert cut.manifest.truncated["label_targets"] == 0
    # Lengths before truncation are in the manifest, stored ones in the table.
    assert cut.manifest.percentiles["label_inputs"] == manifest.percentiles["label_inputs"]
    assert cut.lengths["label_inputs"].max() == limit
    assert all(cut[i]["label_inputs"][-1] == 1 for i in range(ROWS))
    words = open_or_build(data, TokenConfig("demo", cache_dir=tokens.cache_dir), "train")
    assert words.manifest.unknown["label_inputs"] == sum(
        int((words[i]["label_inputs"] == 2).sum()) for i in range(ROWS)
    )
    assert words.manifest.unknown["label_inputs"] > ROWS


def test_a_second_opening_does_not_build(data, tokens, cache, monkeypatch):
    monkeypatch.setattr(token_cache, "_build", no_build)
    assert open_or_build(data, tokens, "train").folder == cache.folder


def test_every_changed_ingredient_is_another_folder(tmp_path):
    folder = tmp_path / "data"
    write_rows(folder)
    prints = {}

    def add(name, data=None, tokens=None, split="train"):
        data, tokens = data or own_data(folder), tokens or TokenConfig("bytes")
        prints[name] = token_cache.cache_fingerprint(data, tokens, split)

    add("as it is")
    add("vocabulary", tokens=TokenConfig("demo"))
    add("prefixes", tokens=TokenConfig("bytes", prefixes="paper"))
    for name in ("max_input_length", "max_label_length", "max_rationale_length"):
        add(name, tokens=TokenConfig("bytes", **{name: 99}))
    add("split", split="test")
    add("fraction", data=DataConfig(**{**vars(own_data(folder)), "fraction": 0.5}))
    write_rows(folder, ROWS + 1)
    add("another row")
    assert len(set(prints.values())) == len(prints)
    write_rows(folder)
    add("the row taken out again", tokens=TokenConfig("bytes", cache_dir="/elsewhere"))
    assert prints["the row taken out again"] == prints["as it is"]


def test_changed_source_bytes_rebuild(tmp_path):
    folder = tmp_path / "data"
    write_rows(folder, 8)
    tokens = TokenConfig("bytes", cache_dir=str(tmp_path / "cache"))
    assert len(open_or_build(own_data(folder), tokens, "train")) == 8
    write_rows(folder, 9)
    assert len(open_or_build(own_data(folder), tokens, "train")) == 9
    assert len(folders(tmp_path / "cache")) == 2


def test_several_shards_read_as_one(data, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(token_shards, "_PAIRS_PER_SHARD", 7)
    sharded = open_or_build(data, TokenConfig("bytes", cache_dir=str(tmp_path)), "train")
    assert [shard.rows for shard in sharded.manifest.shards] == [7, 7, 7, 7, 7, 5]
    assert sharded.manifest.shards[0].name == "tokens-00000-of-00006.array_record"
    for index in range(ROWS):
        for feature in FEATURES:
            np.testing.assert_array_equal(sharded[index][feature], cache[index][feature])


def test_threads_and_pickled_copies_read_the_same(cache):
    again = pickle.loads(pickle.dumps(cache))
    expected = [cache[i]["label_inputs"].tolist() for i in range(ROWS)]
    with ThreadPoolExecutor(8) as pool:
        result = list(
            pool.map(lambda i: again[i % ROWS]["label_inputs"].tolist(), range(10 * ROWS))
        )
    assert result == expected * 10


# As on a machine where they are not installed: no finder knows them.
BLOCKED = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_text", "seqio", "tasks"):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


OPEN = """
import dataclasses, sys
sys.path.insert(0, "tests/data")
from test_token_cache import own_data
from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.token_cache import open_or_build
cache = open_or_build(own_data(sys.argv[1]), TokenConfig("bytes", cache_dir=sys.argv[2]), "train")
print(len(cache), cache[5]["label_inputs"].tolist(), cache.example(5)["gold"])
assert not {"tensorflow", "seqio", "tasks"} & set(sys.modules)
"""


def test_a_warm_cache_opens_where_tensorflow_and_seqio_are_not_installed(data, tokens, cache):
    done = run(BLOCKED + OPEN, data.data_dir, tokens.cache_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ROWS} {cache[5]['label_inputs'].tolist()} {cache.example(5)['gold']}\n"


def test_a_cold_one_says_what_is_missing(data, tmp_path):
    done = run(BLOCKED + OPEN, data.data_dir, str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "InputError: No token cache of dataset 'jsonl', split 'train'" in done.stderr
    assert "needs TensorFlow and SeqIO (No module named 'tensorflow')" in done.stderr
    assert not (tmp_path / "empty").exists()


def build_at_once(folder, root, barrier, queue):
    barrier.wait()
    cache = open_or_build(own_data(folder), TokenConfig("bytes", cache_dir=root), "train")
    queue.put([cache[i]["label_inputs"].tolist() for i in range(len(cache))])


def test_two_processes_building_at_once_do_no_harm(data, tmp_path, cache):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=build_at_once, args=(data.data_dir, str(tmp_path), barrier, queue))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert results[0] == results[1] == [cache[i]["label_inputs"].tolist() for i in range(ROWS)]
    assert folders(tmp_path) == [cache.folder.name]  # the loser's copy is gone


def test_the_loser_of_a_race_takes_the_winners_cache(data, tmp_path, monkeypatch):
    """The other builder publishes after we looked and before we rename."""
    tokens = TokenConfig("bytes", cache_dir=str(tmp_path))
    finish = token_shards.ShardWriter.finish

    def lose(writer, **fields):
        monkeypatch.setattr(token_shards.ShardWriter, "finish", finish)
        (open_or_build(data, tokens, "train").folder / "winner").touch()
        return finish(writer, **fields)

    monkeypatch.setattr(token_shards.ShardWriter, "finish", lose)
    cache = open_or_build(data, tokens, "train")
    assert (cache.folder / "winner").exists()
    assert folders(tmp_path) == [cache.folder.name]


KILLED = """
import sys
sys.path.insert(0, "tests/data")
from test_token_cache import own_data
from stepdistill_jax.data import token_cache, token_shards
from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.token_cache import open_or_build
add, added = token_shards.ShardWriter.add, []
def slow(self, example):
    add(self, example)
    added.append(1)
    if len(added) == 20:
        print("half", flush=True)
        import time
        time.sleep(600)
token_shards.ShardWriter.add = slow
open_or_build(own_data(sys.argv[1]), TokenConfig("bytes", cache_dir=sys.argv[2]), "train")
"""


def test_a_build_killed_half_way_is_never_read_and_later_swept(data, tmp_path, cache):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, data.data_dir, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    tokens = TokenConfig("bytes", cache_dir=str(tmp_path))
    built = open_or_build(data, tokens, "train")
    assert built[39]["label_inputs"].tolist() == cache[39]["label_inputs"].tolist()
    assert left.exists()  # a builder may still be at work on it
    bystander = tmp_path / ".some.thing.else"
    bystander.mkdir()
    for path in (left, bystander):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    open_or_build(data, tokens, "test")
    assert not left.exists()
    assert bystander.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        # As array_record says it.
        RuntimeError("write() failed: No space left on device; writing x; at byte 9; Failed"),
    ],
)
def test_a_build_that_fails_leaves_nothing_behind(data, tmp_path, monkeypatch, error):
    def fail(self, example):
        raise error

    monkeypatch.setattr(token_shards.ShardWriter, "add", fail)
    with pytest.raises(
        InputError, match=r"jsonl-train-\w+ cannot be written: .*No space left.*set CACHE_DIR"
    ):
        open_or_build(data, TokenConfig("bytes", cache_dir=str(tmp_path)), "train")
    assert folders(tmp_path) == []


def test_a_cache_dir_that_cannot_be_written_is_named(data, tmp_path):
    (tmp_path / "file").write_text("")
    tokens = TokenConfig("bytes", cache_dir=str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/jsonl-train-\w+ cannot be written: .*CACHE_DIR"):
        open_or_build(data, tokens, "train")


def shard_of(folder):
    (path,) = folder.glob("*.array_record")
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shard_of(f).unlink(), r"tokens-.* is missing, expected \d+ bytes"),
        (lambda f: os.truncate(shard_of(f), 1000), r"tokens-.* has 1000 bytes, expected \d+"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text('{"rows"'), r"manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("{}"), r"manifest.json cannot be read"),
    ],
)
def test_a_damaged_cache_is_refused_with_the_folder_to_delete(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=rf"{copy} is damaged: {message}.*\. Delete the folder"):
        TokenCache(copy)


def test_a_flipped_byte_is_found_when_the_row_is_read(copy):
    path = shard_of(copy)
    content = bytearray(path.read_bytes())
    content[content.index(b"because of 13")] ^= 0xFF
    path.write_bytes(content)
    cache = TokenCache(copy)
    assert cache[12]["label_weight"] == 1.0
    with pytest.raises(InputError, match=f"{copy} is damaged: pair 13: .*hash mismatch.*. Delete"):
        cache[13]


def test_a_changed_table_of_lengths_is_found(copy):
    table = np.load(copy / "lengths.npy")
    np.save(copy / "lengths.npy", table + 1)
    with pytest.raises(InputError, match=r"lengths.npy has sha256 \w+, expected \w+. Delete"):
        _ = TokenCache(copy).lengths
    (copy / "lengths.npy").unlink()
    with pytest.raises(InputError, match=r"lengths.npy has sha256 missing"):
        _ = TokenCache(copy).lengths


def test_a_folder_renamed_by_hand_is_not_taken_for_another(data, tokens, cache, tmp_path):
    other = TokenConfig("demo", cache_dir=str(tmp_path))
    name = f"jsonl-train-{token_cache.cache_fingerprint(data, other, 'train')[:16]}"
    (tmp_path / name).symlink_to(cache.folder)
    with pytest.raises(InputError, match="has other ingredients"):
        open_or_build(data, other, "train")


def test_another_format_is_refused(copy):
    path = copy / "manifest.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "format": 0}))
    with pytest.raises(InputError, match=r"got format 0, expected 1\. Delete the folder"):
        TokenCache(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefixes": "mine"}, "PREFIXES: got 'mine', expected one of 'release', 'paper'"),
        ({"max_label_length": 1}, "MAX_LABEL_LENGTH: got 1, expected a number in \\[2, 65536\\]"),
    ],
)
def test_illegal_configurations_cannot_be_built(changes, message):
    with pytest.raises(InputError, match=message):
        TokenConfig(**changes)


def test_the_root_is_the_option_then_the_environment_then_home(monkeypatch):
    monkeypatch.setenv("STEPDISTILL_CACHE_DIR", "/from/environment")
    assert TokenConfig(cache_dir="/mine").root() == pathlib.Path("/mine")
    assert TokenConfig().root() == pathlib.Path("/from/environment")
    monkeypatch.delenv("STEPDISTILL_CACHE_DIR")
    assert TokenConfig().root() == pathlib.Path("~/.cache/stepdistill_jax").expanduser()


def test_another_tokenisation_is_another_fingerprint(data, tokens, monkeypatch):
    before = token_cache.cache_fingerprint(data, tokens, "train")
    monkeypatch.setattr(token_cache, "_TOKENISATION", token_cache._TOKENISATION + 1)
    assert token_cache.cache_fingerprint(data, tokens, "train") != before
