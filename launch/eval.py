"""Scores trained runs: python -m launch.eval MODEL_DIR... [--gin.EVAL_SPLITS='("test",)'] ...

Each MODEL_DIR has its own configuration, MODEL_DIR/config.gin; --gin.NAME=value changes it for
the scoring. Instead of folders, --gin_file=FILE names the run that FILE describes. EVAL_SPLITS
selects the splits and EVAL_STEP the steps: best, latest, all or a number. With WATCH=True the
program follows a run that still trains. Results that results.jsonl already holds are reused.
"""

from __future__ import annotations

from launch import flags
from stepdistill_jax.eval.score import refuse_other_run, score
from stepdistill_jax.parallel import cluster, compilation, processes
from stepdistill_jax.run import load
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.folder import check_processes
from stepdistill_jax.spec import InputError


def runs(arguments: flags.Arguments) -> list[RunConfig]:
    """The configuration of every run that the command line names.

    Raises:
        InputError: no run is named, or both folders and a file; or a folder holds another run.
    """
    folders = list(arguments.positional)
    if arguments.gin_files and folders:
        raise InputError(
            f"both --gin_file={arguments.gin_files[0]} and folders ({', '.join(folders)}) name "
            "runs. Leave out --gin_file: each folder has its own config.gin."
        )
    if arguments.gin_files:
        named = [arguments.parse()]
    else:
        named = [load.read(folder, arguments.overrides) for folder in folders]
    if not named:
        raise InputError("nothing to score. Name folders of runs, or --gin_file=FILE.")
    for config in named:
        refuse_other_run(config)
    return named


def main(arguments: flags.Arguments) -> None:
    """Scores every named run and prints one line a result."""
    cluster.start()
    named = runs(arguments)
    processes.refuse_difference(
        "folders", str([config.model_dir for config in named]), "Start the same command in all."
    )
    for config in named:
        check_processes(config)
        compilation.enable_compilation_cache(config.tokens.root())
        for result in score(config):
            cluster.say(
                f"{config.model_dir} step {result.step} {result.split}: accuracy "
                f"{result.accuracy:.4f} (standard error {result.stderr:.4f}, n {result.n})"
            )


if __name__ == "__main__":
    flags.run_with_arguments(main)
