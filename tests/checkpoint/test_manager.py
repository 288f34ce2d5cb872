import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore as ts
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from same_trees import assert_same

from stepdistill_jax.checkpoint import checksums, manager, restore
from stepdistill_jax.checkpoint.run_arrays import RunArrays
from stepdistill_jax.spec import InputError, UnavailableError


def mesh(*shape: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        shape, ("replica", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * len(shape)
    )


def sharded(tree, on: jax.sharding.Mesh):
    return jax.device_put(tree, NamedSharding(on, PartitionSpec("fsdp")))


def abstract(tree, on: jax.sharding.Mesh):
    def leaf(x):
        sharding = NamedSharding(on, PartitionSpec(*["fsdp"][: x.ndim]))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(0))
    # The kernel is large enough that Orbax writes its chunks to files of their own.
    return {
        "dense": {"kernel": jax.random.normal(keys[0], (800, 1000))},
        "norm": {"scale": jax.random.normal(keys[1], (8,))},
    }


def write(model_dir, params, accuracies):
    """Saves one checkpoint for each (step, accuracy or None); parameters are scaled by the step."""
    with manager.manager(model_dir, keep=2) as checkpoints:
        for step, accuracy in accuracies:
            scaled = jax.tree.map(lambda x, step=step: x * step, params)
            state = {"params": scaled, "opt_state": optax.adamw(1e-3).init(scaled)}
            data = {"iterator": {"next": step}, "evals": []}
            manager.save(checkpoints, step, state, data, {"config": ""}, accuracy)
        manager.wait(checkpoints)


def test_the_latest_two_and_the_best_on_validation_are_kept(tmp_path, params):
    accuracies = [(1, 0.5), (2, 0.9), (3, 0.9), (4, None), (5, 0.1), (6, None)]
    write(tmp_path, params, accuracies)
    assert restore.available_steps(tmp_path) == [2, 5, 6]
    # Steps 2 and 3 tie: the earlier wins.
    assert restore.best_step(tmp_path) == 2


def test_nothing_saved_yet(tmp_path):
    assert restore.available_steps(tmp_path) == []
    assert restore.best_step(tmp_path) is None
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 4), (2, 4, 1)])
def test_parameters_restore_bit_for_bit_on_another_mesh(tmp_path, params, shape):
    write(tmp_path, sharded(params, mesh(1, 8, 1)), [(3, None)])
    target = abstract(params, mesh(*shape))
    restored = restore.restore_params(tmp_path, 3, target)
    for got, want, spec in zip(
        jax.tree.leaves(restored), jax.tree.leaves(params), jax.tree.leaves(target), strict=True
    ):
        assert got.sharding == spec.sharding
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want * 3))


def test_whole_state_and_data_position_come_back(tmp_path, params):
    write(tmp_path, params, [(7, None)])
    state = {"params": params, "opt_state": optax.adamw(1e-3).init(params)}
    with manager.manager(tmp_path) as checkpoints:
        restored, data, identity = manager.restore(checkpoints, 7, abstract(state, mesh(1, 1, 1)))
    assert identity == {"config": ""}
    assert data == {"iterator": {"next": 7}, "evals": []}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    np.testing.assert_array_equal(
        np.asarray(restored["params"]["norm"]["scale"]), np.asarray(params["norm"]["scale"] * 7)
    )


def test_every_missing_shard_is_an_error_and_never_zeros(tmp_path, params):
    write(tmp_path, params, [(1, None)])
    target = abstract(params, mesh(1, 1, 1))
    files = [p for p in (tmp_path / "checkpoints" / "1" / "state").rglob("d/*") if p.is_file()]
    refused = 0
    for file in files:
        hidden = file.rename(tmp_path / "hidden")
        try:
            restored = restore.restore_params(tmp_path, 1, target)
        except InputError as error:
            assert "checkpoints/1: cannot read this checkpoint" in str(error)  # noqa: PT017
            refused += 1
        else:
            for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
                np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
        hidden.rename(file)
    assert refused >= 2  # the index and the kernel's chunk


def test_an_outage_of_the_store_is_no_damage(tmp_path, params, monkeypatch):
    """Else a good checkpoint would be deleted on the advice of the message."""

    def fail(*_, **__):
        raise ValueError("ABORTED: Error reading gs://b/x: All 32 retry attempts failed: CURL")

    def save_and_wait(checkpoints):
        manager.save(checkpoints, 2, {"params": params}, {}, {})
        manager.wait(checkpoints)

    write(tmp_path, params, [(1, None)])
    with manager.manager(tmp_path) as checkpoints:
        monkeypatch.setattr(ts, "open", fail)
        with pytest.raises(UnavailableError, match="Run the same command later") as raised:
            restore.restore_params(tmp_path, 1, abstract(params, mesh(1, 1, 1)))
        assert "delete" not in str(raised.value)
        with pytest.raises(UnavailableError, match="Run the same command later"):
            save_and_wait(checkpoints)


def test_another_model_names_every_parameter_that_differs(tmp_path, params):
    write(tmp_path, params, [(1, None)])
    other = {
        "dense": {"kernel": jnp.zeros((8, 8))},
        "norm": params["norm"],
        "head": {"kernel": jnp.zeros((8, 8))},
    }
    with pytest.raises(InputError, match="of another model") as raised:
        restore.restore_params(tmp_path, 1, abstract(other, mesh(1, 1, 1)))
    assert "dense/kernel: got (800, 1000), expected (8, 8)" in str(raised.value)
    assert "head/kernel: got nothing" in str(raised.value)


def test_a_step_that_is_not_there(tmp_path, params):
    write(tmp_path, params, [(1, None)])
    with pytest.raises(InputError, match=r"no such step: got 5, expected one of \[1\]"):
        restore.restore_params(tmp_path, 5, abstract(params, mesh(1, 1, 1)))


def test_a_half_written_step_is_not_a_checkpoint(tmp_path, params):
    write(tmp_path, params, [(1, None), (2, None)])
    folder = pathlib.Path(tmp_path, "checkpoints")
    (folder / "2").rename(folder / "2.orbax-checkpoint-tmp")
    assert restore.available_steps(tmp_path) == [1]


class TestChecksums:
    def test_the_sum_is_of_bits_times_odd_numbers(self):
        array = np.array([[1, 2], [3, 4]], np.int32)
        assert checksums.of_host_array(array) == 1 * 1 + 2 * 3 + 3 * 5 + 4 * 7
        assert checksums.of_arrays({"a": [jnp.asarray(array)]}) == {"a/0": 50}

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
    @pytest.mark.parametrize("shape", [(8, 3, 5), (16,), ()])
    def test_host_and_every_mesh_agree_and_every_bit_counts(self, dtype, shape):
        rng = np.random.default_rng(0)
        array = rng.normal(size=shape).astype(dtype)
        expected = checksums.of_host_array(array)
        assert checksums.of_arrays({"a": jnp.asarray(array)}) == {"a": expected}
        if shape:
            split = NamedSharding(mesh(1, 8, 1), PartitionSpec("fsdp"))
            assert checksums.of_arrays({"a": jax.device_put(array, split)}) == {"a": expected}
        raw = bytearray(array.tobytes())
        for position in range(len(raw)):
            raw[position] ^= 1 << (position % 8)
            changed = np.frombuffer(bytes(raw), array.dtype).reshape(shape)
            assert checksums.of_host_array(changed) != expected
            raw[position] ^= 1 << (position % 8)

    def test_no_flipped_byte_gives_other_values(self, tmp_path, params):
        write(tmp_path, params, [(1, 0.5)])
        state = {"params": params, "opt_state": optax.adamw(1e-3).init(params)}
        target = abstract(state, mesh(1, 1, 1))
        folder = tmp_path / "checkpoints" / "1"
        files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
        refused = set()
        for file in files:
            intact = file.read_bytes()
            for position in {0, len(intact) // 2, len(intact) - 1}:
                damaged = bytearray(intact)
                damaged[position] ^= 1
                file.write_bytes(damaged)
                try:
                    with manager.manager(tmp_path, read_only=True) as checkpoints:
                        restored, data, identity = manager.restore(checkpoints, 1, target)
                except InputError as error:
                    text = str(error)
                    assert str(folder) in text
                    assert "elete" in text
                    refused.add(file)
                else:
                    assert (data, identity) == (
                        {"iterator": {"next": 1}, "evals": []},
                        {"config": ""},
                    )
                    assert_same(restored["params"], params)
            file.write_bytes(intact)
        assert {file.parent.name for file in refused} >= {"data", "identity", "checksums"}

    @pytest.mark.parametrize("damage", ["", "\0\0\0", "{}", None])
    def test_a_damaged_accuracy_is_rebuilt_from_the_evaluations(self, tmp_path, params, damage):
        evals = [(1, 0.75), (2, 0.5)]
        with manager.manager(tmp_path, keep=2) as checkpoints:
            for count, (step, accuracy) in enumerate(evals, start=1):
                data = {"iterator": {}, "evals": evals[:count]}
                manager.save(checkpoints, step, {"params": params}, data, {}, accuracy)
        path = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
        path.write_text(path.read_text().replace("7", "0") if damage is None else damage)
        assert restore.best_step(tmp_path) == 1
        with manager.manager(tmp_path) as checkpoints:
            assert checkpoints.metrics(1) == {manager.METRIC: 0.75, "step": 1}

    def test_other_values_name_the_array_and_the_remedy(self, tmp_path, params):
        write(tmp_path, params, [(1, None)])
        path = tmp_path / "checkpoints" / "1" / "checksums" / "metadata"
        saved = json.loads(path.read_text())
        saved["params/norm/scale"] ^= 1
        path.write_text(json.dumps(saved))
        with pytest.raises(InputError) as error:
            restore.restore_params(tmp_path, 1, abstract(params, mesh(1, 1, 1)))
        assert str(error.value) == (
            f"{tmp_path}/checkpoints/1: damaged checkpoint: the checksum of params/norm/scale "
            "differs from the saved one. Delete this folder: the run then continues from the step "
            "before it; or choose another step."
        )
        with pytest.raises(InputError, match="the checksum of params/norm/scale differs"):
            RunArrays(tmp_path, 1).whole("norm/scale")

    def test_lost_checksums_are_no_agreement(self, tmp_path, params):
        write(tmp_path, params, [(1, None)])
        path = tmp_path / "checkpoints" / "1" / "checksums" / "metadata"
        saved = json.loads(path.read_text())
        del saved["params/norm/scale"]
        path.write_text(json.dumps(saved))
        with pytest.raises(InputError, match="the checksum of params/norm/scale differs"):
            restore.restore_params(tmp_path, 1, abstract(params, mesh(1, 1, 1)))
        path.unlink()
        with pytest.raises(InputError, match=r"checksums/metadata: damaged: FileNotFoundError\."):
            restore.restore_params(tmp_path, 1, abstract(params, mesh(1, 1, 1)))

    def test_a_checkpoint_of_an_earlier_version_is_read(self, tmp_path, params):
        write(tmp_path, params, [(1, 0.5)])
        folder = tmp_path / "checkpoints" / "1"
        shutil.rmtree(folder / "checksums")
        listing = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        del listing["item_handlers"]["checksums"]
        (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(listing))
        assert restore.best_step(tmp_path) == 1
        restore.restore_params(tmp_path, 1, abstract(params, mesh(1, 1, 1)))
        state = {"params": params, "opt_state": optax.adamw(1e-3).init(params)}
        with manager.manager(tmp_path) as checkpoints:
            manager.restore(checkpoints, 1, abstract(state, mesh(1, 1, 1)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device", "x"), "No space left on device"),
        # tensorstore's, shortened: the reason comes last.
        (
            ValueError(
                f"RESOURCE_EXHAUSTED: Error writing {'x' * 400}: No space left on device "
                "[os_error_code='28']"
            ),
            "No space left on device",
        ),
        (ValueError("PERMISSION_DENIED: no access to gs://b"), "PERMISSION_DENIED: no access"),
    ],
)
def test_a_disk_or_store_that_takes_no_checkpoint_is_named(tmp_path, error, reason):
    with (
        manager.manager(tmp_path) as checkpoints,
        pytest.raises(InputError, match=rf"cannot write a checkpoint: {reason}.*continues from"),
        manager._writable(checkpoints),
    ):
        raise error


def test_another_error_of_a_save_is_no_full_disk(tmp_path):
    with (
        manager.manager(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="a defect"),
        manager._writable(checkpoints),
    ):
        raise ValueError("a defect")
