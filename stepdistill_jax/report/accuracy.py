"""Tables of accuracy on all training data: the paper's two, every method, and best on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepdistill_jax.report import formats, paper
from stepdistill_jax.report.comparisons import ReportData
from stepdistill_jax.report.document import (
    PAPER,
    Block,
    Entry,
    Paragraph,
    Row,
    Section,
    Table,
    missing,
    number,
)
from stepdistill_jax.report.trivial_baseline import TrivialBaseline
from stepdistill_jax.report.variants import (
    Recipe,
    Scores,
    StudentModel,
    Task,
    Variant,
    VariantKey,
    group,
    paper_order,
)
from stepdistill_jax.spec import TEACHER

_LEGEND = (
    "Accuracy in percent: mean ± standard error over seeds (number of seeds). A single seed has no "
    "standard error."
)


def paper_entry(printed: Mapping[str, str], dataset: str) -> Entry:
    """The paper's number for a data set, or that it has none."""
    if dataset not in printed:
        return missing("not in the paper")
    return Entry(printed[dataset], PAPER)


def paper_tables(data: ReportData) -> Section:
    """Tables 1 and 2 in the paper's layout, for every model, beside the paper's numbers."""
    scores, title = data.scores, "The paper's Tables 1 and 2"
    gold = [v for v in scores.students if v.key.recipe.labels == "gold"]
    if not {v.key.task.dataset for v in gold} & {*paper.DATASETS}:
        text = (
            f"Not run: none of the paper's data sets "
            f"({', '.join(map(formats.dataset, paper.DATASETS))}) was run with gold labels."
        )
        return Section("paper", title, [Paragraph(text)])
    blocks: list[Block] = [
        Paragraph(
            f"Gold labels, all training data. Columns “paper” show the paper's numbers: pretrained "
            f"{paper.MODEL}, mean over 4 seeds. The released code scores test every 250 steps and "
            "never uses validation. Columns “ours” show the model in the caption, at the step "
            f"selected on validation. {_LEGEND}"
        )
    ]
    for student, variants in group(gold, lambda v: v.key.student).items():
        others = _other_rationales(variants)
        blocks += [
            _paper_table(scores, student, "Table 1. Rationales of different teachers",
                         paper.TABLE_1, others),
            _paper_table(scores, student, "Table 2. Multi-task against single-task training",
                         paper.TABLE_2, ()),
        ]  # fmt: skip
    return Section("paper", title, blocks)


def _paper_table(
    scores: Scores,
    student: StudentModel,
    title: str,
    paper_rows: Sequence[paper.PaperRow],
    others: Sequence[Recipe],
) -> Table:
    lines: list[tuple[str, Recipe | None, Mapping[str, str]]] = [
        (row.name, _recipe(row), row.accuracy) for row in paper_rows
    ]
    lines += [(formats.method(recipe), recipe, {}) for recipe in others]
    tasks = {v.key.task for v in scores.students if v.key.student == student}
    not_run = {*paper.DATASETS} - {task.dataset for task in tasks}
    tasks |= {Task(dataset, "train") for dataset in not_run}
    rows = []
    for name, recipe, printed in lines:
        cells: dict[str | tuple[str, str], str | Entry] = {"method": name}
        for task in sorted(tasks, key=paper_order):
            variant = recipe and scores.variants.get(VariantKey(task, student, recipe, 1.0))
            cells[formats.task(task), "ours"] = formats.accuracy(variant or None)
            if task.dataset in paper.DATASETS:
                cells[formats.task(task), "paper"] = paper_entry(printed, task.dataset)
        rows.append(cells)
    return Table(f"{title}. Ours: {formats.student(student)}", rows)


def _recipe(row: paper.PaperRow) -> Recipe | None:
    if row.rationales is None:
        return None
    return Recipe(row.method, "gold", row.rationales, "", "")


def _other_rationales(variants: Sequence[Variant]) -> list[Recipe]:
    """Step-by-step recipes that are not in the paper's table."""
    recipes = dict.fromkeys(v.key.recipe for v in variants if v.key.fraction == 1.0)
    return [
        recipe
        for recipe in recipes
        if recipe.method == "step_by_step"
        and (recipe.rationales != TEACHER or recipe.triage or recipe.augment)
    ]


def methods(data: ReportData) -> Section:
    """Every method on all training data, a table for each source of labels."""
    scores = data.scores
    blocks: list[Block] = [Paragraph(f"{_LEGEND} {_selection(scores)}")]
    full = [v for v in scores.students if v.key.fraction == 1.0]
    for labels, variants in sorted(group(full, lambda v: v.key.recipe.labels).items()):
        caption = f"Accuracy, {formats.labels(labels)}, all data"
        blocks.append(_methods_table(data, caption, variants))
    if not full:
        blocks.append(Paragraph("No student was trained on all data (FRACTION = 1.0)."))
        blocks.append(_methods_table(data, "Accuracy of the teacher", ()))
    rules = [
        f"{formats.dataset(dataset)}: {_rules(baselines)}"
        for dataset in scores.datasets
        if (baselines := _trivial_baselines(data, dataset))
    ]
    if rules:
        blocks.append(
            Paragraph(
                "The trivial baseline is the best of three rules, fitted on the scored split "
                "itself: always the most frequent label; one label if a certain word occurs and "
                "another if not; always the same position among listed choices. "
                f"{'; '.join(rules)}."
            )
        )
    return Section("methods", "Every method, all training data", blocks)


def _methods_table(data: ReportData, caption: str, variants: Sequence[Variant]) -> Table:
    scores = data.scores
    tasks = [*dict.fromkeys(v.key.task for v in variants or scores.variants.values())]
    tasks.sort(key=paper_order)

    def row(name: str, model: str, entries: Mapping[Task, Entry]) -> Row:
        return {
            "method": name,
            "model": model,
            **{formats.task(task): entry for task, entry in entries.items()},
        }

    rows = []
    for student, recipe in dict.fromkeys((v.key.student, v.key.recipe) for v in variants):
        name = formats.method(recipe)
        if recipe.method == "standard":
            kind = "distillation" if recipe.labels == "teacher" else "finetuning"
            name = name.replace("standard", f"standard {kind}", 1)
        keys = {task: VariantKey(task, student, recipe, 1.0) for task in tasks}
        accuracies = {t: formats.accuracy(scores.variants.get(k)) for t, k in keys.items()}
        rows.append(row(name, formats.student(student), accuracies))
    teachers = {task: formats.accuracy(scores.teacher(task.dataset)) for task in tasks}
    rows.append(row("few-shot teacher", "teacher", teachers))
    if any(task.dataset in paper.TEACHER for task in tasks):
        entries = {task: paper_entry(paper.TEACHER, task.dataset) for task in tasks}
        rows.append(row(f"PaLM 540B, {paper.TEACHER_SOURCE}", "teacher", entries))
    trivial = {task: _trivial_entry(_trivial_baselines(data, task.dataset)) for task in tasks}
    rows.append(row("trivial baseline", "none", trivial))
    return Table(caption, rows)


def _selection(scores: Scores) -> str:
    parts = []
    for split, datasets in sorted(group(scores.datasets, lambda d: scores.splits[d]).items()):
        names = ", ".join(map(formats.dataset, datasets))
        if split == "test":
            parts.append(f"Scored on test, at the step selected on validation: {names}.")
        else:
            parts.append(
                f"Scored on {split}, the split that also selected the step, so the accuracies are "
                f"optimistic: {names}."
            )
    return " ".join(parts)


def _trivial_baselines(data: ReportData, dataset: str) -> list[TrivialBaseline]:
    """Those of the distinct test sets of a data set."""
    variants = [v for v in data.scores.variants.values() if v.key.task.dataset == dataset]
    baselines = (b for v in variants for b in data.trivial_baselines(v) if b is not None)
    return [*{id(baseline): baseline for baseline in baselines}.values()]


def _trivial_entry(baselines: Sequence[TrivialBaseline]) -> Entry:
    if not baselines:
        return missing("no predictions")
    mean = formats.percent(sum(b.accuracy for b in baselines) / len(baselines))
    return number(mean if len(baselines) == 1 else f"{mean} ({len(baselines)} test sets)")


def _rules(baselines: Sequence[TrivialBaseline]) -> str:
    first, *others = dict.fromkeys(baseline.rule for baseline in baselines)
    return f"{first}, and {len(others)} other rules" if others else first


def best_on_test(data: ReportData) -> Section | None:
    """The paper's protocol; None if no run has several steps scored on test."""
    variants = data.scores.best_on_test
    if not variants:
        return None
    text = (
        "The paper's released code never uses validation: it scores test every 250 steps. This "
        "table shows the best test accuracy over all steps of a run that were scored on test. Such "
        "accuracies are optimistic; nothing else in this report uses them."
    )
    rows: list[Row] = [
        {
            "data set": formats.task(key.task),
            "method": formats.method(key.recipe, with_labels=True),
            "model": formats.student(key.student),
            "data": number(key.fraction, formats.fraction),
            "best on test": number(variant, formats.accuracy_text),
            "selected on validation": formats.accuracy(data.scores.variants.get(key)),
        }
        for key, variant in variants.items()
    ]
    title = "The paper's protocol: best on test"
    return Section("best-on-test", title, [Paragraph(text), Table(title, rows)])
