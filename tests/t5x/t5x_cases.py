"""The demo's network twice, ours and T5X's own, and demo batches for both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from t5x import optimizers
from t5x.examples.t5 import network

import tasks.demo
from stepdistill_jax.data.preprocessors import seqio_vocabulary
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import init_params
from stepdistill_jax.t5x.feature_converter import StepByStepFeatureConverter
from stepdistill_jax.t5x.features import PREFIXES, stream_features
from stepdistill_jax.t5x.model import StepByStepModel

TASK = tasks.demo.NAMES[1]
PAIR = {"label_inputs": 15, "label_targets": 2, "rationale_inputs": 15, "rationale_targets": 18}
# Room for three pairs, with some left over.
ROW = {"label_inputs": 50, "label_targets": 7, "rationale_inputs": 50, "rationale_targets": 70}
SIZES = {
    "vocab_size": 640,
    "emb_dim": 32,
    "num_heads": 4,
    "head_dim": 8,
    "mlp_dim": 48,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
}
VARIANTS = {
    "1.0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
    "1.1": {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False},
}


@pytest.fixture(autouse=True)
def t5x_s_jax():
    """For modules that import it: T5X's own code relies on rank promotion, forbidden elsewhere.

    Compilation is most of the time here, and what is shown does not depend on how fast code is.
    """
    with jax.numpy_rank_promotion("allow"):
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


def our_config(variant="1.1", dropout_rate=0.0):
    sizes = SIZES | VARIANTS[variant]
    return T5Config(**sizes, dropout_rate=dropout_rate, scan_layers=False)


def t5x_model(variant="1.1", dropout_rate=0.0, **objective):
    config = network.T5Config(**SIZES, **VARIANTS[variant], dropout_rate=dropout_rate)
    vocabulary = seqio_vocabulary("demo")
    return StepByStepModel(
        module=network.Transformer(config),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=optimizers.adamw(1e-3),
        **objective,
    )


@functools.cache
def parameters(variant="1.1"):
    """Ours, with sharper attention than an untrained model's, so that masks matter."""
    params = init_params(our_config(variant), jax.random.key(3))
    for stack in ("encoder", "decoder"):
        for name, layer in params[stack].items():
            for attention in ("attention", "self_attention", "encoder_decoder_attention"):
                if name.startswith("layers_") and attention in layer:
                    layer[attention]["query"]["kernel"] *= 4.0
    return params


def convert(pack, lengths, rows):
    """A batch of the demo through SeqIO and our converter, as T5X's DatasetConfig makes it."""
    return dict(_convert(pack, tuple(lengths.items()), rows))


@functools.cache
def _convert(pack, lengths, rows):
    lengths = dict(lengths)
    dataset = seqio.get_mixture_or_task(TASK).get_dataset(lengths, split="train", shuffle=False)
    dataset = StepByStepFeatureConverter(pack=pack)(dataset.take(4 * rows), lengths)
    (batch,) = dataset.batch(rows).take(1).as_numpy_iterator()
    return batch


def our_batch(batch):
    """The same batch under the names of `spec.batch_keys`."""
    ours = {}
    for stream in PREFIXES:
        part = stream_features(batch, stream)
        inputs, targets = part["encoder_input_tokens"], part["decoder_target_tokens"]
        ours |= {
            f"{stream}_inputs": inputs,
            f"{stream}_inputs_segment_ids": part.get(
                "encoder_segment_ids", (inputs > 0).astype(np.int32)
            ),
            f"{stream}_targets": targets,
            f"{stream}_targets_segment_ids": part.get(
                "decoder_segment_ids", (targets > 0).astype(np.int32)
            ),
            f"{stream}_weights": part["decoder_loss_weights"],
        }
    return jax.tree.map(jnp.asarray, ours)


def without_some_rationales(batch):
    """Every third pair's rationale weighs nothing, and a fifth's label counts double."""
    batch = dict(batch)
    for stream, every, weight in (("rationale", 3, 0.0), ("label", 5, 2.0)):
        name = PREFIXES[stream] + "decoder_loss_weights"
        segments = batch.get(PREFIXES[stream] + "decoder_segment_ids", np.ones_like(batch[name]))
        chosen = (np.arange(len(segments))[:, None] + segments) % every == 0
        batch[name] = np.where(chosen, batch[name] * weight, batch[name]).astype(np.float32)
    return batch
