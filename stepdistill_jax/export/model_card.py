"""The README of a student that is handed on: what it is, how good, and how to prompt it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stepdistill_jax.run.results import Result, RunFacts
from stepdistill_jax.spec import READER_METHODS, SEPARATOR

_METHODS = {
    "step_by_step": "Distilling Step-by-Step (Hsieh et al., 2023, arXiv 2305.02301): trained on "
    "labels and, after a prefix of its own, on rationales",
    "standard": "standard finetuning on labels alone",
    "single_task": "single-task training (Hsieh et al., 2023, Eq. 5): writes a rationale and then "
    "the label",
    "rationale_as_input": "rationale as input (Hsieh et al., 2023, Eq. 2): reads the teacher's "
    "rationale, so it needs the teacher for every input",
    "pinto": "PINTO (Wang et al., 2022, arXiv 2211.01562): reads the teacher's rationale, so it "
    "needs the teacher for every input; trained to be less sure of its label where the rationale "
    "is perturbed",
}


@dataclasses.dataclass(frozen=True)
class Student:
    """What the card says besides the scores.

    Attributes:
        facts: of the run.
        step: optimizer steps done.
        alpha: weight of the label loss at the first step; None where there is no other loss.
        initial: what training started from; None = random parameters.
        parameters: how many numbers the model has.
        prefixes: before an input for its label, and for its rationale where that was trained.
        max_input_length: tokens that an input was cut to, EOS included.
        max_label_length: tokens that an answer may have.
        example: an input (with the rationale, where the student reads one) and the label that the
            student gives, where they are at hand.
        alpha_end: what alpha has become at the last step; None = it stays.
        marker: the words between a rationale and the label, where the student writes both.
    """

    facts: RunFacts
    step: int
    alpha: float | None
    initial: str | None
    parameters: int
    prefixes: Sequence[str]
    max_input_length: int
    max_label_length: int
    example: tuple[str, str] | None = None
    alpha_end: float | None = None
    marker: str | None = None


def model_card(student: Student, results: Sequence[Result]) -> str:
    """Markdown with the front matter of the hub.

    Args:
        student: what was trained.
        results: of the run; those of the student's step are shown.
    """
    facts = student.facts
    return (
        "\n\n".join(
            [
                "---\nlibrary_name: transformers\ntags: [t5, distilling-step-by-step]\n---",
                f"# {facts.model} on {facts.dataset}",
                f"A T5 of {student.parameters:,} parameters, a student made with stepdistill_jax.",
                _table(("", ""), _facts(student)),
                "## Scores",
                _scores([result for result in results if result.step == student.step]),
                "## How to prompt it",
                _prompting(student),
                "```python\n" + _code(student) + "\n```",
            ]
        )
        + "\n"
    )


def _facts(student: Student) -> list[tuple[str, str]]:
    facts = student.facts
    alpha = "" if student.alpha is None else f"; the label loss has weight {student.alpha:g}"
    if alpha and student.alpha_end is not None:
        alpha += f" at first, {student.alpha_end:g} at the last step"
    return [
        ("method", f"{_METHODS[facts.method]}{alpha}"),
        ("data", f"{facts.dataset}, {facts.fraction:.4g} of its training rows"),
        ("labels trained on", facts.labels),
        ("rationales trained on", facts.rationales),
        ("started from", student.initial or "random parameters"),
        ("step", f"{student.step:,}"),
        ("seed", str(facts.seed)),
    ]


def _scores(results: Sequence[Result]) -> str:
    if not results:
        return "This step was not scored."
    rows = [
        (
            result.split,
            f"{result.accuracy:.2%}",
            f"{result.stderr:.2%}",
            f"{result.n:,}",
            "this split chose the step"
            if result.split == result.selected_on
            else f"step chosen on {result.selected_on}"
            if result.selected_on != "none"
            else "",
        )
        for result in results
    ]
    return _table(("split", "label accuracy", "standard error", "n", ""), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _prompting(student: Student) -> str:
    label, *rest = student.prefixes
    what = "the input"
    answer = "the answer is the label, decoded greedily"
    if student.facts.method in READER_METHODS:
        what += f", and after it `{SEPARATOR}` and the teacher's rationale"
        answer += ", and the scores are of answers with the rationale"
    if student.marker is not None:
        answer = (
            "the answer, decoded greedily, is a rationale, the words "
            f"`{student.marker}` and the label: take what follows the last of them"
        )
    text = (
        f"Put `{label}` (with the space) before {what}; {answer}. Inputs were cut to "
        f"{student.max_input_length} tokens in training."
    )
    if rest:
        text += f" After `{rest[0]}` instead it writes a rationale, which needs more new tokens."
    return text


def _code(student: Student) -> str:
    blank = "your input here"
    if student.facts.method in READER_METHODS:
        blank += f"{SEPARATOR}the teacher's rationale here"
    text, answer = student.example or (blank, "")
    written = "tokenizer.decode(answer[0], skip_special_tokens=True)"
    if student.marker is not None:
        written += f".rpartition({student.marker!r})[2].strip()"
    shown = f"  # {answer}" if answer else ""
    return f"""from transformers import AutoTokenizer, T5ForConditionalGeneration

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = T5ForConditionalGeneration.from_pretrained(folder)
text = {student.prefixes[0]!r} + {text!r}
inputs = tokenizer(text, truncation=True, return_tensors="pt")
answer = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)
print({written}){shown}"""
