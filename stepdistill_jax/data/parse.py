"""From a teacher's free text to a rationale and a label, or a typed failure.

A teacher answers one question and often continues with another question; this run-on is cut. A
label that is not in the agreed format is repaired only if it is certain. Otherwise the output is a
`ParseFailure` with a reason, never a blank label.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable

from stepdistill_jax.data.equation import EquationError, evaluate
from stepdistill_jax.data.thoughts import without_thoughts
from stepdistill_jax.records import Annotation, Example, ParseFailure

# Increase it whenever a released output would be read differently: part of a data fingerprint, so
# that runs of earlier versions cannot continue.
VERSION = 1

NO_MARKER = "no answer marker"
THINKING = "cut off while thinking"
STOPPED = "stop text in the thoughts"
SEVERAL = "several answers"
NOT_IN_SET = "label not in set"
NOT_A_CHOICE = "answer is none of the choices"
DISAGREE = "letter and text disagree"
CUT_SHORT = "answer cut short"
NOT_ARITHMETIC = "answer is not arithmetic"
EMPTY = "answer is empty"

# Similarity (difflib ratio) from which a text counts as a misspelling of the choice that its letter
# names. In the released outputs "desk" for "dek" has 0.86, "skin and muscle" for "skin and" 0.72.
_SAME_WORD = 0.8
# A truncated label is completed from this many letters on: they distinguish all NLI labels.
_MIN_PREFIX = 3

_LETTER = re.compile(r"\(([a-zA-Z])\)")
# d | d. | d) math problem.
_BARE_LETTER = re.compile(r"([a-zA-Z])(?:[).:](.*)|)")
_SIGNS = str.maketrans("×÷−", "*/-")
# Chat models' markup around a whole answer: **neutral**, `neutral`, $84 / 2$.
_BOLD = "**"
_BOXED = re.compile(r"\$*\\boxed\{(?:\\text\{)?(?P<answer>[^{}]+)\}")
_SET_IN = re.compile(r"(\*{1,3}|`|\$)(?P<answer>[^*`$]+)\1(?P<stop>\.?)")


class _UnusableError(Exception):
    """Carries the reason why an answer yields no label."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# (answer line, choices, whether the output ends within it) -> label; raises _UnusableError.
_ReadLabel = Callable[[str, tuple[str, ...], bool], str]


@dataclasses.dataclass(frozen=True)
class _Format:
    """The format of one data set's teacher outputs.

    Attributes:
        run_on: the start of the next question.
        markers: introduce the answer; a later one is tried only if no earlier one occurs.
        read: reads the label from the rest of the marker's line.
        cue: the prompt's last word, which chat models repeat before they reason.
    """

    run_on: re.Pattern[str]
    markers: tuple[re.Pattern[str], ...]
    read: _ReadLabel
    cue: re.Pattern[str]


def parse(
    format: str, example: Example, raw: str, complete: bool = False
) -> Annotation | ParseFailure:
    """Reads one teacher output.

    Args:
        format: one of `FORMATS`.
        example: its choices bound the label.
        raw: the output.
        complete: the teacher stopped by itself (its finish reason is "stop"), so the output is not
            truncated.

    Returns:
        An annotation, marked `repaired` if the agreed format's rules (for a released data set the
        release's) read another label; or a failure with one of this module's reasons. A failure
        with an answer marker keeps the text before it as its rationale. Thoughts of a reasoning
        model are no part of either.
    """
    rules = _FORMATS[format]
    answer = without_thoughts(raw)
    if answer is None:
        return ParseFailure(example.id, STOPPED if complete else THINKING, "", raw)
    run_on = rules.run_on.search(answer)
    text = answer[: run_on.start()] if run_on else answer
    matches: list[re.Match[str]] = []
    for marker in rules.markers:
        matches = list(marker.finditer(text))
        if matches:
            break
    if not matches:
        return ParseFailure(example.id, NO_MARKER, "", raw)
    rationale = text[: matches[0].start()].rstrip().removesuffix(_BOLD).rstrip().rstrip(",")
    rationale = rules.cue.sub("", rationale.rstrip(), count=1).lstrip()
    may_go_on = run_on is None and not complete
    try:
        labels = {
            _answer(rules.read, example.choices, _rest(text, match), may_go_on) for match in matches
        }
        if len(labels) > 1:
            raise _UnusableError(SEVERAL)
    except _UnusableError as unusable:
        return ParseFailure(example.id, unusable.reason, rationale, raw)
    label = labels.pop()
    return Annotation(example.id, rationale, label, label != _as_agreed(format, answer)[1])


def _rest(text: str, marker: re.Match[str]) -> str:
    """The text after a marker, up to and including the line's end."""
    line, newline, _ = text[marker.end() :].lstrip().removeprefix(":").lstrip().partition("\n")
    if text[: marker.start()].rstrip().endswith(_BOLD):
        # As in **So the answer is** neutral., or **So the answer is neutral.**
        line = line.strip().removeprefix(_BOLD).removesuffix(_BOLD)
    return line + newline


def _answer(read: _ReadLabel, choices: tuple[str, ...], rest: str, may_go_on: bool) -> str:
    """The label from what follows a marker."""
    line = rest.strip()
    if boxed := _BOXED.match(line):
        # Its bracket is closed, so it is whole.
        return read(boxed["answer"].strip(), choices, False)
    if set_in := _SET_IN.fullmatch(line):
        line = set_in["answer"].strip() + set_in["stop"]
    return read(line, choices, may_go_on and not rest.endswith("\n"))


def plain_text(text: str) -> str:
    """Letters and digits only, case-folded: equal for two spellings of one choice."""
    return re.sub(r"[\W_]+", "", text).casefold()


def _named(text: str, choices: tuple[str, ...]) -> set[str]:
    """The choices equal to `text`, full stops aside; if there are none, those of equal letters."""
    written = text.strip().removesuffix(".")
    exact = {choice for choice in choices if written == choice.strip().removesuffix(".")}
    plain = plain_text(text)
    return exact or {choice for choice in choices if plain and plain == plain_text(choice)}


def _read_closed(answer: str, choices: tuple[str, ...], at_end: bool) -> str:
    """One of a few labels, as in ``neutral`` or ``Neutral.``."""
    named = _named(answer, choices)
    if len(named) == 1:
        return named.pop()
    plain = plain_text(answer)
    if at_end and len(plain) >= _MIN_PREFIX:
        begun = [choice for choice in choices if plain_text(choice).startswith(plain)]
        if len(begun) == 1:
            return begun[0]
    mentioned = [choice for choice in choices if plain_text(choice) in plain]
    raise _UnusableError(SEVERAL if len(mentioned) > 1 else NOT_IN_SET)


def _read_choice(answer: str, choices: tuple[str, ...], at_end: bool) -> str:
    """A lettered choice, as in ``(d) math problem.``"""
    letters = _LETTER.findall(answer)
    if len(letters) > 1:
        raise _UnusableError(SEVERAL)
    if letters:
        before, letter, after = _LETTER.split(answer)
    else:
        named = _named(answer, choices)
        if len(named) == 1:
            return named.pop()
        bare = _BARE_LETTER.fullmatch(answer)
        if not bare:
            raise _UnusableError(NOT_A_CHOICE)
        before, letter, after = "", bare[1], bare[2] or ""
    place = ord(letter.lower()) - ord("a")
    if place >= len(choices) or before.strip():
        raise _UnusableError(NOT_A_CHOICE)
    chosen, plain = choices[place], plain_text(after)
    named = _named(after, choices)
    if not plain or chosen in named:
        return chosen
    if named:
        raise _UnusableError(DISAGREE)
    # From here on the text is not a choice, but may be a variant of the letter's.
    whole_words = after.strip().rstrip(".").casefold() + " "
    if chosen.casefold().startswith(whole_words) or (
        at_end and plain_text(chosen).startswith(plain)
    ):
        return chosen
    if difflib.SequenceMatcher(None, plain, plain_text(chosen)).ratio() >= _SAME_WORD:
        return chosen
    raise _UnusableError(NOT_A_CHOICE)


def _read_equation(answer: str, choices: tuple[str, ...], at_end: bool) -> str:
    """An expression, as in ``(84 / 2).``; brackets are optional."""
    del choices
    equation = answer.rstrip().translate(_SIGNS)
    # Without a full stop or a closing bracket, more digits might have followed.
    if at_end and not equation.endswith((".", ")")):
        raise _UnusableError(CUT_SHORT)
    equation = equation.removesuffix(".").rstrip()
    left, equals, right = equation.partition("=")
    try:
        # The right value may follow: (84 / 2) = 42.
        if equals and evaluate(left) == evaluate(right):
            return left.strip()
        evaluate(equation)
    except EquationError as error:
        raise _UnusableError(f"{NOT_ARITHMETIC}: {error.reason}") from error
    return equation


def _read_text(answer: str, choices: tuple[str, ...], at_end: bool) -> str:
    """One of the example's choices if it has any, else the line without its full stop."""
    if choices:
        return _read_closed(answer, choices, at_end)
    label = answer.removesuffix(".").strip()
    if not label:
        raise _UnusableError(EMPTY)
    if at_end and not answer.endswith("."):
        raise _UnusableError(CUT_SHORT)
    return label


_PREMISE = re.compile(r"(?:^|\n)[ \t]*Premise:")
_QUESTION = re.compile(r"(?:^|\n)[ \t]*Q:")
# How chat models introduce an answer whatever the exemplars show.
_CHAT = (
    re.compile(r"(?:#+ *)?\b(?:the )?final answer\b(?: is\b)?:?", re.IGNORECASE),
    re.compile(r"\$*(?=\\boxed\{)"),
    # Not at the start, where it repeats the prompt's last word.
    re.compile(r"\n\s*\**Answer\**:\**", re.IGNORECASE),
)
_SO_ANSWER = (
    re.compile(r"So the answer is"),
    re.compile(r"\b(?:so )?the answer is\b:?", re.IGNORECASE),
    *_CHAT,
)
_ANSWER_CUE = re.compile(r"\A\**A(?:nswer)?:\**")
_FORMATS = {
    "esnli": _Format(
        _PREMISE,
        (
            re.compile(r"(?:^|\n)\s*Answer:"),
            re.compile(r"(?:^|\n)\s*\*+Answer(?::\*+|\*+:)"),
            *_CHAT,
        ),
        _read_closed,
        re.compile(r"\A\**Reasonings?:\**"),
    ),
    "anli": _Format(_PREMISE, _SO_ANSWER, _read_closed, _ANSWER_CUE),
    "cqa": _Format(_QUESTION, _SO_ANSWER, _read_choice, _ANSWER_CUE),
    "svamp": _Format(
        _QUESTION, (re.compile(r"The answer is"), *_SO_ANSWER[1:]), _read_equation, _ANSWER_CUE
    ),
    # For the demo, and for a user's own data set with METRIC exact and equation.
    "demo": _Format(_QUESTION, _SO_ANSWER, _read_closed, _ANSWER_CUE),
    "own": _Format(_QUESTION, _SO_ANSWER, _read_text, _ANSWER_CUE),
    "own_equation": _Format(_QUESTION, _SO_ANSWER, _read_equation, _ANSWER_CUE),
}
# The formats that `parse_release` reads.
RELEASED = ("esnli", "anli", "cqa", "svamp")
FORMATS = tuple(_FORMATS)


def _as_agreed(format: str, raw: str) -> tuple[str, str]:
    """The (rationale, label) of an output in the agreed format; blanks for any other.

    Our own formats agree on ``R So the answer is L.`` up to the end or a line's end.
    """
    if format in RELEASED:
        return parse_release(format, raw)
    text = _QUESTION.split(raw)[0].strip()
    rationale, marker, answer = text.partition("So the answer is ")
    line = answer.partition("\n")[0].rstrip()
    if not marker or not line.endswith("."):
        return " ", " "
    return rationale.strip(), line.removesuffix(".")


def parse_release(format: str, raw: str) -> tuple[str, str]:
    """The (rationale, label) that the paper's published code reads from an output.

    Reproduced for its published accuracies only: it drops the last character of ANLI's labels
    whatever it is, stops at the last bracket of an equation, and turns what it cannot read into a
    blank, here always " ".
    """
    if format == "esnli":
        rationale = raw.split("Answer:")[0].rstrip()
        _, marker, rest = raw.partition("Answer: ")
        return rationale, rest.split("Answer: ")[0].split("Premise")[0].rstrip() if marker else " "
    marker = "The answer is" if format == "svamp" else "So the answer is"
    parts = raw.split("Premise:" if format == "anli" else "Q:")[0].rstrip().split(marker)
    if len(parts) != 2:
        return " ", " "
    rationale, answer = parts[0].rstrip(), parts[1]
    if format == "anli":
        return rationale, answer.lstrip()[:-1]
    if format == "svamp":
        bracketed = re.search(r"\(.*\)", answer)
        return rationale, bracketed[0] if bracketed else " "
    lettered = re.split(r"\(.\)", answer)
    label = lettered[1].strip().removesuffix(".") if len(lettered) > 1 else ""
    return rationale, label or " "
