"""A tiny model and a batch of unequal rows, shared by the tests and goldens of the train step."""

import functools

import jax
import numpy as np
import optax
import pytest

from stepdistill_jax.data.config import DataConfig, TokenConfig
from stepdistill_jax.data.packing import PipelineConfig
from stepdistill_jax.data.views import ViewConfig
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.optim import OptimizerConfig
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.parallel.place import place_batch
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.eval_config import EvalConfig
from stepdistill_jax.spec import EOS_ID
from stepdistill_jax.train.state import create_state, state_shardings
from stepdistill_jax.train.step import make_train_step

L, P, R = 12, 4, 8

MODEL = T5Config(
    vocab_size=48,
    emb_dim=16,
    num_heads=4,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)
ADAMW = OptimizerConfig(learning_rate=1e-2)
# Leaves the gradient in the optimizer's state, to be read after the step.
KEEP_GRADIENT = optax.trace(decay=0.0)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """For modules that import it: what they show does not depend on how fast the code is."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def tokens(rng, length):
    """`length` token ids, the last of them EOS."""
    return np.append(rng.integers(3, MODEL.vocab_size, length - 1), EOS_ID).astype(np.int32)


def pairs(count, seed=0):
    """Token lists of unequal lengths; every third pair has no rationale, some count double."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        inputs = tokens(rng, rng.integers(3, 7))
        result.append(
            {
                "label_inputs": inputs,
                "rationale_inputs": np.append(7, inputs[1:]).astype(np.int32),
                "label_targets": tokens(rng, rng.integers(1, 3)),
                "rationale_targets": tokens(rng, rng.integers(1, 5)),
                "label_weight": 2.0 if i % 4 == 1 else 1.0,
                "rationale_weight": 0.0 if i % 3 == 2 else 1.0,
            }
        )
    return result


# Slots of a row of each stream: inputs and targets.
SLOTS = {"label": (L, P), "rationale": (L, R)}


def rows(groups, slots=SLOTS):
    """Packs each group of pairs into one row: a train batch as `spec.batch_keys` has it."""
    batch = {}
    for stream, widths in slots.items():
        for feature, width in zip(("inputs", "targets"), widths, strict=True):
            values = np.zeros((len(groups), width), np.int32)
            segments = np.zeros((len(groups), width), np.int32)
            weights = np.zeros((len(groups), width), np.float32)
            for row, group in enumerate(groups):
                start = 0
                for segment, pair in enumerate(group, start=1):
                    ids = pair[f"{stream}_{feature}"]
                    here = slice(start, start + len(ids))
                    values[row, here] = ids
                    segments[row, here] = segment
                    if feature == "targets":
                        weights[row, here] = pair[f"{stream}_weight"]
                    start += len(ids)
            batch[f"{stream}_{feature}"] = values
            batch[f"{stream}_{feature}_segment_ids"] = segments
            if feature == "targets":
                batch[f"{stream}_weights"] = weights
    return batch


def unpacked(count, seed=0):
    return rows([[pair] for pair in pairs(count, seed)])


def packed(count, seed=0):
    """Two pairs a row, the last row with one where `count` is odd."""
    source = pairs(count, seed)
    return rows([source[i : i + 2] for i in range(0, count, 2)])


def with_rows(batch, count):
    """The batch with empty rows up to `count`: one shape, one compilation."""
    return {name: np.pad(array, ((0, count - len(array)), (0, 0))) for name, array in batch.items()}


def mesh_of(replica=1, fsdp=1, tensor=1):
    devices = jax.devices()[: replica * fsdp * tensor]
    return make_mesh(MeshConfig(replica, fsdp, tensor), devices)


@functools.cache
def initial_params(model):
    """Fresh parameters on the host."""
    return jax.device_get(create_state(model, optax.identity(), mesh_of(), seed=0).params)


def fresh_state(model, rule, mesh):
    """A state on `mesh` that starts from `initial_params`."""
    shardings = state_shardings(model, rule, mesh)
    params = jax.device_put(initial_params(model), shardings.params)
    return create_state(model, rule, mesh, seed=0, params=params)


def run_config(**settings):
    """A run of `MODEL`; settings are fields of `RunConfig`."""
    defaults = {
        "model_dir": "unused",
        "data": DataConfig("demo"),
        "tokens": TokenConfig(),
        "pipeline": PipelineConfig(),
        "views": ViewConfig(),
        "model": MODEL,
        "objective": ObjectiveConfig(),
        "optimizer": ADAMW,
        "mesh": MeshConfig(),
        "eval": EvalConfig(),
        "train_steps": 10,
    }
    return RunConfig(**{**defaults, **settings})


# Compiled once a configuration.
compiled_step = functools.cache(make_train_step)


def run_step(batch, *, mesh=None, rule=KEEP_GRADIENT, steps=1, **settings):
    """Some steps from a fresh state: (state, metrics of the last step) on the host."""
    mesh = mesh or mesh_of()
    config = run_config(**settings)
    step = compiled_step(config, rule, mesh)
    state = fresh_state(config.model, rule, mesh)
    placed = place_batch(batch, mesh, config.microbatches)
    for _ in range(steps):
        state, metrics = step(state, placed)
    return jax.device_get(state), {k: float(v) for k, v in jax.device_get(metrics).items()}


def gradient_of(state):
    """The gradient of the last step of `KEEP_GRADIENT`."""
    return state.opt_state.trace


def assert_trees_close(ours, expected, tolerance):
    """Every leaf agrees, relative to the largest magnitude of its own tensor."""
    for (path, x), (_, y) in zip(
        jax.tree_util.tree_leaves_with_path(ours),
        jax.tree_util.tree_leaves_with_path(expected),
        strict=True,
    ):
        np.testing.assert_allclose(
            x, y, rtol=0, atol=tolerance * max(1.0, np.abs(y).max()), err_msg=str(path)
        )
