"""Tables of accuracy on all training data: the paper's two, every method, and best on test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from stepdistill_jax.report import paper, words
from stepdistill_jax.report.comparisons import Material
from stepdistill_jax.report.document import (
    MISSING,
    NUMBER,
    PAPER,
    Block,
    Entry,
    Paragraph,
    Section,
    Table,
)
from stepdistill_jax.report.predictions import Floor
from stepdistill_jax.report.tables import (
    TEACHER,
    Cell,
    Recipe,
    Scores,
    Setting,
    Student,
    Task,
    group,
    paper_order,
)

_NOT_IN_PAPER = Entry("not in the paper", MISSING)
_Item = TypeVar("_Item")
_LEGEND = (
    "Percent; mean ± standard error over seeds (number of seeds). One seed has no standard error."
)


def paper_tables(material: Material) -> Section:
    """Tables 1 and 2 in the paper's layout, for every model, with the paper's numbers beside."""
    scores = material.scores
    gold = [c for c in scores.students if c.setting.recipe.labels == "gold"]
    if not {c.setting.task.dataset for c in gold} & {*paper.DATASETS}:
        text = (
            f"None of the paper's data sets ({', '.join(map(words.dataset, paper.DATASETS))}) was "
            "run with gold labels, so that there is nothing to set beside its Tables 1 and 2."
        )
        return Section("paper", "The paper's Tables 1 and 2", (Paragraph(text),))
    blocks: list[Block] = [
        Paragraph(
            f"Gold labels, all training data. Columns headed “paper” repeat what the paper prints "
            f"for {paper.MODEL}, pretrained, mean over 4 seeds; its released code scores test "
            f"every 250 steps and never validation. Columns headed “ours” are this report's, of "
            f"the model that the caption names, its step selected on validation. {_LEGEND}"
        )
    ]
    for student in _unique(c.setting.student for c in gold):
        blocks += [
            _paper_table(scores, student, "Table 1. Rationales of different teachers",
                         paper.TABLE_1, _other_rationales(gold, student)),
            _paper_table(scores, student, "Table 2. Two tasks against one", paper.TABLE_2, ()),
        ]  # fmt: skip
    return Section("paper", "The paper's Tables 1 and 2", tuple(blocks))


def _paper_table(
    scores: Scores,
    student: Student,
    title: str,
    rows: Sequence[paper.Row],
    others: Sequence[Recipe],
) -> Table:
    run = {c.setting.task for c in scores.students if c.setting.student == student}
    missing = {*paper.DATASETS} - {task.dataset for task in run}
    tasks = sorted(run | {Task(dataset, "train") for dataset in missing}, key=paper_order)
    header, groups = ["method"], [""]
    for task in tasks:
        both = ["ours", "paper"] if task.dataset in paper.DATASETS else ["ours"]
        header += both
        groups += [words.task(task)] * len(both)
    lines = [
        _paper_row(scores, student, tasks, row.name, _recipe_of(row), row.accuracy) for row in rows
    ]
    lines += [
        _paper_row(scores, student, tasks, words.recipe(other), other, {}) for other in others
    ]
    caption = f"{title}. Ours: {words.student(student)}"
    return Table(caption, tuple(header), tuple(lines), tuple(groups))


def _paper_row(
    scores: Scores,
    student: Student,
    tasks: Sequence[Task],
    name: str,
    recipe: Recipe | None,
    printed: Mapping[str, float],
) -> tuple[Entry, ...]:
    row = [Entry(name)]
    for task in tasks:
        cell = recipe and scores.cells.get(Setting(task, student, recipe, 1.0))
        row.append(words.entry(cell or None))
        if task.dataset in printed:
            row.append(Entry(f"{printed[task.dataset]:.2f}", PAPER))
        elif task.dataset in paper.DATASETS:
            row.append(_NOT_IN_PAPER)
    return tuple(row)


def _recipe_of(row: paper.Row) -> Recipe | None:
    if row.rationales is None:
        return None
    return Recipe(row.method, "gold", row.rationales, "", "")


def _other_rationales(gold: Sequence[Cell], student: Student) -> list[Recipe]:
    """Of step-by-step, beside those in the paper's table."""
    recipes = (
        c.setting.recipe for c in gold if c.setting.student == student and c.setting.fraction == 1.0
    )
    return [
        recipe
        for recipe in _unique(recipes)
        if recipe.method == "step_by_step"
        and (recipe.rationales != TEACHER or recipe.triage or recipe.augment)
    ]


def methods(material: Material) -> Section:
    """Every method on all training data, gold and teacher labels apart."""
    scores = material.scores
    blocks: list[Block] = [Paragraph(f"{_LEGEND} {_selection(scores)}")]
    full = [c for c in scores.students if c.setting.fraction == 1.0]
    by_labels = group(full, lambda cell: cell.setting.recipe.labels)
    for labels, cells in sorted(by_labels.items()):
        blocks.append(
            _methods_table(material, f"Accuracy, {words.labels(labels)}, all data", cells)
        )
    if not full:
        blocks.append(Paragraph("No student was trained on all data (FRACTION = 1.0)."))
        blocks.append(_methods_table(material, "Accuracy of the teacher", ()))
    rules = [
        f"{words.dataset(dataset)}: {_rule(found)}"
        for dataset in scores.datasets
        if (found := _floors(material, dataset))
    ]
    if rules:
        blocks.append(
            Paragraph(
                "The floor is the best of three rules that read next to nothing, fitted on the "
                "scored split itself: the commonest label, one label where a certain word occurs "
                "and another where not, the same place among listed choices. "
                + "; ".join(rules)
                + "."
            )
        )
    return Section("methods", "Every method, all training data", tuple(blocks))


def _methods_table(material: Material, caption: str, cells: Sequence[Cell]) -> Table:
    scores = material.scores
    tasks = _unique(cell.setting.task for cell in cells or scores.cells.values())
    tasks.sort(key=paper_order)
    rows = []
    for student, recipe in _unique((c.setting.student, c.setting.recipe) for c in cells):
        found = [scores.cells.get(Setting(task, student, recipe, 1.0)) for task in tasks]
        name = words.recipe(recipe)
        if recipe.method == "standard" and recipe.labels == "teacher":
            name = name.replace("standard", "standard distillation", 1)
        elif recipe.method == "standard":
            name = name.replace("standard", "standard finetuning", 1)
        rows.append((Entry(name), Entry(words.student(student)), *map(words.entry, found)))
    teachers = [scores.teacher(task.dataset) for task in tasks]
    rows.append((Entry("few-shot teacher"), Entry("teacher"), *map(words.entry, teachers)))
    if any(task.dataset in paper.TEACHER for task in tasks):
        rows.append((Entry(f"PaLM 540B, {paper.TEACHER_SOURCE}"), Entry("teacher"), *(
            Entry(f"{paper.TEACHER[task.dataset]:.2f}", PAPER)
            if task.dataset in paper.TEACHER else _NOT_IN_PAPER
            for task in tasks
        )))  # fmt: skip
    rows.append((Entry("floor"), Entry("reads next to nothing"), *(
        _floor_entry(_floors(material, task.dataset)) for task in tasks
    )))  # fmt: skip
    header = ("method", "model", *map(words.task, tasks))
    return Table(caption, header, tuple(rows))


def _selection(scores: Scores) -> str:
    parts = []
    for split, names in sorted(group(scores.datasets, lambda d: scores.splits[d]).items()):
        shown = ", ".join(map(words.dataset, names))
        if split == "test":
            parts.append(f"Scored on test, each run's step selected on validation: {shown}.")
        else:
            parts.append(
                f"Scored on {split}, the very split that each run's step was selected on, so that "
                f"the numbers flatter: {shown}."
            )
    return " ".join(parts)


def _floors(material: Material, dataset: str) -> list[Floor]:
    """Of the data set's distinct test sets, as the runs' predictions have them."""
    cells = [c for c in material.scores.cells.values() if c.setting.task.dataset == dataset]
    found = (floor for cell in cells for floor in material.floors(cell) if floor is not None)
    return [*{id(floor): floor for floor in found}.values()]


def _floor_entry(floors: Sequence[Floor]) -> Entry:
    if not floors:
        return Entry("no predictions", MISSING)
    mean = sum(floor.accuracy for floor in floors) / len(floors)
    text = words.percent(mean)
    return Entry(text if len(floors) == 1 else f"{text} ({len(floors)} test sets)", NUMBER)


def _rule(floors: Sequence[Floor]) -> str:
    rules = _unique(floor.rule for floor in floors)
    return rules[0] if len(rules) == 1 else f"{rules[0]}, and {len(rules) - 1} other rules"


def best_on_test(material: Material) -> Section | None:
    """The paper's protocol, where runs have what it needs; else no section."""
    cells = material.scores.best_on_test
    if not cells:
        return None
    text = (
        "The paper's released code never uses validation: it scores the test split every 250 "
        "steps. Here each run's number is the best of all its steps that were scored on test. Such "
        "numbers flatter and are shown here alone, for runs of which several steps were scored on "
        "test; nothing else in this report uses them."
    )
    rows = tuple(
        (
            Entry(words.task(setting.task)),
            Entry(words.recipe(setting.recipe, with_labels=True)),
            Entry(words.student(setting.student)),
            Entry(words.share(setting.fraction), NUMBER),
            Entry(words.accuracy(cell), NUMBER),
            words.entry(material.scores.cells.get(setting)),
        )
        for setting, cell in cells.items()
    )
    header = ("data set", "method", "model", "data", "best on test", "selected on validation")
    table = Table("The paper's protocol: best on test", header, rows)
    return Section("best-on-test", "The paper's protocol: best on test", (Paragraph(text), table))


def _unique(items: Iterable[_Item]) -> list[_Item]:
    return [*dict.fromkeys(items)]
