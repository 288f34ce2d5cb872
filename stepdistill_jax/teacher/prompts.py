"""What a teacher is shown: a few rows with rationale and label, then the row to answer.

The paper's few-shot prompt (section 3.1), in the formats of the released outputs, as one text to be
continued or as turns of a chat. Exemplars are read from JSON: ours ship with the package, a user's
own are rows of the user's own data set.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence

from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.data.parse import parse
from stepdistill_jax.records import Example, ParseFailure
from stepdistill_jax.spec import SEPARATOR, InputError
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.exemplar_file import Exemplar, read
from stepdistill_jax.teacher.requests import ANSWER, HINT, Message, Request

__all__ = ["Exemplar", "Prompt", "load"]

_PURPOSES = (ANSWER, HINT)
# Of the rows given with their gold label; ours too, so that the teacher sees how it is used.
_HINT = "Hint: the correct answer is {}."


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How one format of `parse.FORMATS` is asked for.

    Attributes:
        question: of an input.
        cue: what a plain text ends with, for the teacher to go on from.
        answer: with ``{rationale}`` and ``{label}``.
        label: (label, choices) -> how the answer gives it.
        stop: begins a question of the teacher's own.
    """

    question: Callable[[Example], str]
    cue: str
    answer: str
    label: Callable[[str, tuple[str, ...]], str]
    stop: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """All of a prompt but the row.

    Attributes:
        format: of `parse.FORMATS`: how the answers are read.
        form: ``chat`` or ``completion``.
        instruction: the chat's system message, and the first lines of a completion; "" = none.
        exemplars: at least one.
        source: the file they are from, for messages.
    """

    format: str
    form: str
    instruction: str
    exemplars: tuple[Exemplar, ...]
    source: str = ""

    def request(
        self, example: Example, extract: ExtractConfig, purpose: str = ANSWER, sample: int = 0
    ) -> Request:
        """The question about one row.

        A sample's seed is SAMPLING_SEED plus its number: with one seed for all of them an endpoint
        would write the same answer each time.

        Raises:
            InputError: the row's input is not of the format's shape.
        """
        is_chat = self.form == "chat"
        decoding = extract.decoding
        return Request(
            row_id=example.id,
            purpose=purpose,
            sample=sample,
            model=extract.teacher_model,
            messages=self.messages(example, purpose) if is_chat else (),
            prompt="" if is_chat else self.text(example, purpose),
            stop=self.stop,
            decoding=dataclasses.replace(decoding, seed=decoding.seed + sample),
        )

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (f"\n{_LAYOUTS[self.format].stop}",)

    @functools.cached_property
    def hash(self) -> str:
        """A sha256 of all that decides what is asked, but for the row, the model and its decoding.

        Made of whole prompts about the first exemplar, so it changes with whatever they would.
        """
        example = self.exemplars[0].example
        shown = [
            [dataclasses.astuple(message) for message in self.messages(example, purpose)]
            if self.form == "chat"
            else self.text(example, purpose)
            for purpose in _PURPOSES
        ]
        content = json.dumps([self.form, self.format, shown, self.stop], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    def prefix_text(self) -> str:
        """What stands before every row's question, to read; a chat's turns under their roles."""
        if self.form == "completion":
            return self._prefixes[ANSWER]
        return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in self._turns[ANSWER])

    def messages(self, example: Example, purpose: str = ANSWER) -> tuple[Message, ...]:
        """The chat: instruction, exemplars in turns, the row as the last turn."""
        return (*self._turns[purpose], Message("user", self._question(example, purpose)))

    def text(self, example: Example, purpose: str = ANSWER) -> str:
        """The plain text, which ends where the teacher's rationale begins."""
        cue = _LAYOUTS[self.format].cue
        return f"{self._prefixes[purpose]}{self._question(example, purpose)}\n{cue}"

    def answer(self, exemplar: Exemplar) -> str:
        """An exemplar's answer, as a teacher should write it."""
        layout = _LAYOUTS[self.format]
        example = exemplar.example
        label = layout.label(example.label or "", example.choices)
        return layout.answer.format(rationale=exemplar.rationale, label=label)

    @functools.cached_property
    def _turns(self) -> dict[str, tuple[Message, ...]]:
        """Purpose -> the turns before the row's."""
        first = [Message("system", self.instruction)] if self.instruction else []
        found = {}
        for purpose in _PURPOSES:
            turns = list(first)
            for exemplar in self.exemplars:
                turns.append(Message("user", self._question(exemplar.example, purpose)))
                turns.append(Message("assistant", self.answer(exemplar)))
            found[purpose] = tuple(turns)
        return found

    @functools.cached_property
    def _prefixes(self) -> dict[str, str]:
        """Purpose -> the plain text before the row's question."""
        cue = _LAYOUTS[self.format].cue
        found = {}
        for purpose in _PURPOSES:
            parts = [self.instruction] if self.instruction else []
            for exemplar in self.exemplars:
                question = self._question(exemplar.example, purpose)
                parts.append(f"{question}\n{cue} {self.answer(exemplar)}")
            found[purpose] = "".join(f"{part}\n\n" for part in parts)
        return found

    def _question(self, example: Example, purpose: str) -> str:
        layout = _LAYOUTS[self.format]
        question = layout.question(example)
        if purpose == ANSWER:
            return question
        if example.label is None:
            raise InputError(
                f"{example.where}: no gold label to give as a hint; set HINT_WRONG=False"
            )
        return f"{question}\n{_HINT.format(layout.label(example.label, example.choices))}"


def load(extract: ExtractConfig, data: DataConfig) -> Prompt:
    """The prompt of PROMPT_FILE, else the one shipped for DATASET, in the form of PROMPT_FORM.

    Raises:
        InputError: there is none for this data, it is malformed (naming the file and the
            exemplar), or an exemplar's answer would not be read as its label.
    """
    found = read(data, extract.prompt_file)
    prompt = Prompt(
        format=found.format,
        form=extract.prompt_form,
        instruction=found.instruction,
        exemplars=found.exemplars,
        source=found.source,
    )
    for number, exemplar in enumerate(prompt.exemplars, start=1):
        _check(prompt, exemplar, f"{found.source}: exemplar {number}")
    return prompt


def _check(prompt: Prompt, exemplar: Exemplar, where: str) -> None:
    """Refuses an exemplar that teaches what cannot be read, or has no shape to be shown in."""
    _LAYOUTS[prompt.format].question(exemplar.example)
    answer = prompt.answer(exemplar)
    found = parse(prompt.format, exemplar.example, answer, complete=True)
    example = exemplar.example
    # As the answer gives it, or as the row has it: ( 84.0 / 2.0 ) is shown as (84 / 2).
    meant = (example.label, _LAYOUTS[prompt.format].label(example.label or "", example.choices))
    if isinstance(found, ParseFailure):
        read_as = f"a failure ({found.reason})"
    elif found.rationale == exemplar.rationale and found.label in meant:
        return
    else:
        read_as = f"rationale {found.rationale!r:.100} and label {found.label!r:.60}"
    raise InputError(
        f"{where}: its answer {answer!r:.200} would be read as {read_as}, not as it is meant; take "
        "line breaks out of the label, and out of the rationale what introduces an answer or "
        "another question"
    )


def _sentences(example: Example) -> str:
    premise, *others = example.input.split(SEPARATOR)
    if len(others) != 1:
        raise InputError(
            f"{example.where}: {len(others) + 1} texts, where premise and hypothesis are expected; "
            f"write {SEPARATOR} between them in the input"
        )
    return f"Premise: {premise}\nHypothesis: {others[0]}"


def _q(example: Example) -> str:
    # To a teacher the separator means nothing.
    shown = example.input.replace(SEPARATOR, "\n")
    return f"Q: {shown}"


def _plain_label(label: str, choices: Sequence[str]) -> str:
    del choices
    return label


def _lettered(label: str, choices: Sequence[str]) -> str:
    letter = chr(ord("a") + list(choices).index(label))
    return f"({letter}) {label}"


def _equation(label: str, choices: Sequence[str]) -> str:
    """``( 84.0 / 2.0 )`` of the data set as ``(84 / 2)``, of the same value."""
    del choices
    text = re.sub(r"(\d)\.0+(?![\d.])", r"\1", label.strip())
    return re.sub(r"\s+\)", ")", re.sub(r"\(\s+", "(", text))


_SO = "{rationale} So the answer is {label}."
_LAYOUTS = {
    "esnli": _Layout(
        _sentences, "Reasonings:", "{rationale}\nAnswer: {label}", _plain_label, "Premise:"
    ),
    "anli": _Layout(_sentences, "Answer:", _SO, _plain_label, "Premise:"),
    "cqa": _Layout(_q, "A:", _SO, _lettered, "Q:"),
    "svamp": _Layout(_q, "A:", "{rationale} The answer is {label}.", _equation, "Q:"),
    "demo": _Layout(_q, "A:", _SO, _plain_label, "Q:"),
    "own": _Layout(_q, "A:", _SO, _plain_label, "Q:"),
    "own_equation": _Layout(_q, "A:", _SO, _plain_label, "Q:"),
}
