"""The model card of an exported student: what it is, its scores, and how to prompt it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stepdistill_jax.run.results import Result, RunFacts, scoring_text
from stepdistill_jax.spec import READER_METHODS, SEPARATOR
from stepdistill_jax.text import markdown, markdown_code

_METHODS = {
    "step_by_step": "Distilling Step-by-Step (Hsieh et al., 2023, arXiv 2305.02301): trained on "
    "labels and, after a separate prefix, on rationales",
    "standard": "standard finetuning on labels alone",
    "single_task": "single-task training (Hsieh et al., 2023, Eq. 5): writes a rationale and then "
    "the label",
    "rationale_as_input": "rationale as input (Hsieh et al., 2023, Eq. 2): reads the teacher's "
    "rationale, so it needs the teacher for every input",
    "pinto": "PINTO (Wang et al., 2022, arXiv 2211.01562): reads the teacher's rationale, so it "
    "needs the teacher for every input; trained to be less certain of its label when the "
    "rationale is perturbed",
}


@dataclasses.dataclass(frozen=True)
class Student:
    """The student that a card describes.

    Attributes:
        facts: of the run.
        step: optimizer steps done.
        alpha: weight of the label loss at the first step; None = there is no other loss.
        initial: INITIAL_CHECKPOINT; None = random parameters.
        parameters: number of parameters.
        prefixes: prefix of an input for its label and, if trained, for its rationale.
        max_input_length: tokens that an input was truncated to, EOS included.
        max_label_length: maximum tokens of a label.
        example: an input (with the rationale, if the student reads one) and the student's label;
            None = no prediction was kept.
        alpha_end: alpha at the last step; None = constant.
        marker: text between rationale and label, if the student writes both.
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
    """Markdown with the hub's front matter.

    Args:
        student: to describe.
        results: of the run; the card shows those of the student's step.
    """
    facts = student.facts
    return (
        "\n\n".join(
            [
                "---\nlibrary_name: transformers\ntags: [t5, distilling-step-by-step]\n---",
                f"# {markdown(f'{facts.model} on {facts.dataset}')}",
                f"A T5 with {student.parameters:,} parameters, trained with stepdistill_jax.",
                _table(("", ""), _facts(student)),
                "## Scores",
                _scores([result for result in results if result.step == student.step]),
                "## Prompting",
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
        alpha += f" at the first step, {student.alpha_end:g} at the last step"
    return [
        ("method", f"{_METHODS[facts.method]}{alpha}"),
        ("data", f"{facts.dataset}, {facts.fraction:.4g} of its training examples"),
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
            "the step was chosen on this split"
            if result.split == result.selected_on
            else f"the step was chosen on {result.selected_on}"
            if result.selected_on != "none"
            else "",
            scoring_text(result.settings),
        )
        for result in results
    ]
    head = ("split", "label accuracy", "standard error", "n", "", "scored with")
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _prompting(student: Student) -> str:
    label, *rest = student.prefixes
    prompt = f"Put {markdown_code(label)} (with the space) before the input"
    output = "Decode greedily: the output is the label."
    if student.facts.method in READER_METHODS:
        prompt += f", and `{SEPARATOR}` and the teacher's rationale after it"
        output += " All scores were measured with the teacher's rationale."
    if student.marker is not None:
        output = (
            f"Decode greedily: the output is a rationale, {markdown_code(student.marker)} and the "
            "label. Take the text after the last marker."
        )
    output += " The code below leaves out unknown tokens and sentinels; the scores count them."
    text = f"{prompt}. {output} Training truncated inputs to {student.max_input_length} tokens."
    if rest:
        text += (
            f" With the prefix {markdown_code(rest[0])} the student writes a rationale: allow more "
            "tokens."
        )
    return text


def _code(student: Student) -> str:
    placeholder = "your input here"
    if student.facts.method in READER_METHODS:
        placeholder += f"{SEPARATOR}the teacher's rationale here"
    text, answer = student.example or (placeholder, "")
    decoded = "tokenizer.decode(answer[0], skip_special_tokens=True)"
    if student.marker is not None:
        decoded += f".rpartition({student.marker!r})[2].strip()"
    comment = f"  # {answer!r}" if answer else ""
    return f"""from transformers import AutoTokenizer, T5ForConditionalGeneration

folder = "."  # the folder of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = T5ForConditionalGeneration.from_pretrained(folder)
text = {student.prefixes[0]!r} + {text!r}
inputs = tokenizer(text, truncation=True, return_tensors="pt")
answer = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)
print({decoded}){comment}"""
