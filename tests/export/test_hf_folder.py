"""Hugging Face folders written: the same parameters, and what transformers makes of them."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from random_params import random_params
from safetensors.numpy import load_file, save_file
from same_trees import assert_same

from stepdistill_jax.checkpoint import fill, hf, names
from stepdistill_jax.data.sources import demo
from stepdistill_jax.data.vocabulary import SentencePieceVocabulary, load_vocabulary
from stepdistill_jax.export import hf_folder
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import Transformer, abstract_params
from stepdistill_jax.spec import EOS_ID, PAD_ID, InputError

SIZES = {
    "vocab_size": 48,
    "emb_dim": 16,
    "num_heads": 4,
    "head_dim": 6,
    "mlp_dim": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
}
VARIANTS = {
    "v1.0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
    "v1.1": {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def model(variant, **changes):
    return T5Config(**(SIZES | VARIANTS[variant] | {"dropout_rate": 0.0} | changes))


def host_params(config, seed=0):
    return jax.device_get(random_params(config, seed))


def write(folder, config, params, **changes):
    hf_folder.write_json(epath.Path(folder / "config.json"), hf_folder.config_json(config))
    hf_folder.write_weights(epath.Path(folder), params, **changes)
    return str(folder)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("shard_bytes", [10**9, 10_000])
@variants
def test_ours_to_hugging_face_and_back_is_the_same_bit_for_bit(
    tmp_path, variant, shard_bytes, scan_layers
):
    config = model(variant, scan_layers=scan_layers)
    params = host_params(config)
    checkpoint = hf.HFCheckpoint(write(tmp_path, config, params, shard_bytes=shard_bytes))
    checkpoint.check_model(config)
    assert_same(fill.fill(checkpoint, abstract_params(config)), params)


@variants
def test_hugging_face_to_ours_and_back_is_the_same_bit_for_bit(tmp_path, variant):
    config = model(variant)
    arrays = dict(fill.arrays(host_params(config, seed=3), "hf"))
    for name in ("published", "exported"):
        (tmp_path / name).mkdir()
    save_file(arrays, tmp_path / "published" / "model.safetensors")
    (tmp_path / "published" / "config.json").write_text(json.dumps(hf_folder.config_json(config)))
    checkpoint = hf.HFCheckpoint(str(tmp_path / "published"))
    params = fill.fill(checkpoint, abstract_params(config))
    write(tmp_path / "exported", config, params)
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)


def test_a_shard_holds_no_more_than_it_may(tmp_path):
    config = model("v1.1")
    params = host_params(config)
    write(tmp_path, config, params, shard_bytes=10_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    sizes = [sum(a.nbytes for a in load_file(tmp_path / shard).values()) for shard in shards]
    assert len(shards) > 3
    assert max(sizes) <= 10_000
    assert sum(sizes) == index["metadata"]["total_size"]


def test_arrays_are_asked_for_one_at_a_time_and_in_order(tmp_path):
    config = model("v1.1", scan_layers=True)
    reads = []

    class Lazy:
        def __init__(self, name, value):
            self.name, self.value, self.shape = name, value, value.shape

        def __getitem__(self, layer):
            reads.append(self.name)
            return self.value[layer]

        def __array__(self, dtype=None, copy=None):
            reads.append(self.name)
            return self.value

    flat = names.flat(host_params(config))
    tree = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = Lazy(name, value)
    write(tmp_path, config, tree)
    # Left and come back to, an array would have to be read twice or kept.
    changes = [name for before, name in zip([None, *reads], reads, strict=False) if name != before]
    assert sorted(changes) == sorted(flat)


def test_an_mlp_that_transformers_lacks_is_refused():
    with pytest.raises(InputError, match=r"MLP_ACTIVATIONS=\('silu',\).*--to=t5x"):
        hf_folder.config_json(model("v1.0", mlp_activations=("silu",)))


@variants
def test_logits_of_the_loaded_model_are_ours(tmp_path, variant):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra 'test')")
    import transformers

    config = model(variant)
    params = host_params(config)
    write(tmp_path, config, params)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    rng = np.random.default_rng(1)
    inputs, targets = (rng.integers(3, 48, (4, length), np.int32) for length in (9, 5))
    inputs[1, 6:] = PAD_ID
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    ours = Transformer(config).apply(
        {"params": params}, inputs, (inputs != PAD_ID).astype(np.int32), shifted, targets * 0 + 1
    )
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(inputs, dtype=torch.long),
            attention_mask=torch.tensor(inputs != PAD_ID),
            labels=torch.tensor(targets, dtype=torch.long),
        ).logits.numpy()
    assert np.abs(expected - ours).max() <= 1e-5 * np.abs(expected).max()


def tokenizer(folder, vocabulary, texts):
    import transformers

    hf_folder.write_tokenizer(epath.Path(folder), vocabulary, 32)
    assert hf_folder.check_tokenizer(epath.Path(folder), vocabulary, texts) == len(texts)
    return transformers.AutoTokenizer.from_pretrained(str(folder))


TEXTS = [
    "predict: A man is sleeping.</s>The man, who is old, sleeps!",
    "predict: a </s> b </s>c",
    "  several   spaces ",
    "é ﬁ ① 中文 emoji 😀 \t and\nlines",
    "",
]


def test_t5s_tokenizer_gives_our_ids(tmp_path, spiece, shared):
    vocabulary = load_vocabulary(str(spiece))
    rows = (shared / "data" / "cqa" / "cqa_test.json").read_text().splitlines()[:300]
    loaded = tokenizer(tmp_path, vocabulary, [*TEXTS, *rows])
    assert (len(loaded), loaded.model_max_length) == (vocabulary.size, 32)
    assert loaded("a b " * 40, truncation=True)["input_ids"][-1] == EOS_ID
    assert (tmp_path / "spiece.model").read_bytes() == vocabulary.model


def test_the_byte_tokenizer_gives_our_ids(tmp_path):
    vocabulary = load_vocabulary("bytes")
    loaded = tokenizer(tmp_path, vocabulary, TEXTS)
    assert len(loaded) == vocabulary.size
    ids = vocabulary.encode("colour ß")
    assert loaded.decode([*ids, EOS_ID], skip_special_tokens=True) == "colour ß"


def test_the_demos_tokenizer_gives_our_ids(tmp_path):
    vocabulary = load_vocabulary("demo")
    words = demo.words()
    texts = [" ".join(words[start : start + 7]) for start in range(len(words))]
    loaded = tokenizer(tmp_path, vocabulary, [*texts, "Anna</s>cocoa", "", "they horse cocoa"])
    assert len(loaded) == vocabulary.size
    ids = vocabulary.encode(texts[0])
    assert loaded.decode([*ids, EOS_ID], skip_special_tokens=True) == vocabulary.decode(ids)


def test_a_tokenizer_that_gives_other_ids_is_refused(tmp_path, spiece):
    hf_folder.write_tokenizer(epath.Path(tmp_path), load_vocabulary(str(spiece)), 32)
    with pytest.raises(InputError, match="transformers' tokenizer differs on 'green': got"):
        hf_folder.check_tokenizer(epath.Path(tmp_path), load_vocabulary("demo"), ["green"])


def test_a_kind_of_vocabulary_that_transformers_lacks_is_refused(tmp_path):
    import io

    import sentencepiece

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["some words to merge"] * 9),
        model_writer=trained,
        model_type="bpe",
        vocab_size=30,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    vocabulary = SentencePieceVocabulary(trained.getvalue(), 0, where="here")
    with pytest.raises(InputError, match="SentencePiece model: got type BPE, expected UNIGRAM"):
        hf_folder.write_tokenizer(epath.Path(tmp_path), vocabulary, 32)


def test_a_tokenizer_of_bytes_is_known_again_where_training_goes_on_from_the_folder(
    tmp_path, spiece
):
    config = model("v1.1", vocab_size=264)
    write(tmp_path, config, host_params(config))
    hf_folder.write_tokenizer(epath.Path(tmp_path), load_vocabulary("bytes"), 32)
    checkpoint = hf.HFCheckpoint(str(tmp_path))
    checkpoint.check_vocabulary(load_vocabulary("bytes"), "bytes")
    with pytest.raises(InputError, match=r"which reads bytes\. Set VOCABULARY='bytes'\."):
        checkpoint.check_vocabulary(load_vocabulary(str(spiece)), str(spiece))
