"""The checks of a preflight. They use the functions that the run itself uses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from stepdistill_jax import records, storage
from stepdistill_jax.checkpoint import initial, manager, restore
from stepdistill_jax.checkpoint.restore import sharded_params
from stepdistill_jax.data.pipeline import PairSubset, SplitCache
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.network import abstract_params
from stepdistill_jax.optim import optimizer as make_optimizer
from stepdistill_jax.parallel import processes
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.parallel.place import place_batch
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.folder import reach, refuse_other_run, writable
from stepdistill_jax.run.splits import open_split
from stepdistill_jax.spec import FINISHED_FILE, InputError
from stepdistill_jax.text import data_size, duration
from stepdistill_jax.train import preflight_hosts
from stepdistill_jax.train.build import Parts, make_parts
from stepdistill_jax.train.log import device_memory
from stepdistill_jax.train.state import TrainState, create_state

# After the first step, steps are timed until this number of steps or seconds.
_TIMED_STEPS = 5
_TIMED_SECONDS = 10.0
_TEXT_WIDTH = 60


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: in the table.
        run: returns the detail to print; raises if the check fails.
        needs: names of the checks that must pass first.
    """

    name: str
    run: Callable[[], str]
    needs: tuple[str, ...] = ()


class Checks:
    """The checks of one run, and the objects that earlier checks make for later ones.

    Every process runs them in the same order. A check that waits for other processes comes after
    the checks that can fail on a single host.
    """

    mesh: Mesh
    evaluator: Evaluator
    parts: Parts
    params: Any
    state: TrainState

    def __init__(self, config: RunConfig, scratch: epath.Path) -> None:
        """`scratch` is a new folder in MODEL_DIR, which `clean_up` deletes."""
        self.config = config
        self.scratch = scratch
        self.splits: dict[str, SplitCache] = {}
        self.first_step = 0
        # Whether MODEL_DIR existed before; None while unknown.
        self._existed: bool | None = None

    def listed(self) -> list[Check]:
        """All checks, in order."""
        splits = {"train", "validation", *self.config.eval.splits}
        data = [
            Check(f"data: {s}", functools.partial(self.data, s), ("stores", "vocabulary"))
            for s in sorted(splits, key=["train", "validation", "test"].index)
        ]
        shared = [Check("MODEL_DIR shared", self.shared, ("MODEL_DIR",))]
        if processes.count() == 1:
            shared = []
        # Processes read and write a checkpoint together; in separate folders they would hang.
        together = tuple(check.name for check in shared)
        begin = ("weights", "mesh", "embeddings", "data: train", *together)
        return [
            Check("stores", self.stores),
            Check("devices", self.devices),
            Check("hosts", self.hosts),
            Check("clocks", self.clocks),
            Check("MODEL_DIR", self.model_dir, ("stores",)),
            *shared,
            Check("run", self.run, ("stores",)),
            Check("room", self.room, ("MODEL_DIR",)),
            Check("mesh", self.make_mesh, ("devices",)),
            Check("vocabulary", self.vocabulary),
            Check("embeddings", self.embeddings, ("vocabulary",)),
            Check("weights", self.weights, ("stores",)),
            *data,
            Check("state", self.make_state, begin),
            Check("step", self.step, ("state",)),
            Check("decode", self.decode, ("step", "data: validation")),
            Check("save and restore", self.save_and_restore, ("step", "MODEL_DIR", "room")),
        ]

    def clean_up(self) -> None:
        """Deletes what the checks wrote, and MODEL_DIR if they created it."""
        if self._existed is None:
            return
        # A folder that cannot be written has failed its check already.
        with contextlib.suppress(OSError):
            self.scratch.rmtree(missing_ok=True)
            folder = self.scratch.parent
            if not self._existed and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

    def stores(self) -> str:
        """The object stores of the run's folders are reachable."""
        reach(self.config)
        self._existed = self.scratch.parent.exists()
        config = self.config
        folders = (config.model_dir, config.tokens.root(), config.initial_checkpoint or "")
        remote = [str(folder) for folder in folders if storage.is_remote(folder)]
        return f"{', '.join(remote)} can be used" if remote else "all folders are on local disks"

    def devices(self) -> str:
        """Every device of this host computes."""
        here = preflight_hosts.use_devices()
        kinds = {host: facts["devices"] for host, facts in self._of_all("devices", here).items()}
        if len(set(kinds.values())) > 1:
            listed = ", ".join(f"{host} has {kind}" for host, kind in kinds.items())
            raise InputError(f"{listed}. Use hosts of one kind, each with all its devices.")
        on = "on one host" if len(kinds) == 1 else f"on each of {len(kinds)} hosts"
        return f"{here['devices']} {on}, memory of each {here['memory of each']}; all compute"

    def hosts(self) -> str:
        """Versions, variables, source code and settings are equal on all hosts."""
        facts = self._of_all("software", preflight_hosts.software(self.config))
        preflight_hosts.refuse_different(facts)
        first = next(iter(facts.values()))
        alike = "one host" if len(facts) == 1 else f"{len(facts)} hosts alike"
        versions = ", ".join(
            f"{name} {first[name]}" for name in ("python", *preflight_hosts.PACKAGES[:4])
        )
        return f"{alike}: {versions}, source code {first['source code']}"

    def clocks(self) -> str:
        """Clocks agree."""
        self._of_all("clocks ready", None)
        skew = preflight_hosts.clock_skew(self._of_all("clocks", time.time()))
        return f"{skew:.2f} s apart" if processes.count() > 1 else "one host, one clock"

    def model_dir(self) -> str:
        """MODEL_DIR supports writing a file and replacing it by a rename."""
        path = self.scratch / f"process-{processes.index()}"
        with writable(self.config):
            for text in ("first", self.scratch.name):
                records.write_atomic(path, text)
        if path.read_text() != self.scratch.name:
            raise InputError(
                f"{path} still has its old content after a rename onto it. Choose a MODEL_DIR "
                "whose file system can rename onto existing files."
            )
        return f"{self.config.model_dir} supports writes and renames"

    def shared(self) -> str:
        """All hosts read what one host writes into MODEL_DIR."""
        for other in range(processes.count()):
            path = self.scratch / f"process-{other}"
            if not path.exists():
                raise InputError(
                    f"{path}, written by process {other}, does not exist here. Choose a MODEL_DIR "
                    "that all hosts share (gs://, NFS)."
                )
        return f"all {processes.count()} processes read each other's files"

    def run(self) -> str:
        """MODEL_DIR holds no other run."""
        refuse_other_run(self.config)
        steps = restore.available_steps(self.config.model_dir)
        if (epath.Path(self.config.model_dir) / FINISHED_FILE).exists():
            return "MODEL_DIR holds a finished run, which would only be scored"
        if not steps:
            return "a new run"
        self.first_step = steps[-1]
        return f"would continue from step {self.first_step:,} of {self.config.train_steps:,}"

    def room(self) -> str:
        """The disk has room for all checkpoints that exist at the same time."""
        optimizer = make_optimizer(self.config.optimizer, self.config.train_steps)
        params = abstract_params(self.config.model)
        size = _bytes(params) + _bytes(jax.eval_shape(optimizer.init, params))
        # The latest ones, the best one, and the one that is being written.
        count = self.config.keep_checkpoints + 2
        existing = len(restore.available_steps(self.config.model_dir))
        need = size * max(count - existing, 1)
        what = f"{count} checkpoints of {data_size(size)}"
        if storage.is_remote(self.config.model_dir):
            return f"{what}; the free space of a store is unknown"
        free = shutil.disk_usage(self.scratch).free
        if free < need:
            raise InputError(
                f"{what} need {data_size(need)}, {self.config.model_dir} has "
                f"{data_size(free)} free. Free disk space, lower KEEP_CHECKPOINTS="
                f"{self.config.keep_checkpoints}, or choose another MODEL_DIR."
            )
        return f"{what}, {existing} of them exist; {data_size(free)} are free"

    def make_mesh(self) -> str:
        """The mesh fits the devices."""
        self.mesh = make_mesh(self.config.mesh)
        return " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())

    def vocabulary(self) -> str:
        """The vocabulary is available."""
        vocabulary = load_vocabulary(self.config.tokens.vocabulary)
        return f"{vocabulary.size:,} ids, fingerprint {vocabulary.fingerprint[:12]}"

    def embeddings(self) -> str:
        """Every id of the vocabulary has a row in the embedding table."""
        size = load_vocabulary(self.config.tokens.vocabulary).size
        self.config.check_vocabulary(size)
        return f"{self.config.model.vocab_size:,} rows hold {size:,} ids"

    def weights(self) -> str:
        """The weights that the run starts from are complete and fit this model."""
        config = self.config
        steps = restore.available_steps(config.model_dir)
        if steps:
            restore.check_shapes(config.model_dir, steps[-1], abstract_params(config.model))
            return f"the run's own, of step {steps[-1]:,}"
        initial.check(config.initial_checkpoint, config.model, config.tokens.vocabulary)
        return str(config.initial_checkpoint or "from scratch")

    def data(self, split: str) -> str:
        """The examples of a split can be read; a missing token cache is built."""
        started = time.perf_counter()
        self.splits[split] = cache = open_split(self.config, split)
        row = cache.example(len(cache) - 1) if len(cache) else {"id": None}
        seconds = time.perf_counter() - started
        detail = f"{len(cache):,} examples as tokens in {seconds:.1f} s, the last is {row['id']}"
        cut = ", ".join(f"{name} {n:,}" for name, n in cache.manifest.truncated.items() if n)
        if cut:
            detail += f"; CUT to the maximum length: {cut}"
        if split == "train" and self.config.pipeline.batch_size > len(cache):
            detail += f"; FEWER than BATCH_SIZE={self.config.pipeline.batch_size:,}, lower it"
        return detail

    def make_state(self) -> str:
        """The devices hold the weights and the optimizer state."""
        config = self.config
        self.parts = make_parts(config, self.mesh)
        abstract = sharded_params(config.model, self.mesh)
        steps = restore.available_steps(config.model_dir)
        if steps:
            params = restore.restore_params(config.model_dir, steps[-1], abstract)
        else:
            params = initial.initial_params(config.initial_checkpoint, abstract)
        self.state = create_state(
            config.model, self.parts.optimizer, self.mesh, config.seed, params
        )
        jax.block_until_ready(self.state)
        leaves = jax.tree.leaves(self.state)
        held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        devices = len(jax.local_devices())
        return f"{count:,} parameters; {data_size(held / devices)} of state on each device"

    def step(self) -> str:
        """The first batches give a finite loss; estimates the time of the whole run."""
        started = time.perf_counter()
        values = self._train()
        first = time.perf_counter() - started
        taken: list[float] = []
        while len(taken) < _TIMED_STEPS and sum(taken) < _TIMED_SECONDS:
            started = time.perf_counter()
            values = self._train()
            taken.append(time.perf_counter() - started)
            # The lead's clock decides for all: they must run the same number of steps.
            taken[-1] = processes.from_lead(lambda: taken[-1])
        seconds = float(np.median(taken))
        left = self.config.train_steps - self.first_step
        return (
            f"loss {values['loss']:.3f}; first step {first:.1f} s with compilation, then "
            f"{seconds:.3f} s each: {duration(seconds * left)} for {left:,} steps, without "
            f"evaluations; {_memory()}"
        )

    def _train(self) -> dict[str, float]:
        """Trains one step on the next batch and returns its metrics.

        Raises:
            InputError: the loss or another metric is not finite.
        """
        batch = place_batch(next(self.parts.batches), self.mesh, self.config.microbatches)
        self.state, metrics = self.parts.train_step(self.state, batch)
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise InputError(
                f"after {int(self.state.step)} steps {', '.join(bad)}. Lower LEARNING_RATE="
                f"{self.config.optimizer.learning_rate:g}, set CLIP_NORM, or check the initial "
                f"weights ({self.config.initial_checkpoint or 'from scratch'})."
            )
        return values

    def decode(self) -> str:
        """Decodes the longest validation examples as one batch."""
        cache = self.splits["validation"]
        evaluator = Evaluator(self.config, self.mesh)
        lengths = np.asarray(cache.lengths["label_inputs"])
        rows = PairSubset(cache, np.argsort(lengths, kind="stable")[-self.config.eval.batch_size :])
        started = time.perf_counter()
        evaluator.predict(self.state.params, rows)
        first = time.perf_counter() - started
        started = time.perf_counter()
        predictions = evaluator.predict(self.state.params, rows)
        seconds = time.perf_counter() - started
        batches = math.ceil(len(cache) / self.config.eval.batch_size)
        period = self.config.eval_period
        count = math.ceil((self.config.train_steps - self.first_step) / period) if period else 1
        return (
            f"{len(predictions)} examples in {seconds:.2f} s (first {first:.1f} s), such as "
            f"{predictions[0].text[:_TEXT_WIDTH]!r}; at most {duration(seconds * batches)} for "
            f"all {len(cache):,} of validation, {count:,} times; {_memory()}"
        )

    def save_and_restore(self) -> str:
        """A checkpoint is restored bit for bit. Replaces the state."""
        step = int(self.state.step)
        data = {"iterator": self.parts.batches.get_state(), "evals": []}
        identity = {"config": configs.dump(self.config)}
        with manager.manager(self.scratch, keep=1) as checkpoints:
            started = time.perf_counter()
            manager.save(checkpoints, step, self.state, data, identity)
            blocked = time.perf_counter() - started
            manager.wait(checkpoints)
            saved = time.perf_counter() - started
            before, size = _digest(self.state), _bytes(self.state)
            # The devices may not hold two states at once.
            jax.tree.map(lambda leaf: leaf.delete(), self.state)
            started = time.perf_counter()
            self.state, again, _ = manager.restore(checkpoints, step, self.parts.abstract)
            jax.block_until_ready(self.state)
            restored = time.perf_counter() - started
        if _digest(self.state) != before or again != data:
            raise InputError(
                f"the state restored from {self.scratch} differs from the saved one. Choose a "
                "MODEL_DIR on another disk."
            )
        return (
            f"{data_size(size)} saved in {saved:.1f} s (training waits {blocked:.1f} s) and "
            f"restored in {restored:.1f} s, equal bit for bit"
        )

    def _of_all(self, what: str, value: Any) -> dict[str, Any]:
        """Host -> its `value`."""
        key = f"{self.scratch.name}/{what}"
        return dict(processes.gather(key, [preflight_hosts.name(), value]))


def _bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _digest(tree: Any) -> str:
    """Hash of this host's part of a tree; copies one shard at a time into host memory."""
    digest = hashlib.blake2b()
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                digest.update(np.asarray(shard.data).tobytes())
    return digest.hexdigest()


def _memory() -> str:
    """Peak memory of this host's fullest device."""
    peak = device_memory()["hbm_peak"]
    return "HBM use unknown" if peak is None else f"peak HBM {data_size(peak)}"
