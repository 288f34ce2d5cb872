"""T5X checkpoints: both forms read, the native one written, and what is refused."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import t5x_writer
from flax import serialization
from same_trees import assert_same

from stepdistill_jax.checkpoint import fill, initial, names, sizes, t5x_native, zarr_arrays
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.network import abstract_params, logical_axes
from stepdistill_jax.model.stack import stack_layers
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.parallel.rules import param_shardings
from stepdistill_jax.spec import InputError

WRITERS = {"native": t5x_writer.native, "orbax": t5x_writer.orbax}


def model(gated=True, vocab_size=t5x_writer.V, **changes):
    sizes = (vocab_size, t5x_writer.D, t5x_writer.H, t5x_writer.K, t5x_writer.F)
    variant = {"mlp_activations": ("gelu", "linear") if gated else ("relu",)}
    variant["logits_via_embedding"] = not gated
    return T5Config(*sizes, *t5x_writer.LAYERS.values(), **(variant | changes))


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("gated", [True, False], ids=["v1.1", "v1.0"])
@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_every_form_is_read(tmp_path, writer, scanned, gated, scan_layers):
    params = t5x_writer.minimal(gated)
    path = writer(tmp_path, t5x_writer.scalable(params) if scanned else params)
    checkpoint = t5x_native.T5XCheckpoint(path)
    assert t5x_native.is_checkpoint(path)
    assert (checkpoint.form, checkpoint.step) == ("t5x_scanned" if scanned else "t5x", 7)
    config = model(gated, scan_layers=scan_layers)
    assert sizes.infer(checkpoint.shapes, path, scan_layers) == config
    expected = t5x_writer.nested(params)
    actual = fill.fill(checkpoint, abstract_params(config))
    assert_same(actual, stack_layers(expected) if scan_layers else expected)


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_a_device_reads_its_own_slices(tmp_path, monkeypatch, scanned):
    params = t5x_writer.minimal(True)
    path = t5x_writer.native(tmp_path, t5x_writer.scalable(params) if scanned else params)
    read_parts = {}
    read = zarr_arrays.read

    def noted(array, index, key, where):
        part = read(array, index, key, where)
        read_parts.setdefault(key, set()).add(part.size)
        return part

    monkeypatch.setattr(zarr_arrays, "read", noted)
    shapes = abstract_params(model())
    shardings = param_shardings(logical_axes(model()), shapes, make_mesh(MeshConfig(tensor=4)))
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    actual = initial.initial_params(path, abstract)
    assert_same(actual, stack_layers(t5x_writer.nested(params)))
    embedding = t5x_writer.V * t5x_writer.D
    assert read_parts["token_embedder/embedding"] == {embedding // 8}
    # Cut in two by width, in four by heads; all layers of a scanned array at once.
    layers = {"t5x": 1, "t5x_scanned": t5x_writer.LAYERS["encoder"]}
    kernel = t5x_writer.D * t5x_writer.H * t5x_writer.K // 8
    for name in ("query", "out"):
        key, form = (
            (f"encoder/encoder/attention/{name}/kernel", "t5x_scanned")
            if scanned
            else (f"encoder/layers_1/attention/{name}/kernel", "t5x")
        )
        assert read_parts[key] == {kernel * layers[form]}


@pytest.mark.parametrize("driver", ["gfile", "gcs"])
def test_a_checkpoint_is_read_where_it_lies_now(tmp_path, driver):
    params = t5x_writer.minimal(True)
    written = pathlib.Path(t5x_writer.native(tmp_path / "a", params, driver=driver))
    written.rename(tmp_path / "elsewhere")
    checkpoint = t5x_native.T5XCheckpoint(tmp_path / "elsewhere")
    key = "token_embedder/embedding"
    np.testing.assert_array_equal(
        checkpoint.read(key, (slice(3, 9), slice(None))), params[key][3:9]
    )
    assert t5x_native.T5XCheckpoint(tmp_path / "elsewhere" / "checkpoint").step == 7


def test_bfloat16_becomes_the_models_float32(tmp_path):
    params = {k: v.astype(ml_dtypes.bfloat16) for k, v in t5x_writer.minimal(True).items()}
    checkpoint = t5x_native.T5XCheckpoint(t5x_writer.native(tmp_path, params))
    actual = fill.fill(checkpoint, abstract_params(model()))
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {np.dtype(np.float32)}
    wide = {k: v.astype(np.float32) for k, v in params.items()}
    assert_same(actual, stack_layers(t5x_writer.nested(wide)))


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("gated", [True, False], ids=["v1.1", "v1.0"])
@pytest.mark.parametrize("form", ["t5x", "t5x_scanned"])
def test_ours_to_t5x_and_back_is_the_same_bit_for_bit(tmp_path, form, gated, scan_layers):
    ours = t5x_writer.nested(t5x_writer.minimal(gated))
    ours = stack_layers(ours) if scan_layers else ours
    t5x_native.write(tmp_path / "checkpoint_30", 30, fill.arrays(ours, form), t5x_writer.H)
    checkpoint = t5x_native.T5XCheckpoint(tmp_path)
    assert (checkpoint.form, checkpoint.step) == (form, 30)
    abstract = abstract_params(model(gated, scan_layers=scan_layers))
    assert_same(fill.fill(checkpoint, abstract), ours)


def test_what_is_written_has_t5xs_names_and_layouts(tmp_path):
    params = t5x_writer.minimal(True)
    ours = stack_layers(t5x_writer.nested(params))
    for form, expected in (("t5x", params), ("t5x_scanned", t5x_writer.scalable(params))):
        folder = tmp_path / form
        t5x_native.write(folder, 30, fill.arrays(ours, form), t5x_writer.H)
        index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
        leaves = names.flat(index["optimizer"]["target"])
        written = {name.removesuffix("/dtype") for name in leaves if name.endswith("/dtype")}
        assert written == expected.keys()
        for name, value in expected.items():
            metadata = json.loads((folder / f"target.{name.replace('/', '.')}/.zarray").read_text())
            assert metadata["shape"] == list(value.shape)


def test_chunks_of_large_arrays_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_arrays, "_CHUNK_BYTES", 1000)
    array = np.arange(35 * 41, dtype=np.float32).reshape(35, 41)
    zarr_arrays.write(tmp_path, "a", array)
    files = [path for path in (tmp_path / "a").iterdir() if path.name != ".zarray"]
    assert len(files) > 4
    stored = zarr_arrays.open_all({"a": zarr_arrays.stored(tmp_path, "a")}, "here")["a"]
    np.testing.assert_array_equal(zarr_arrays.read(stored, (...,), "a", "here"), array)


def test_several_steps_must_be_told_apart(tmp_path):
    params = t5x_writer.minimal(True)
    for step in (20, 100):
        t5x_writer.native(tmp_path, params, step)
    assert t5x_native.is_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"steps 20, 100. Name one, as .*checkpoint_100"):
        t5x_native.T5XCheckpoint(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint_20")
    (tmp_path / "checkpoint_100").rename(tmp_path / "checkpoint_00100")
    assert t5x_native.T5XCheckpoint(tmp_path).step == 100


def test_other_folders_are_no_checkpoints(tmp_path):
    (tmp_path / "500" / "state").mkdir(parents=True)
    (tmp_path / "500" / "state" / "_METADATA").write_text("{}")
    for folder in (tmp_path, tmp_path / "500", tmp_path / "missing"):
        assert not t5x_native.is_checkpoint(folder)
    with pytest.raises(InputError, match="no T5X checkpoint: expected"):
        t5x_native.T5XCheckpoint(tmp_path)


def test_an_array_that_is_lost_is_named(tmp_path):
    folder = pathlib.Path(t5x_writer.native(tmp_path, t5x_writer.minimal(True)))
    lost = ["token_embedder.embedding", "decoder.logits_dense.kernel"]
    for name in lost:
        shutil.rmtree(folder / f"target.{name}")
    with pytest.raises(InputError, match=r"cannot open 2 arrays: .*NOT_FOUND") as caught:
        t5x_native.T5XCheckpoint(folder)
    assert all(name.replace(".", "/") in str(caught.value) for name in lost)


def test_a_lost_chunk_does_not_read_as_zeros(tmp_path):
    folder = pathlib.Path(t5x_writer.native(tmp_path, t5x_writer.minimal(True)))
    (folder / "target.token_embedder.embedding" / "1.0").unlink()
    checkpoint = t5x_native.T5XCheckpoint(folder)
    with pytest.raises(InputError, match=r"cannot read token_embedder/embedding: .*missing"):
        fill.fill(checkpoint, abstract_params(model()))


def test_a_damaged_chunk_is_named(tmp_path):
    folder = pathlib.Path(t5x_writer.native(tmp_path, t5x_writer.minimal(True)))
    chunk = folder / "target.token_embedder.embedding" / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    checkpoint = t5x_native.T5XCheckpoint(folder)
    with pytest.raises(InputError, match=r"cannot read token_embedder/embedding"):
        fill.fill(checkpoint, abstract_params(model()))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_an_index_that_ends_early_is_told(tmp_path, part):
    index = pathlib.Path(t5x_writer.native(tmp_path, t5x_writer.minimal(True))) / "checkpoint"
    index.write_bytes(index.read_bytes()[: int(part * index.stat().st_size)])
    with pytest.raises(InputError, match=r"checkpoint: truncated or damaged index of a T5X"):
        t5x_native.T5XCheckpoint(tmp_path)


def test_a_damaged_orbax_index_is_told(tmp_path):
    index = pathlib.Path(t5x_writer.orbax(tmp_path, t5x_writer.minimal(True))) / "state/_METADATA"
    index.write_text(index.read_text()[:-30])
    with pytest.raises(InputError, match="damaged index of an Orbax checkpoint"):
        t5x_native.T5XCheckpoint(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    index = pathlib.Path(t5x_writer.native(tmp_path, t5x_writer.minimal(True))) / "checkpoint"
    contents = serialization.msgpack_restore(index.read_bytes())
    embedding = contents["optimizer"]["target"]["token_embedder"]["embedding"]
    embedding["kvstore"]["path"] = "../other/"
    index.write_bytes(serialization.msgpack_serialize(contents))
    with pytest.raises(InputError, match="expected a path inside the folder"):
        t5x_native.T5XCheckpoint(tmp_path)


def test_a_shape_other_than_the_indexs_is_told(tmp_path):
    folder = pathlib.Path(t5x_writer.native(tmp_path, t5x_writer.minimal(True)))
    name = "target.decoder.logits_dense.kernel"
    shutil.rmtree(folder / name)
    t5x_writer.zarr(folder / name, np.zeros((4, 5), np.float32), [4, 5])
    with pytest.raises(InputError, match=r"logits_dense/kernel has shape \(4, 5\), the index has"):
        t5x_native.T5XCheckpoint(folder)


def test_another_models_checkpoint_is_refused_with_all_that_differs(tmp_path):
    path = t5x_writer.native(tmp_path, t5x_writer.minimal(True))
    with pytest.raises(InputError, match=r"arrays do not match the model") as caught:
        initial.initial_params(path, abstract_params(model(False, vocab_size=48)))
    for part in (
        "decoder/logits_dense/kernel (16, 40) is unknown",
        "mlp/wi/kernel (16, 24) is missing",
        "token_embedder/embedding: got (40, 16), expected (48, 16)",
    ):
        assert part in str(caught.value)


def test_a_bias_of_each_layer_its_own_is_refused(tmp_path):
    params = t5x_writer.scalable(t5x_writer.minimal(True))
    params["encoder/encoder/relpos_bias/rel_embedding"][:, 2] += 1
    checkpoint = t5x_native.T5XCheckpoint(t5x_writer.native(tmp_path, params))
    with pytest.raises(InputError, match="differs between layers 0 and 2"):
        fill.fill(checkpoint, abstract_params(model()))


def test_a_tensorflow_checkpoint_is_told(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-0"\n')
    with pytest.raises(InputError, match=r"a TensorFlow checkpoint\. Use the T5X form"):
        t5x_native.T5XCheckpoint(tmp_path)


def test_arrays_of_something_else_are_no_t5(tmp_path):
    path = t5x_writer.native(tmp_path, {"dense/kernel": np.zeros((2, 3), np.float32)})
    checkpoint = t5x_native.T5XCheckpoint(path)
    with pytest.raises(InputError, match="not a T5 checkpoint: 'token_embedder/embedding'"):
        sizes.infer(checkpoint.shapes, checkpoint.where)


@pytest.fixture
def initializer():
    """T5X's own `TrainStateInitializer` of its minimal or scalable network."""
    reason = "t5x is not importable; see stepdistill_jax/t5x/README.md"
    partitioning = pytest.importorskip("t5x.partitioning", reason=reason)
    import seqio
    from t5x import adafactor, models, utils
    from t5x.examples.scalable_t5 import network as scalable
    from t5x.examples.t5 import network as minimal

    def make(form, train):
        network, more = (minimal, {}) if form == "t5x" else (scalable, {"scan_layers": True})
        ours = model()
        fields = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "mlp_activations")
        fields += ("num_encoder_layers", "num_decoder_layers", "logits_via_embedding")
        config = network.T5Config(**{field: getattr(ours, field) for field in fields}, **more)
        vocabulary = seqio.PassThroughVocabulary(t5x_writer.V)
        optimizer = adafactor.Adafactor(
            learning_rate=0.1, logical_factor_rules=adafactor.standard_logical_factor_rules()
        )
        t5 = models.EncoderDecoderModel(
            network.Transformer(config), vocabulary, vocabulary, optimizer
        )
        features = ("encoder_input_tokens", "decoder_input_tokens")
        partitioner = partitioning.PjitPartitioner(num_partitions=1)
        return partitioner, utils.TrainStateInitializer(
            optimizer if train else None,
            t5.get_initial_variables,
            dict.fromkeys(features, (8, 5)),
            partitioner,
            dict.fromkeys(features, np.int32),
        )

    # T5X's own code relies on what this suite forbids elsewhere.
    with jax.numpy_rank_promotion("allow"):
        yield make


@pytest.mark.parametrize("form", ["t5x", "t5x_scanned"])
def test_t5x_itself_restores_a_student_and_we_read_what_it_saves(tmp_path, initializer, form):
    from t5x import checkpoints, utils

    params = t5x_writer.minimal(True)
    ours = stack_layers(t5x_writer.nested(params))
    student = tmp_path / "student" / "checkpoint_30"
    t5x_native.write(student, 30, fill.arrays(ours, form), t5x_writer.H)
    restore = utils.RestoreCheckpointConfig(path=str(student), mode="specific", dtype="float32")
    partitioner, t5x = initializer(form, train=False)
    state = t5x.from_checkpoint([restore])
    assert int(state.step) == 30
    expected = params if form == "t5x" else t5x_writer.scalable(params)
    assert_same(dict(state.params), t5x_writer.nested(expected))

    checkpoints.Checkpointer(state, partitioner, str(tmp_path / "native")).save(state)
    (tmp_path / "orbax").mkdir()
    manager = checkpoints.OrbaxCheckpointManagerInterface(
        f"{tmp_path / 'orbax'}/", state, partitioner, save_dtype=np.float32
    )
    manager.save(state)
    manager.wait_until_finished()
    manager.close()
    for written in ("native", "orbax"):
        checkpoint = t5x_native.T5XCheckpoint(tmp_path / written)
        assert (checkpoint.form, checkpoint.step) == (form, 30)
        assert_same(fill.fill(checkpoint, abstract_params(model())), ours)


@pytest.mark.parametrize(("pattern", "step"), [("state.*", 0), ("state/param_states.*", 30)])
def test_t5x_trains_on_with_the_lines_that_the_readme_gives(tmp_path, initializer, pattern, step):
    from t5x import utils

    params = t5x_writer.minimal(True)
    ours = stack_layers(t5x_writer.nested(params))
    t5x_native.write(tmp_path / "checkpoint_30", 30, fill.arrays(ours, "t5x"), t5x_writer.H)
    restore = utils.RestoreCheckpointConfig(
        path=str(tmp_path / "checkpoint_30"),
        mode="specific",
        dtype="float32",
        fallback_to_scratch=True,
        assignment_map=((pattern, None),),
    )
    _, t5x = initializer("t5x", train=True)
    state = t5x.from_checkpoint([restore], init_rng=jax.random.PRNGKey(0))
    assert int(state.step) == step
    assert_same(dict(state.params), t5x_writer.nested(params))
