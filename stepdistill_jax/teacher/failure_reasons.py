"""Why requests gave no label: remedies for the user, and an early stop where all fail alike."""

from __future__ import annotations

from collections.abc import Mapping

from stepdistill_jax.data import parse
from stepdistill_jax.records import Annotation, ParseFailure
from stepdistill_jax.teacher.clients import failures

# Of a completion that has no label because it reached MAX_NEW_TOKENS.
CUT = "cut off at MAX_NEW_TOKENS"

_RAISE = (
    "Raise MAX_NEW_TOKENS and run the same command again: only the failed requests are sent again."
)
_AFTER_MENDING = (
    "Check the endpoint's log and chat template. Then run the same command with "
    "--gin.ASK_FAILED_AGAIN=True."
)
_PROMPT = (
    "Read the responses in worst_SPLIT.jsonl, then change the prompt (PROMPT_FILE, PROMPT_FORM) in "
    "another EXTRACT_DIR."
)
_REMEDIES: Mapping[str, str] = {
    CUT: _RAISE,
    failures.NO_ROOM: _RAISE,
    failures.EMPTY: _AFTER_MENDING,
    failures.CONTEXT: "Lower MAX_NEW_TOKENS, or remove exemplars (PROMPT_FILE).",
    failures.FILTERED: "Use another TEACHER_MODEL, or leave these examples out.",
    parse.THINKING: _RAISE,
    parse.STOPPED: (
        "Set OMIT_FIELDS=('stop',): completions are then cut here, after the thoughts. Use another "
        "EXTRACT_DIR."
    ),
    parse.NO_MARKER: _PROMPT,
    parse.NOT_IN_SET: _PROMPT,
    parse.NOT_A_CHOICE: _PROMPT,
    parse.NOT_ARITHMETIC: _PROMPT,
}


def _kind(reason: str) -> str:
    """A reason without its detail: "answer is not arithmetic: no value"."""
    return reason.partition(":")[0]


def describe(unit: str, outcomes: Mapping[str, int], labelled: frozenset[str]) -> list[str]:
    """One line with the failures of a unit, and one for each remedy; none without failures.

    Args:
        outcomes: outcome -> number of examples.
        labelled: outcomes that have a label.
    """
    failed = {reason: count for reason, count in outcomes.items() if reason not in labelled}
    if not failed:
        return []
    kinds: dict[str, int] = {}
    for reason, count in failed.items():
        kinds[_kind(reason)] = kinds.get(_kind(reason), 0) + count
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count:,} {reason}" for reason, count in ordered)
    remedies = dict.fromkeys(_REMEDIES[reason] for reason, _ in ordered if reason in _REMEDIES)
    total = sum(outcomes.values())
    return [
        f"{unit}: {sum(kinds.values()):,} of {total:,} examples have no label: {listed}",
        *(f"  {remedy}" for remedy in remedies),
    ]


class EqualFailures:
    """Notices that the first responses of a process all fail for one reason."""

    def __init__(self, maximum: int) -> None:
        """`maximum` is STOP_AFTER_FAILURES; 0 = never."""
        self._maximum = maximum
        self._failed = 0
        self._reason = ""

    def add(self, outcome: Annotation | ParseFailure, detail: str) -> str:
        """Takes in a response; returns the message for the user where the extraction must stop.

        Args:
            detail: what the endpoint said of the failure; "" if nothing.
        """
        if not self._maximum:
            return ""
        if isinstance(outcome, Annotation) or self._reason not in ("", _kind(outcome.reason)):
            self._maximum = 0
            return ""
        self._reason = _kind(outcome.reason)
        self._failed += 1
        if self._failed < self._maximum:
            return ""
        remedy = _REMEDIES.get(self._reason, "Read the rows of EXTRACT_DIR.")
        return (
            f"the first {self._failed} responses all failed: {self._reason}"
            f"{f' ({detail})' if detail else ''}. {remedy} Set STOP_AFTER_FAILURES=0 to go on "
            "regardless."
        )
