"""How settings and numbers are written."""

from __future__ import annotations

from stepdistill_jax.report.document import MISSING, NUMBER, Entry
from stepdistill_jax.report.statistics import Crossing
from stepdistill_jax.report.tables import TEACHER, Cell, Recipe, Setting, Student, Task

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

NOT_RUN = Entry("not run", MISSING)
NOT_KNOWN = Entry("not known", MISSING)
# Significant at this level, after Holm's correction.
ALPHA = 0.05


def dataset(name: str) -> str:
    """As papers write it."""
    return _DATASETS.get(name, name)


def task(value: Task) -> str:
    """A data set, with the split trained on where that is another than train."""
    name = dataset(value.dataset)
    if value.train_split == "train":
        return name
    return f"{name} (trained on {value.train_split})"


def labels(name: str) -> str:
    """Where training labels are from."""
    return _LABELS.get(name, f"{name} labels")


def recipe(value: Recipe, *, with_labels: bool = False) -> str:
    """A method and what sets it apart from others of the same name."""
    parts = [_METHODS.get(value.method, value.method)]
    if value.rationales == "shuffled":
        parts.append("rationales shuffled (control)")
    elif value.rationales not in ("none", TEACHER):
        parts.append(f"{value.rationales} rationales")
    if value.triage:
        parts.append(f"triage {value.triage}")
    if value.augment:
        parts.append(f"with {value.augment} added")
    if with_labels and value.method != TEACHER:
        parts.append(labels(value.labels))
    return ", ".join(parts)


def student(value: Student) -> str:
    """A model, its size and its start."""
    if value.model == TEACHER:
        return TEACHER
    start = f"from {value.initial}" if value.initial else "from random parameters"
    return f"{value.model}, {parameters(value.parameters)}, {start}"


def where(value: Setting) -> str:
    """What a comparison holds fixed but for the fraction: data set, labels, added inputs, model."""
    added = f", with {value.recipe.augment} added" if value.recipe.augment else ""
    start = f" from {value.student.initial}" if value.student.initial else ""
    return f"{task(value.task)}, {labels(value.recipe.labels)}{added}, {value.student.model}{start}"


def parameters(count: int | None) -> str:
    """A model's size."""
    if count is None:
        return "size not known"
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return f"{significant(count / unit)}{name}"
    return str(count)


def significant(value: float) -> str:
    """Three significant digits or more, without an exponent, as 0.215, 24.8, 12,345."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}" if value >= 1 else f"{value:.3g}"


def large(value: float) -> str:
    """A count of very many, as 1.2e15."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: float, digits: int = 2) -> str:
    """A share as percent, without the sign."""
    return f"{100 * value:.{digits}f}"


def share(value: float) -> str:
    """A fraction of the data."""
    return f"{100 * value:.4g}%"


def points(value: float) -> str:
    """A difference of accuracies, signed, in percentage points."""
    return f"{100 * value:+.2f}".replace("-", "−")


def count(number: int, noun: str) -> str:
    """So many of a thing: ``1 run``, ``2 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def seeds(number: int) -> str:
    """How many."""
    return count(number, "seed")


def accuracy(cell: Cell) -> str:
    """Mean, standard error over seeds where there are several, and how many."""
    if cell.setting.recipe.method == TEACHER:
        return percent(cell.mean)
    if cell.error is None:
        return f"{percent(cell.mean)} (1)"
    return f"{percent(cell.mean)} ± {percent(cell.error)} ({len(cell.lines)})"


def entry(cell: Cell | None) -> Entry:
    """The accuracy of a cell, or that it was not run."""
    return NOT_RUN if cell is None else Entry(accuracy(cell), NUMBER)


def p_value(value: float) -> str:
    """Never as 0."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def crossing(value: Crossing) -> str:
    """A share of the labels, or that none was enough."""
    if value.fraction is None:
        return "not reached"
    return ("at most " if value.at_most else "") + f"{100 * value.fraction:.1f}%"
