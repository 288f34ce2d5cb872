"""Scores trained runs: python -m launch.eval MODEL_DIR... [--gin.EVAL_SPLITS='("test",)'] ...

Each MODEL_DIR brings its own configuration (MODEL_DIR/config.gin); --gin.NAME=value changes it for
the scoring. With --gin_file instead of folders, the run that the file describes is scored.
Splits: EVAL_SPLITS; steps: EVAL_STEP (best, latest, all or a number); WATCH=True follows a run
that is still training. What results.jsonl holds already is not done again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from absl import logging

from launch import flags
from stepdistill_jax.checkpoint.restore import available_steps, restore_params, sharded_params
from stepdistill_jax.eval.build import make_evaluator, score_teacher
from stepdistill_jax.eval.follow import steps_to_score
from stepdistill_jax.parallel import cluster, compilation, processes
from stepdistill_jax.parallel.mesh import make_mesh
from stepdistill_jax.run import load as configs
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.folder import reach, refuse_strangers
from stepdistill_jax.run.results import Result
from stepdistill_jax.spec import TEACHER, InputError


def runs(arguments: flags.Arguments) -> list[RunConfig]:
    """The configuration of every run that the command line names.

    Raises:
        InputError: it names none, or folders and a file; or one of them is no run, or another.
    """
    folders = list(arguments.positional)
    if arguments.gin_files and folders:
        raise InputError(
            f"both --gin_file={arguments.gin_files[0]} and folders ({', '.join(folders)}) are "
            "given; a folder brings its own config.gin, so leave one of the two out"
        )
    if not arguments.gin_files and not folders:
        raise InputError("nothing to score: name folders of runs, or --gin_file=FILE")
    if arguments.gin_files:
        return [_same_run(arguments.parse())]
    return [_same_run(configs.read(folder, arguments.overrides)) for folder in folders]


def _same_run(config: RunConfig) -> RunConfig:
    """`config`, which may score a run otherwise than it was trained, and be no other run.

    Raises:
        InputError: its folder holds a run of another configuration.
    """
    # What it was trained from is not read.
    reach(dataclasses.replace(config, initial_checkpoint=None))
    trained = dataclasses.replace(configs.read(config.model_dir), eval=config.eval)
    different = configs.difference(trained, config)
    if different:
        changes = (f"{name} {old!r}, now {new!r}" for name, (old, new) in different.items())
        raise InputError(
            f"{config.model_dir} holds another run: {'; '.join(changes)}; for scoring, "
            f"only the section Evaluation of --help, the mesh and folders may change"
        )
    return config


def score(config: RunConfig) -> Iterator[Result]:
    """Scores the chosen steps of one run on the chosen splits, yielding each result."""
    if config.method == TEACHER:
        yield from score_teacher(config)
        return
    mesh = make_mesh(config.mesh)
    processes.connect(mesh)
    evaluator = make_evaluator(config, mesh)
    abstract = sharded_params(config.model, mesh)
    for step, selected_on in steps_to_score(config.model_dir, config.eval):
        known = {split: evaluator.known(step, split, selected_on) for split in config.eval.splits}
        params = {}
        if not all(known.values()):
            try:
                params = restore_params(config.model_dir, step, abstract)
            except InputError:
                deleted = config.eval.watch and step not in available_steps(config.model_dir)
                if not deleted or processes.count() > 1:  # others may have read it, and score it
                    raise
                logging.warning("Step %d was deleted by the run before it was read.", step)
                continue
        for split, result in known.items():
            yield result or evaluator.evaluate(params, step, split, selected_on)


def main(arguments: flags.Arguments) -> None:
    """Scores every run that is named and prints one line a result."""
    cluster.start()
    named = runs(arguments)
    processes.refuse_difference(
        "folders", str([config.model_dir for config in named]), "start the same command in all"
    )
    for config in named:
        refuse_strangers(config)
        compilation.enable_compilation_cache(config.tokens.root())
        for result in score(config):
            cluster.say(
                f"{config.model_dir} step {result.step} {result.split}: accuracy "
                f"{result.accuracy:.4f} (standard error {result.stderr:.4f}, n {result.n})"
            )


if __name__ == "__main__":
    flags.run_with_arguments(main)
