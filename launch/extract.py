"""Asks a teacher for rationales and labels: python -m launch.extract --gin_file=extract/cqa.gin

    --gin.TEACHER_URL=http://127.0.0.1:8000/v1 --gin.TEACHER_MODEL=NAME    # key: $OPENAI_API_KEY
    --plan            # print requests, tokens and cost, estimated from a sample; send nothing
    --show_prompt     # print the prompt and its length

Every response is on disk as soon as it arrives. The same command continues the extraction, even
after a kill, and never sends a request again that has a response. With several machines, worker 0
to N-1 of N each ask about their share of the examples (flags, or $EXTRACT_WORKER and
$EXTRACT_WORKERS). Then python -m launch.extract --merge FOLDER... --gin.EXTRACT_DIR=FOLDER joins
the responses.

Exit codes: 0 all examples of this worker are done; 2 wrong input; 4 the budget is spent, the
endpoint failed, or examples are missing after a merge; 75 stopped by SIGTERM or Ctrl-C: the same
command continues.
"""

from __future__ import annotations

import sys

from absl import flags

from launch import workers
from launch.flags import Arguments, run_with_arguments
from stepdistill_jax.spec import EXIT_INCOMPLETE, InputError
from stepdistill_jax.teacher import load, merge, prepared, run
from stepdistill_jax.teacher.clients import redact
from stepdistill_jax.teacher.requests import EndpointError
from stepdistill_jax.teacher.store import Share

_PLAN = flags.DEFINE_bool("plan", False, "Print what would be asked, and its cost; send nothing.")
_SHOW_PROMPT = flags.DEFINE_bool("show_prompt", False, "Print the prompt and its length.")
_MERGE = flags.DEFINE_bool(
    "merge",
    False,
    "Join the responses of the named folders, or of one folder's workers, in EXTRACT_DIR (default: "
    "the folder, if it is only one).",
)


def main(arguments: Arguments) -> int:
    """Returns the exit code."""
    try:
        return _main(arguments)
    except InputError as error:
        # The user may have written a key in the wrong place.
        raise InputError(redact.redact(str(error))) from None
    except EndpointError as error:
        # Before the first request, while the prompt is measured.
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INCOMPLETE


def _main(arguments: Arguments) -> int:
    if _MERGE.value:
        if not arguments.positional or arguments.gin_files:
            raise InputError(
                "--merge needs folders, and no --gin_file: their config.gin has the settings. "
                "Write it as in --merge a b --gin.EXTRACT_DIR=out."
            )
        return merge.merge(arguments.positional, arguments.overrides)
    arguments.refuse_positional()
    extraction = load.parse(arguments.gin_files, arguments.overrides, arguments.search_paths)
    ready = prepared.prepare(extraction, Share(*workers.read("EXTRACT")))
    if _SHOW_PROMPT.value:
        print(ready.shown_prompt())
    elif _PLAN.value:
        print(ready.estimate())
    else:
        return run.run(ready)
    return 0


if __name__ == "__main__":
    run_with_arguments(main, help_text=load.help_text)
