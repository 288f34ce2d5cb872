"""The few-shot prompt: exemplars with rationale and label, then the example to annotate.

The paper's prompt (section 3.1) in the formats of the released outputs, as one text to continue or
as turns of a chat. Exemplars are read from JSON: ours ship with the package, a user's are rows of
the user's data set.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

from stepdistill_jax import records
from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.data.parse import parse
from stepdistill_jax.records import Example, ParseFailure
from stepdistill_jax.spec import SEPARATOR, InputError
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.exemplar_file import Exemplar, read
from stepdistill_jax.teacher.requests import ANSWER, HINT, Message, Request

PROMPT_FILE = "prompt.json"
_PURPOSES = (ANSWER, HINT)
# In a hint's prompt the exemplars have hints too, which shows the teacher how to use one.
_HINT = "Hint: the correct answer is {}."


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the prompt of one format of `parse.FORMATS` looks.

    Attributes:
        question: of an example.
        cue: the end of a plain text, which the teacher continues.
        answer: with ``{rationale}`` and ``{label}``.
        label: (label, choices) -> the label as an answer writes it.
        stop: starts a question that the teacher writes itself.
    """

    question: Callable[[Example], str]
    cue: str
    answer: str
    label: Callable[[str, tuple[str, ...]], str]
    stop: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt without the example.

    Attributes:
        format: of `parse.FORMATS`, for parsing the responses.
        form: ``chat`` or ``completion``.
        instruction: the chat's system message, or the first lines of a completion; "" = none.
        exemplars: at least one.
        source: name of their file, for messages.
    """

    format: str
    form: str
    instruction: str
    exemplars: tuple[Exemplar, ...]
    source: str = ""

    def request(
        self, example: Example, extract: ExtractConfig, purpose: str = ANSWER, sample: int = 0
    ) -> Request:
        """The request about one example.

        A sample's seed is SAMPLING_SEED plus its number: with one seed for all samples an endpoint
        would repeat its completion.

        Raises:
            InputError: the input does not have the format's shape.
        """
        is_chat = self.form == "chat"
        decoding = extract.decoding
        return Request(
            example_id=example.id,
            purpose=purpose,
            sample=sample,
            model=extract.teacher_model,
            messages=self.messages(example, purpose) if is_chat else (),
            prompt="" if is_chat else self.text(example, purpose),
            stop=self.stop,
            decoding=dataclasses.replace(decoding, seed=decoding.seed + sample),
            extra=extract.extra,
        )

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a completion."""
        return (f"\n{_LAYOUTS[self.format].stop}",)

    @functools.cached_property
    def hash(self) -> str:
        """A sha256 of all that decides a request except the example, the model and the decoding.

        It is computed from whole prompts about the first exemplar, so it changes when they do.
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
        """The text before every example, for people; a chat's turns have their role as heading."""
        if self.form == "completion":
            return self._prefixes[ANSWER]
        return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in self._turns[ANSWER])

    def messages(self, example: Example, purpose: str = ANSWER) -> tuple[Message, ...]:
        """The chat: instruction, exemplars as turns, the example as the last turn."""
        return (*self._turns[purpose], Message("user", self._question(example, purpose)))

    def text(self, example: Example, purpose: str = ANSWER) -> str:
        """The plain text, which ends where the teacher's rationale starts."""
        cue = _LAYOUTS[self.format].cue
        return f"{self._prefixes[purpose]}{self._question(example, purpose)}\n{cue}"

    def answer(self, exemplar: Exemplar) -> str:
        """An exemplar's answer, as the teacher should write it."""
        layout = _LAYOUTS[self.format]
        example = exemplar.example
        label = layout.label(example.label or "", example.choices)
        return layout.answer.format(rationale=exemplar.rationale, label=label)

    @functools.cached_property
    def _turns(self) -> dict[str, tuple[Message, ...]]:
        """Purpose -> the turns before the example."""
        first = [Message("system", self.instruction)] if self.instruction else []
        roles = ("user", "assistant")
        return {
            purpose: (
                *first,
                *(Message(*turn) for p in pairs for turn in zip(roles, p, strict=True)),
            )
            for purpose, pairs in self._pairs.items()
        }

    @functools.cached_property
    def _prefixes(self) -> dict[str, str]:
        """Purpose -> the plain text before the example."""
        first = [self.instruction] if self.instruction else []
        cue = _LAYOUTS[self.format].cue
        return {
            purpose: "".join(
                f"{part}\n\n" for part in (*first, *(f"{q}\n{cue} {a}" for q, a in pairs))
            )
            for purpose, pairs in self._pairs.items()
        }

    @property
    def _pairs(self) -> dict[str, list[tuple[str, str]]]:
        """Purpose -> (question, answer) of each exemplar."""
        return {
            purpose: [(self._question(e.example, purpose), self.answer(e)) for e in self.exemplars]
            for purpose in _PURPOSES
        }

    def _question(self, example: Example, purpose: str) -> str:
        layout = _LAYOUTS[self.format]
        question = layout.question(example)
        if purpose == ANSWER:
            return question
        if example.label is None:
            raise InputError(
                f"{example.where}: no gold label to give as a hint. Set HINT_WRONG=False."
            )
        return f"{question}\n{_HINT.format(layout.label(example.label, example.choices))}"


def load(extract: ExtractConfig, data: DataConfig) -> Prompt:
    """The prompt of PROMPT_FILE, else the one shipped for DATASET, in the form of PROMPT_FORM.

    Raises:
        InputError: none is shipped for this data, the file is malformed, or an exemplar's answer
            would not be parsed as its label. The message names file and exemplar.
    """
    file = read(data, extract.prompt_file)
    prompt = Prompt(file.format, extract.prompt_form, file.instruction, file.exemplars, file.source)
    for number, exemplar in enumerate(prompt.exemplars, start=1):
        _check(prompt, exemplar, f"{file.source}: exemplar {number}")
    return prompt


def _check(prompt: Prompt, exemplar: Exemplar, where: str) -> None:
    """Raises InputError where an exemplar's answer is not parsed as its rationale and label."""
    layout, example = _LAYOUTS[prompt.format], exemplar.example
    layout.question(example)
    answer = prompt.answer(exemplar)
    parsed = parse(prompt.format, example, answer, complete=True)
    # As the answer writes it, or as the example has it: ( 84.0 / 2.0 ) is written as (84 / 2).
    labels = (example.label, layout.label(example.label or "", example.choices))
    if isinstance(parsed, ParseFailure):
        result = f"a failure ({parsed.reason})"
    elif parsed.rationale == exemplar.rationale and parsed.label in labels:
        return
    else:
        result = f"rationale {parsed.rationale!r:.100} and label {parsed.label!r:.60}"
    raise InputError(
        f"{where}: its answer {answer!r:.200} would be parsed as {result}. Remove line breaks from "
        "the label, and texts that start an answer or a question from the rationale."
    )


def write(folder: pathlib.Path, prompt: Prompt, prefix_tokens: int | None) -> None:
    """Writes ``prompt.json``, for people; `prefix_tokens` None = not counted."""
    content = {
        "hash": prompt.hash,
        "format": prompt.format,
        "tokens": prefix_tokens,
        "prefix": prompt.prefix_text(),
        "exemplars": [
            {
                "id": exemplar.example.id,
                "input": exemplar.example.input,
                "choices": list(exemplar.example.choices),
                "rationale": exemplar.rationale,
                "label": exemplar.example.label,
            }
            for exemplar in prompt.exemplars
        ],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    records.write_atomic(folder / PROMPT_FILE, text)


def written_prefix_tokens(folders: Iterable[pathlib.Path], prompt_hash: str) -> int | None:
    """The length of a prompt in the first ``prompt.json`` of the folders that has it."""
    for folder in folders:
        try:
            content = json.loads((folder / PROMPT_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            # Missing or damaged; it is written anew in any case.
            continue
        if isinstance(content, dict) and content.get("hash") == prompt_hash:
            tokens = content.get("tokens")
            if isinstance(tokens, int):
                return tokens
    return None


def _sentences(example: Example) -> str:
    premise, *others = example.input.split(SEPARATOR)
    if len(others) != 1:
        raise InputError(
            f"{example.where}: {len(others) + 1} texts, expected premise and hypothesis. Write "
            f"{SEPARATOR} between them in the input."
        )
    return f"Premise: {premise}\nHypothesis: {others[0]}"


def _q(example: Example) -> str:
    # The separator has no meaning for a teacher.
    text = example.input.replace(SEPARATOR, "\n")
    return f"Q: {text}"


def _plain_label(label: str, choices: Sequence[str]) -> str:
    del choices
    return label


def _lettered(label: str, choices: Sequence[str]) -> str:
    letter = chr(ord("a") + list(choices).index(label))
    return f"({letter}) {label}"


def _equation(label: str, choices: Sequence[str]) -> str:
    """``( 84.0 / 2.0 )`` of the data set as ``(84 / 2)``, which has the same value."""
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
