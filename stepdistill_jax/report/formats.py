"""How a report writes names and numbers."""

from __future__ import annotations

from stepdistill_jax.report.document import Entry, missing, number
from stepdistill_jax.report.statistics import Crossing
from stepdistill_jax.report.variants import Recipe, StudentModel, Task, Variant, VariantKey
from stepdistill_jax.spec import TEACHER

_DATASETS = {"esnli": "e-SNLI", "anli": "ANLI", "cqa": "CQA", "svamp": "SVAMP"}
_METHODS = {
    "standard": "standard",
    "step_by_step": "step-by-step",
    "single_task": "single-task",
    "rationale_as_input": "rationale as input",
    "pinto": "PINTO",
    "teacher": "few-shot teacher",
}
_LABELS = {"gold": "gold labels", "teacher": "teacher labels", "none": "no labels"}

NOT_RUN = missing("not run")


def dataset(name: str) -> str:
    """The paper's spelling."""
    return _DATASETS.get(name, name)


def task(value: Task) -> str:
    """The data set, and the training split if it is not train."""
    name = dataset(value.dataset)
    if value.train_split == "train":
        return name
    return f"{name} (trained on {value.train_split})"


def labels(name: str) -> str:
    """Where the training labels come from."""
    return _LABELS.get(name, f"{name} labels")


def added(augment: str) -> str:
    """The added inputs, to follow the labels."""
    return f", with {augment} added" if augment else ""


def method(recipe: Recipe, *, with_labels: bool = False, with_added: bool = True) -> str:
    """A method and what distinguishes it from others of the same name."""
    parts = [_METHODS.get(recipe.method, recipe.method)]
    if recipe.rationales == "shuffled":
        parts.append("shuffled rationales (control)")
    elif recipe.rationales not in ("none", TEACHER):
        parts.append(f"{recipe.rationales} rationales")
    if recipe.triage:
        parts.append(f"triage {recipe.triage}")
    text = ", ".join(parts) + (added(recipe.augment) if with_added else "")
    if with_labels and recipe.method != TEACHER:
        text += f", {labels(recipe.labels)}"
    return text


def student(value: StudentModel) -> str:
    """A model, its size and its initial parameters."""
    if value.model == TEACHER:
        return TEACHER
    start = f"from {value.initial}" if value.initial else "from random parameters"
    return f"{value.model}, {parameters(value.parameters)}, {start}"


def data_and_model(key: VariantKey) -> str:
    """What compared methods share: data set, labels, added inputs and model."""
    start = f" from {key.student.initial}" if key.student.initial else ""
    data = f"{task(key.task)}, {labels(key.recipe.labels)}{added(key.recipe.augment)}"
    return f"{data}, {key.student.model}{start}"


def parameters(count: int | None) -> str:
    """The size of a model."""
    if count is None:
        return "unknown size"
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return f"{significant(count / unit)}{name}"
    return str(count)


def significant(value: float) -> str:
    """At least three significant digits without an exponent: 0.215, 24.8, 12,345."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}" if value >= 1 else f"{value:.3g}"


def whole(value: float) -> str:
    """A count with thousands separators."""
    return f"{value:,.0f}"


def large(value: float) -> str:
    """A large count with an exponent: 1.20e15."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: float, digits: int = 2) -> str:
    """A share in percent, without the sign."""
    return f"{100 * value:.{digits}f}"


def fraction(value: float) -> str:
    """A fraction of the data."""
    return f"{100 * value:.4g}%"


def points(value: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * value:+.2f}".replace("-", "−")


def count(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def accuracy_text(variant: Variant) -> str:
    """Mean ± standard error over seeds (number of seeds)."""
    if variant.key.recipe.method == TEACHER:
        return percent(variant.mean)
    if variant.error is None:
        return f"{percent(variant.mean)} (1)"
    return f"{percent(variant.mean)} ± {percent(variant.error)} ({len(variant.lines)})"


def accuracy(variant: Variant | None) -> Entry:
    """The accuracy of a variant, or that it was not run."""
    return number(variant, accuracy_text, "not run")


def p_value(value: float) -> str:
    """Never 0."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def crossing(value: Crossing) -> str:
    """The share of the labels that was needed, or that none was enough."""
    if value.fraction is None:
        return "not reached"
    return ("at most " if value.at_most else "") + f"{100 * value.fraction:.1f}%"
