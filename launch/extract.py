"""Asks a teacher for rationales and labels: python -m launch.extract --gin_file=extract/cqa.gin

    --gin.TEACHER_URL=http://127.0.0.1:8000/v1 --gin.TEACHER_MODEL=NAME    # key: $OPENAI_API_KEY
    --plan            # requests, tokens and cost, from a sample of the rows; asks nothing
    --show_prompt     # the prompt, and its length

Every answer is on disk as soon as it is there. The same command again continues, after a kill too,
and asks nothing twice. On several machines, worker 0 to N-1 of N each take their share of the rows
($EXTRACT_WORKER and $EXTRACT_WORKERS where the flags are not given); then
python -m launch.extract --merge FOLDER... --gin.EXTRACT_DIR=FOLDER joins what they have.

Exit codes: 0 all rows (of this worker) are done, 2 wrong input, 4 the budget is spent, the endpoint
failed or rows lack after a merge, 75 stopped by SIGTERM or Ctrl-C: the same command continues.
"""

from __future__ import annotations

import sys

from absl import flags

from launch import workers
from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.spec import EXIT_INCOMPLETE, EXIT_PREEMPTED, InputError
from stepdistill_jax.teacher import load, merge
from stepdistill_jax.teacher import run as extracting
from stepdistill_jax.teacher.clients import redact
from stepdistill_jax.teacher.requests import EndpointError
from stepdistill_jax.teacher.store import Share

_PLAN = flags.DEFINE_bool("plan", False, "Print what it will ask and cost, and stop.")
_SHOW_PROMPT = flags.DEFINE_bool("show_prompt", False, "Print the prompt and its length, and stop.")
_MERGE = flags.DEFINE_bool(
    "merge",
    False,
    "Join the answers that lie in the folders named, or those of one folder's workers, in "
    "EXTRACT_DIR (default: the folder, where it is one).",
)


def main(arguments: Arguments) -> int:
    """Does what the flags say; returns the exit code."""
    try:
        return _main(arguments)
    except InputError as error:
        # A key that was written where none belongs is not repeated.
        raise InputError(redact.redact(str(error))) from None
    except EndpointError as error:
        # Before anything is asked: while the prompt is measured.
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INCOMPLETE
    except KeyboardInterrupt:
        # Before anything is asked; from then on a signal is waited for.
        return EXIT_PREEMPTED


def _main(arguments: Arguments) -> int:
    if _MERGE.value:
        if not arguments.positional or arguments.gin_files:
            raise InputError(
                "--merge wants folders and no --gin_file, as in --merge a b --gin.EXTRACT_DIR=out; "
                "what they have in common is in their config.gin"
            )
        return merge.merge(arguments.positional, arguments.overrides)
    arguments.refuse_positional()
    extraction = load.parse(arguments.gin_files, arguments.overrides, arguments.search_paths)
    share = Share(*workers.read("EXTRACT"))
    asked = extracting.prepare(extraction, share)
    if _SHOW_PROMPT.value:
        print(asked.shown_prompt())
        return 0
    if _PLAN.value:
        print(asked.plan())
        return 0
    return extracting.run(asked)


if __name__ == "__main__":
    run_with_arguments(main, help_text=load.help_text)
