import ast
import pathlib

import jax
import pytest

from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.spec import InputError

MODELS = pathlib.Path(__file__).parents[2] / "gin" / "models"
FIELDS = {"TIED_EMBEDDINGS": "logits_via_embedding"}

SIZES = dict(
    vocab_size=11,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


def read_model(name):
    """The config that a gin file of literal macros gives."""
    assignments = ast.parse((MODELS / f"{name}.gin").read_text()).body
    macros = {a.targets[0].id: ast.literal_eval(a.value) for a in assignments}
    return T5Config(**{FIELDS.get(name, name.lower()): value for name, value in macros.items()})


# In millions, as published (Raffel et al. 2020; T5 1.1's release notes), or counted by hand.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("t5_1_0_small", 60.5),
        ("t5_1_0_base", 222.9),
        ("t5_1_0_large", 737.7),
        ("t5_1_0_3b", 2851.6),
        ("t5_1_0_11b", 11307.3),
        ("t5_1_1_small", 77.0),
        ("t5_1_1_base", 247.6),
        ("t5_1_1_large", 783.2),
        ("t5_1_1_xl", 2849.8),
        ("t5_1_1_xxl", 11135.3),
    ],
)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_parameter_count_of_every_size(name, millions, scan_layers):
    import dataclasses

    config = dataclasses.replace(read_model(name), scan_layers=scan_layers)
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert count / 1e6 == pytest.approx(millions, abs=0.06)
