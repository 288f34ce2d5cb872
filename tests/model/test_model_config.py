import ast
import dataclasses
import pathlib

import jax
import pytest

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.run import load
from stepdistill_jax.spec import InputError

MODELS = pathlib.Path(__file__).parents[2] / "gin" / "models"
FIELDS = {"TIED_EMBEDDINGS": "logits_via_embedding"}


def read_model(name):
    """The config that a gin file of literal macros gives."""
    assignments = ast.parse((MODELS / f"{name}.gin").read_text()).body
    macros = {a.targets[0].id: ast.literal_eval(a.value) for a in assignments}
    return T5Config(**{FIELDS.get(macro, macro.lower()): v for macro, v in macros.items()})


# Millions of parameters. The published figures, rounded: 60 220 770 2.8B 11B for 1.0 (Raffel et
# al. 2020, section 3.7), 77 250 780 3B 11B for 1.1, 300 582 1.23B 3.74B 12.9B for ByT5 (Xue et
# al. 2022, Table 1).
MILLIONS = {
    "t5_1_0_small": 60.5,
    "t5_1_0_base": 222.9,
    "t5_1_0_large": 737.7,
    "t5_1_0_3b": 2851.6,
    "t5_1_0_11b": 11307.3,
    "t5_1_1_small": 77.0,
    "t5_1_1_base": 247.6,
    "t5_1_1_large": 783.2,
    "t5_1_1_xl": 2849.8,
    "t5_1_1_xxl": 11135.3,
    "byt5_small": 299.6,
    "byt5_base": 581.6,
    "byt5_large": 1228.2,
    "byt5_xl": 3737.8,
    "byt5_xxl": 12906.9,
}
# mT5 is T5 1.1 with another vocabulary: 300 580 1.2B 3.7B 13B (Xue et al. 2021, Table 1).
MT5_MILLIONS = {"small": 300.2, "base": 582.4, "large": 1229.6, "xl": 3742.6, "xxl": 12921.1}


@pytest.mark.parametrize(
    ("name", "scan_layers"),
    # Unrolled, a large model takes seconds to trace.
    [*((name, True) for name in MILLIONS), ("t5_1_0_base", False), ("t5_1_1_base", False)],
)
def test_parameter_count_of_every_published_size(name, scan_layers):
    config = dataclasses.replace(read_model(name), scan_layers=scan_layers)
    assert count_parameters(config) / 1e6 == pytest.approx(MILLIONS[name], abs=0.06)


def count_parameters(config):
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


@pytest.mark.parametrize("size", MT5_MILLIONS)
def test_parameter_count_of_mt5(size):
    run = load.parse(["cqa.gin", f"models/pretrained/mt5_{size}.gin"], ["MODEL_DIR=runs/a"])
    assert run.initial_checkpoint == run.tokens.vocabulary == f"hf:google/mt5-{size}"
    millions = count_parameters(dataclasses.replace(run.model, scan_layers=True)) / 1e6
    assert millions == pytest.approx(MT5_MILLIONS[size], abs=0.06)


def test_every_model_file_is_one_of_the_sizes_or_a_small_trial_model():
    names = {path.stem for path in MODELS.glob("*.gin")}
    assert names == {*MILLIONS, "tiny", "demo"}
    for name in ("tiny", "demo"):
        assert read_model(name).emb_dim == 64


def test_variant_of_every_published_size():
    for name in MILLIONS:
        config = read_model(name)
        first = name.startswith("t5_1_0")
        assert config.logits_via_embedding is first
        assert config.mlp_activations == (("relu",) if first else ("gelu", "linear"))
        assert config.vocab_size == (384 if name.startswith("byt5") else 32128)


SIZES = {
    "vocab_size": 11,
    "emb_dim": 8,
    "num_heads": 2,
    "head_dim": 4,
    "mlp_dim": 16,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_heads": 0}, r"NUM_HEADS: got 0, expected a number in \[1, 2147483647\]"),
        ({"dropout_rate": 1.0}, r"DROPOUT_RATE: got 1.0, expected a number in \[0, 1\)"),
        ({"dtype": "float16"}, r"DTYPE: got 'float16', expected one of 'float32', 'bfloat16'"),
        ({"remat": "some"}, r"REMAT: got 'some', expected one of 'none', 'dots', 'full'"),
        ({"mlp_activations": ("gleu", "linear")}, r"MLP_ACTIVATIONS: got \('gleu', 'linear'\)"),
        ({"mlp_activations": ()}, r"MLP_ACTIVATIONS: got \(\), expected one or two activations"),
        (
            {"mlp_activations": "relu"},
            r"MLP_ACTIVATIONS: got \('r', 'e', 'l', 'u'\), .* 'relu'",
        ),
        ({"relpos_buckets": 6}, r"RELPOS_BUCKETS: got 6, expected a positive multiple of 4"),
        ({"relpos_max_distance": 16}, r"RELPOS_MAX_DISTANCE: got 16, expected more than half"),
        ({"embedding_init_scale": 0.0}, r"EMBEDDING_INIT_SCALE: got 0.0, expected more than 0"),
    ],
)
def test_illegal_configurations_cannot_be_built(change, match):
    with pytest.raises(InputError, match=match):
        T5Config(**{**SIZES, **change})


def test_a_list_of_activations_is_hashable_all_the_same():
    config = T5Config(**SIZES, mlp_activations=["gelu", "linear"])
    assert hash(config) == hash(T5Config(**SIZES, mlp_activations=("gelu", "linear")))
