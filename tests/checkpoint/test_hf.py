"""Hugging Face checkpoints read: every form of file, streamed onto a mesh, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from stepdistill_jax import hub
from stepdistill_jax.checkpoint import fill, hf, initial
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import Transformer, abstract_params, logical_axes
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.parallel.rules import param_shardings
from stepdistill_jax.spec import InputError

LAYERS = {"encoder": 2, "decoder": 3}
V, D, H, K, F = 40, 16, 4, 8, 32

# Written down from transformers' T5ForConditionalGeneration, not from our own table.
SELF = {
    f"SelfAttention.{n}.weight": s
    for n, s in zip("qkvo", [(H * K, D)] * 3 + [(D, H * K)], strict=True)
}
CROSS = {name.replace("Self", "EncDec"): shape for name, shape in SELF.items()}
GATED = {"wi_0": (F, D), "wi_1": (F, D), "wo": (D, F)}
PLAIN = {"wi": (F, D), "wo": (D, F)}


def published(gated: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a T5 as Hugging Face publishes them, untied where gated."""
    rng = np.random.default_rng(seed)
    shapes = {"shared.weight": (V, D)}
    for stack, layers in LAYERS.items():
        shapes[f"{stack}.final_layer_norm.weight"] = (D,)
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[first] = (32, H)
        for i in range(layers):
            sublayers = [SELF, *([CROSS] if stack == "decoder" else [])]
            mlp = {f"DenseReluDense.{n}.weight": s for n, s in (GATED if gated else PLAIN).items()}
            for number, names in enumerate([*sublayers, mlp]):
                place = f"{stack}.block.{i}.layer.{number}"
                shapes[f"{place}.layer_norm.weight"] = (D,)
                shapes |= {f"{place}.{name}": shape for name, shape in names.items()}
    if gated:
        shapes["lm_head.weight"] = (V, D)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def config_json(gated: bool, **changes: object) -> dict[str, object]:
    return {
        "model_type": "t5",
        "vocab_size": V,
        "d_model": D,
        "num_heads": H,
        "d_kv": K,
        "d_ff": F,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": not gated,
        **changes,
    }


def model(gated: bool, **changes: object) -> T5Config:
    activations = ("gelu", "linear") if gated else ("relu",)
    sizes = (V, D, H, K, F, 2, 3, activations)
    return T5Config(*sizes, logits_via_embedding=not gated, **changes)  # type: ignore[arg-type]


def write(folder: pathlib.Path, arrays: dict[str, np.ndarray], config: dict[str, object]) -> str:
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def read(name: str, config: T5Config) -> dict[str, np.ndarray]:
    """The arrays as they come out again under Hugging Face's names."""
    return dict(fill.arrays(initial.initial_params(name, abstract_params(config)), "hf"))


def assert_equal(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_every_array_comes_in_bit_for_bit_and_goes_out_again(tmp_path, gated, scan):
    arrays = published(gated)
    name = write(tmp_path, arrays, config_json(gated))
    assert_equal(read(name, model(gated, scan_layers=scan)), arrays)


def test_arrays_land_where_the_layout_says(tmp_path):
    arrays = published(True)
    params = initial.initial_params(
        write(tmp_path, arrays, config_json(True)), abstract_params(model(True))
    )
    np.testing.assert_array_equal(
        params["decoder"]["layers"]["encoder_decoder_attention"]["query"]["kernel"][2],
        arrays["decoder.block.2.layer.1.EncDecAttention.q.weight"].T,
    )
    np.testing.assert_array_equal(
        params["encoder"]["relpos_bias"]["rel_embedding"],
        arrays["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].T,
    )
    np.testing.assert_array_equal(
        params["decoder"]["logits_dense"]["kernel"], arrays["lm_head.weight"].T
    )


@pytest.mark.parametrize("mesh_shape", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_shards_read_on_a_mesh_are_the_whole(tmp_path, mesh_shape):
    arrays = published(True)
    name = write(tmp_path, arrays, config_json(True))
    config = model(True)
    mesh = make_mesh(MeshConfig(*mesh_shape))
    shapes = abstract_params(config)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        param_shardings(logical_axes(config), shapes, mesh),
    )
    params = initial.initial_params(name, abstract)
    assert jax.tree.all(jax.tree.map(lambda p, a: p.sharding == a.sharding, params, abstract))
    assert_equal(dict(fill.arrays(jax.device_get(params), "hf")), arrays)


def test_shards_with_an_index_read_as_one_file(tmp_path):
    arrays = published(False)
    keys = sorted(arrays)
    parts = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for file, names in parts.items():
        save_file({key: arrays[key] for key in names}, tmp_path / file)
    index = {key: file for file, names in parts.items() for key in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps(config_json(False)))
    assert_equal(read(str(tmp_path), model(False)), arrays)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no b\.safetensors\. Put"):
        read(str(tmp_path), model(False))


def test_bfloat16_weights_become_the_float32_of_the_same_value(tmp_path):
    arrays = {key: value.astype("bfloat16") for key, value in published(True).items()}
    name = write(tmp_path, arrays, config_json(True))
    assert_equal(read(name, model(True)), {k: v.astype(np.float32) for k, v in arrays.items()})


def test_names_that_older_files_hold_twice_are_compared_and_left_out(tmp_path):
    arrays = published(False)
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    twice = arrays | {
        "encoder.embed_tokens.weight": arrays["shared.weight"].copy(),
        "lm_head.weight": arrays["shared.weight"].copy(),
        unread: np.zeros((32, H), np.float32),
    }
    assert_equal(read(write(tmp_path, twice, config_json(False)), model(False)), arrays)
    twice["lm_head.weight"][0, 0] += 1
    with pytest.raises(InputError, match=r"lm_head.weight differs from shared.weight.*tie_word"):
        read(write(tmp_path, twice, config_json(False)), model(False))


def test_transformers_5_marks_t5_1_1_by_another_key(tmp_path):
    """It saves `tie_word_embeddings: true` for every T5."""
    config = config_json(True, tie_word_embeddings=True, scale_decoder_outputs=False)
    arrays = published(True)
    assert_equal(read(write(tmp_path, arrays, config), model(True)), arrays)


@pytest.mark.parametrize("model_type", ["t5", "mt5"])
@pytest.mark.parametrize("proj", ["gated-gelu", "relu"])
def test_logits_equal_those_of_a_model_that_transformers_saved(tmp_path, model_type, proj):
    """T5 1.1 and mT5 share one array between input and output there, and do not scale it."""
    torch = pytest.importorskip("torch", reason="runs transformers' own model")
    transformers = pytest.importorskip("transformers", reason="runs transformers' own model")
    classes = {
        "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
        "mt5": (transformers.MT5Config, transformers.MT5ForConditionalGeneration),
    }
    make_config, make_model = classes[model_type]
    sizes = config_json(proj != "relu", feed_forward_proj=proj)
    del sizes["model_type"]
    torch.manual_seed(0)
    theirs = make_model(make_config(**sizes)).eval()
    theirs.save_pretrained(tmp_path)
    reader = hf.HFCheckpoint(str(tmp_path))
    assert reader.fields["logits_via_embedding"] == (model_type == "t5" and proj == "relu")
    ours = dataclasses.replace(T5Config(), **reader.fields)
    reader.check_model(ours)
    params = initial.initial_params(str(tmp_path), abstract_params(ours))
    inputs, targets = np.arange(3, 15).reshape(2, 6), np.arange(20, 30).reshape(2, 5)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(targets)
        ).logits.numpy()
    actual = Transformer(ours).apply(
        {"params": params}, inputs, np.ones_like(inputs), targets, np.ones_like(targets)
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


class TestRefused:
    def test_arrays_that_do_not_fit_are_listed_together(self, tmp_path):
        arrays = published(True)
        del arrays["decoder.final_layer_norm.weight"]
        arrays["encoder.block.1.layer.1.DenseReluDense.wo.weight"] = np.zeros(
            (D, F + 1), np.float32
        )
        arrays["prompt.weight"] = np.zeros(3, np.float32)
        name = write(tmp_path, arrays, config_json(True))
        with pytest.raises(InputError) as error:
            read(name, model(True))
        for problem in (
            "3 arrays do not match the model",
            "prompt.weight (3,) is unknown",
            "decoder.final_layer_norm.weight (16,) is missing",
            "DenseReluDense.wo.weight: got (16, 33), expected (16, 32)",
        ):
            assert problem in str(error.value)

    def test_another_size_than_the_gin_files(self, tmp_path, spiece):
        name = write(tmp_path, published(False), config_json(False))
        with pytest.raises(InputError) as error:
            initial.check(name, model(True), str(spiece))
        for difference in (
            "MLP_ACTIVATIONS=('gelu', 'linear'), but the checkpoint has ('relu',)",
            "TIED_EMBEDDINGS=False, but the checkpoint has True",
        ):
            assert difference in str(error.value)
        assert "EMB_DIM" not in str(error.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "umt5"}, "unsupported model_type: got 'umt5', expected 't5'"),
            (
                {"feed_forward_proj": "gelu"},
                "feed_forward_proj: got 'gelu', expected 'relu' or",
            ),
            (
                {"layer_norm_epsilon": 1e-5},
                "layer_norm_epsilon: got 1e-05, expected 1e-06",
            ),
            ({"d_model": None}, "missing or not an integer: d_model"),
            ({"decoder_start_token_id": 5}, "decoder_start_token_id: got 5, expected 0. Use"),
            ({"pad_token_id": 1}, "unsupported pad_token_id: got 1, expected 0"),
            ({"eos_token_id": [1, 7]}, r"eos_token_id: got \[1, 7\], expected 1 or \[1\]"),
            ({"dense_act_fn": "relu"}, "dense_act_fn: got 'relu', expected 'gelu_new'"),
            ({"is_gated_act": False}, "is_gated_act: got False, expected True"),
            ({"is_decoder": True}, "is_decoder: got True, expected False"),
            (
                {"quantization_config": {"bits": 8}},
                "quantization_config: got .*, expected no value",
            ),
        ],
    )
    def test_a_model_that_is_no_t5(self, tmp_path, change, message):
        name = write(tmp_path, published(True), config_json(True, **change))
        with pytest.raises(InputError, match=message):
            hf.HFCheckpoint(name)

    def test_another_start_token_in_the_generation_config(self, tmp_path):
        name = write(tmp_path, published(True), config_json(True))
        (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": 5}')
        with pytest.raises(InputError, match=r"generation_config\.json: .*id: got 5, expected 0"):
            hf.HFCheckpoint(name)

    @pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
    def test_generation_settings_that_are_not_used_are_named(self, tmp_path, file, caplog):
        greedy = {"num_beams": 1, "do_sample": False, "forced_bos_token_id": None, "max_length": 9}
        name = write(tmp_path, published(True), config_json(True, **greedy))
        hf.HFCheckpoint(name)
        assert not caplog.records
        path = tmp_path / file
        stored = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(stored | {"num_beams": 4, "suppress_tokens": [7]}))
        hf.HFCheckpoint(name)
        assert caplog.messages == [
            f"{name}: not used: num_beams=4, suppress_tokens=[7]; here decoding is greedy, so "
            "texts may differ from transformers'"
        ]

    def test_optional_files_are_said_to_be_unchecked_where_the_hub_is_unreachable(
        self, tmp_path, monkeypatch, caplog
    ):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        for _ in range(2):
            assert hub.optional("INITIAL_CHECKPOINT", "own/t5", "added_tokens.json") is None
        (message,) = caplog.messages
        assert message.startswith("INITIAL_CHECKPOINT='hf:own/t5': the hub cannot be reached")
        # The cache knows that the repository has no such file.
        absent = tmp_path / "models--own--other"
        (absent / "refs").mkdir(parents=True)
        (absent / "refs/main").write_text("abc")
        (absent / ".no_exist/abc").mkdir(parents=True)
        (absent / ".no_exist/abc/added_tokens.json").touch()
        caplog.clear()
        assert hub.optional("INITIAL_CHECKPOINT", "own/other", "added_tokens.json") is None
        assert not caplog.records

    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    def test_weights_that_are_not_finite(self, tmp_path, value):
        arrays = published(True)
        key = "decoder.block.2.layer.2.DenseReluDense.wo.weight"
        arrays[key][3, 5] = value
        name = write(tmp_path, arrays, config_json(True))
        with pytest.raises(InputError, match=rf"{key} holds NaN or infinite values"):
            read(name, model(True))

    def test_quantized_weights(self, tmp_path):
        arrays = published(True)
        arrays["shared.weight"] = arrays["shared.weight"].astype(np.int8)
        name = write(tmp_path, arrays, config_json(True))
        with pytest.raises(InputError, match=r"type of shared\.weight: got I8, expected F32"):
            hf.HFCheckpoint(name)

    def test_a_file_cut_short(self, tmp_path):
        name = write(tmp_path, published(True), config_json(True))
        file = tmp_path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(InputError, match=r"model\.safetensors: cannot read these weights"):
            hf.HFCheckpoint(name)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ({"weight_map": ["a"]}, "no weight_map"),
            ({"weight_map": {"a": 3}}, "a is said to be in 3, expected a file's name"),
            ({"weight_map": {"a": "../o/model.safetensors"}}, "in '../o/model.safetensors', exp"),
            ({"weight_map": {"a": "/o/model.safetensors"}}, "in '/o/model.safetensors', expected"),
            ({"weight_map": {"a": ""}}, "a is said to be in '', expected a file's name"),
        ],
    )
    def test_a_malformed_index(self, tmp_path, index, message):
        name = write(tmp_path, published(True), config_json(True))
        (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=rf"index\.json: cannot read .*{re.escape(message)}"):
            hf.HFCheckpoint(name)

    @pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "U16", "BOOL"])
    def test_a_type_that_numpy_lacks(self, tmp_path, kind):
        name = write(tmp_path, published(True), config_json(True))
        size = {"U16": 2}.get(kind, 1)
        header = {"shared.weight": {"dtype": kind, "shape": [4], "data_offsets": [0, 4 * size]}}
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text + bytes(4 * size)
        )
        with pytest.raises(InputError, match=rf"type of shared\.weight: got {kind}, expected F32"):
            hf.HFCheckpoint(name)

    @pytest.mark.parametrize(
        "data", [b"", b"\0" * 64, b"{}", b"\xff" * 9, b"version https://git-lfs"]
    )
    def test_a_file_that_is_no_safetensors(self, tmp_path, data):
        name = write(tmp_path, published(True), config_json(True))
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(InputError, match=r"model\.safetensors: cannot read these weights: "):
            hf.HFCheckpoint(name)

    def test_a_folder_without_weights(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(config_json(True)))
        with pytest.raises(InputError, match=r" has no model\.safetensors or .*\. Put config"):
            hf.HFCheckpoint(str(tmp_path))

    def test_a_hub_name_without_a_network_says_what_to_place_where(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(InputError) as error:
            hf.HFCheckpoint("hf:google/t5-v1_1-base")
        assert str(error.value) == (
            f"INITIAL_CHECKPOINT='hf:google/t5-v1_1-base': config.json is not in {tmp_path} and "
            "cannot be downloaded (HF_HUB_OFFLINE is set). Run `hf download google/t5-v1_1-base "
            "--local-dir FOLDER` where there is a network, copy FOLDER here and set "
            "INITIAL_CHECKPOINT and VOCABULARY to it."
        )


class TestTokenizer:
    @pytest.fixture
    def name(self, tmp_path: pathlib.Path) -> str:
        return write(tmp_path, published(True), config_json(True))

    def test_the_same_sentencepiece_model_is_accepted(self, name, tmp_path, spiece):
        shutil.copy(spiece, tmp_path / "spiece.model")
        hf.HFCheckpoint(name).check_vocabulary(load_vocabulary(str(spiece)), str(spiece))

    def test_the_pieces_of_a_fast_tokenizer_are_compared(self, name, tmp_path, spiece):
        vocabulary = load_vocabulary(str(spiece))
        pieces = vocabulary.pieces()
        rows = [[piece, 0.0] for piece in [*pieces, "<extra_id_0>"]]
        document = {"model": {"type": "Unigram", "vocab": rows}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        hf.HFCheckpoint(name).check_vocabulary(vocabulary, str(spiece))
        rows[777][0] = "other"
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match=r"and 32,001 pieces, which differ from id 777 on"):
            hf.HFCheckpoint(name).check_vocabulary(vocabulary, str(spiece))

    @pytest.mark.parametrize(
        ("file", "document"),
        [
            ("added_tokens.json", {"{": 32100, "<extra_id_0>": 32099}),
            ("tokenizer_config.json", {"added_tokens_decoder": {"32100": {"content": "{"}}}),
            ("tokenizer.json", {"added_tokens": [{"id": 32100, "content": "{"}]}),
            ("special_tokens_map.json", {"additional_special_tokens": ["<extra_id_1>", "{"]}),
            ("special_tokens_map.json", {"eos_token": {"content": "{"}, "pad_token": "<pad>"}),
        ],
    )
    def test_added_tokens_are_refused_by_name(self, name, tmp_path, spiece, file, document):
        shutil.copy(spiece, tmp_path / "spiece.model")
        (tmp_path / file).write_text(json.dumps(document))
        with pytest.raises(InputError, match=r"has 1 added tokens, .*: '\{'\. Use a tokenizer"):
            hf.HFCheckpoint(name).check_vocabulary(load_vocabulary(str(spiece)), str(spiece))
        # As the vocabulary of a run, too; the file of its model alone is what it is.
        with pytest.raises(InputError, match=r"VOCABULARY='.*has 1 added tokens, .*: '\{'"):
            load_vocabulary(name)
        load_vocabulary(str(tmp_path / "spiece.model"))

    def test_byt5s_tokenizer_is_the_vocabulary_of_bytes(self, name, tmp_path):
        transformers = pytest.importorskip("transformers", reason="runs ByT5's own tokenizer")
        tokenizer = transformers.ByT5Tokenizer()
        tokenizer.save_pretrained(tmp_path)
        ours = load_vocabulary("bytes")
        hf.HFCheckpoint(name).check_vocabulary(ours, "bytes")
        for text in ("plain", "Größe 10³\n{ < \t}", "是 否", "\N{PILE OF POO}"):
            assert tokenizer(text)["input_ids"] == [*ours.encode(text), 1]
        with pytest.raises(InputError, match=r"which reads bytes\. Set VOCABULARY='bytes'\."):
            hf.HFCheckpoint(name).check_vocabulary(load_vocabulary("demo"), "demo")

    def test_a_folder_with_tokenizer_json_alone_says_where_the_model_comes_from(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(InputError, match=r"has tokenizer\.json but no spiece\.model.*Copy it"):
            load_vocabulary(str(tmp_path))

    @pytest.mark.parametrize("other", ["demo", "bytes"])
    def test_another_vocabulary_is_refused(self, name, tmp_path, spiece, other):
        shutil.copy(spiece, tmp_path / "spiece.model")
        with pytest.raises(InputError, match=rf"VOCABULARY='{other}' is not the tokenizer"):
            hf.HFCheckpoint(name).check_vocabulary(load_vocabulary(other), other)

    def test_a_checkpoint_without_a_tokenizer_is_refused(self, name, spiece):
        with pytest.raises(InputError, match=r"has no spiece\.model or tokenizer\.json\. Put"):
            hf.HFCheckpoint(name).check_vocabulary(load_vocabulary(str(spiece)), "x")


class TestPytorchFile:
    def test_a_bin_file_reads_like_safetensors(self, tmp_path):
        torch = pytest.importorskip("torch", reason="reads PyTorch's own files")
        arrays = published(False)
        tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
        (tmp_path / "config.json").write_text(json.dumps(config_json(False)))
        for zipped in (True, False):  # files from before PyTorch 1.6 are not zipped
            path = tmp_path / "pytorch_model.bin"
            torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
            assert_equal(read(str(tmp_path), model(False)), arrays)

    def test_a_file_that_would_run_code_is_refused(self, tmp_path):
        torch = pytest.importorskip("torch", reason="reads PyTorch's own files")
        marker = tmp_path / "ran"

        class Hostile:
            def __reduce__(self):
                return pathlib.Path.touch, (marker,)

        torch.save({"shared.weight": Hostile()}, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(config_json(False)))
        with pytest.raises(InputError, match=r"pytorch_model\.bin: cannot read these weights"):
            hf.HFCheckpoint(str(tmp_path))
        assert not marker.exists()
