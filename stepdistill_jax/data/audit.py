"""What a data set is made of: the numbers of ``python -m launch.prepare``, and their table.

Everything here is a pure function of rows in memory; `survey` reads files and calls it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from stepdistill_jax.records import Annotation, ParseFailure

QUANTILES = (50, 95, 99, 100)
# More different labels than this, or hardly a label twice, is free text.
MOST_LABELS = 100
_LABEL_WIDTH = 24


@dataclasses.dataclass(frozen=True)
class TeacherAudit:
    """How good a teacher's outputs are on one split.

    Attributes:
        outputs: rows of the split that the teacher wrote for.
        release_accuracy: share in [0, 1] of outputs whose label is the gold one, by the release's
            own parsing; None where there is no gold label or no released output.
        accuracy: the same by our parsing, repairs included; a failure counts as wrong.
        repaired: outputs whose label was not in the agreed format and certain all the same.
        failures: reason -> outputs without a usable label.
    """

    outputs: int
    release_accuracy: float | None
    accuracy: float | None
    repaired: int
    failures: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of one feature over a split, prefix and EOS included.

    Attributes:
        quantiles: at `QUANTILES` percent, nearest rank: so many rows are no longer.
        limit: tokens at which the feature is cut.
        truncated: rows longer than that.
    """

    quantiles: tuple[int, ...]
    limit: int
    truncated: int


@dataclasses.dataclass(frozen=True)
class CommonLabel:
    """The commonest gold label: who always says it is right as often as `share` says.

    Attributes:
        label: the text; of equally common ones the first.
        share: in (0, 1], of the rows with a gold label.
    """

    label: str
    share: float


@dataclasses.dataclass(frozen=True)
class SplitAudit:
    """One column of the table.

    Attributes:
        dataset, split: names.
        missing: files under DATA_DIR that the release has and that are not there; where there are
            no rows at all, all other numbers are 0.
        rows: examples.
        decisions: what joining did with rows -> how many, where a run's configuration was read.
        triage: lines of `triage.yields`, where a run's configuration names filters.
        differs: files that are there and are not the release's, by sha256.
        commonest: the commonest gold label; None where there are none, or they are free text.
        duplicates: rows whose input occurs earlier in the split, white space and case aside.
        overlaps: other split -> rows whose input also occurs there, likewise.
        rationales: rows with a rationale that holds more than white space.
        states_gold: of those, rows whose rationale contains the gold label.
        states_own: of those, rows whose rationale contains the label that its writer gave; None
            where only gold labels are known.
        teacher: None where nothing was written by a teacher.
        lengths: feature -> tokens; empty where no vocabulary was given.
    """

    dataset: str
    split: str
    missing: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    rows: int = 0
    decisions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    triage: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commonest: CommonLabel | None = None
    duplicates: int = 0
    overlaps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rationales: int = 0
    states_gold: int = 0
    states_own: int | None = None
    teacher: TeacherAudit | None = None
    lengths: Mapping[str, Lengths] = dataclasses.field(default_factory=dict)


def normalise(text: str) -> str:
    """Case-folded, with every run of white space as one blank and none at the ends."""
    return " ".join(text.casefold().split())


def commonest(labels: Iterable[str | None]) -> CommonLabel | None:
    """The commonest label: of a, b, None and a it is a, with 2/3.

    None for no labels and for free text: more than `MOST_LABELS`, or fewer than two rows a label.
    """
    counts = collections.Counter(label for label in labels if label is not None)
    if not counts or len(counts) > min(MOST_LABELS, max(1, counts.total() // 2)):
        return None
    label, count = counts.most_common(1)[0]
    return CommonLabel(label, count / counts.total())


def duplicates(inputs: Sequence[str]) -> int:
    """Rows whose input occurs earlier: ``["A b", "c", "a  B", "A b"]`` gives 2."""
    return len(inputs) - len({normalise(text) for text in inputs})


def overlap(inputs: Iterable[str], others: Iterable[str]) -> int:
    """Rows of `inputs` that also occur among `others`, repeats counted."""
    known = {normalise(text) for text in others}
    return sum(normalise(text) in known for text in inputs)


def states(rationale: str, label: str, metric: str) -> bool:
    """Whether `rationale` contains `label` as whole words, whatever the case.

    Where `metric` is ``equation``, ``( 84.0 / 2.0 )`` is found in ``so 84/2 = 42``: numbers count
    by value, and blanks and the outer parentheses do not count.
    """
    pattern = _equation(label) if metric == "equation" else _words(label)
    return pattern is not None and pattern.search(rationale) is not None


@functools.lru_cache(maxsize=1 << 14)
def _words(label: str) -> re.Pattern[str] | None:
    words = r"\s+".join(re.escape(word) for word in label.split())
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE) if words else None


@functools.lru_cache(maxsize=1 << 14)
def _equation(label: str) -> re.Pattern[str] | None:
    tokens = _unwrapped(re.findall(r"\d+(?:\.\d+)?|[^\s\d]", label))
    # 84.0 of the labels is 84 in the rationales.
    parts = [
        re.escape(re.sub(r"\.0+$", "", token)) + (r"(?:\.0+)?" if token[0].isdigit() else "")
        for token in tokens
    ]
    expression = r"\s*".join(parts)
    return re.compile(rf"(?<![\d.]){expression}(?!\.?\d)") if parts else None


def _unwrapped(tokens: list[str]) -> list[str]:
    """Without the parentheses that enclose all the rest."""
    while len(tokens) > 2 and (tokens[0], tokens[-1]) == ("(", ")"):
        depths = itertools.accumulate((t == "(") - (t == ")") for t in tokens[:-1])
        if min(depths) < 1:
            break
        tokens = tokens[1:-1]
    return tokens


def audit_teacher(
    golds: Sequence[str | None],
    answers: Sequence[Annotation | ParseFailure],
    released_labels: Sequence[str] | None,
    correct: Callable[[str, str], bool],
) -> TeacherAudit:
    """Accuracy by both parsings, repairs and failures.

    Args:
        golds: gold label a row.
        answers: what our parser made of the row's output, in the same order.
        released_labels: what the release's own rules make of it; None where there are none.
        correct: ``(prediction, gold) -> bool``, the data set's metric.
    """
    ours = [answer.label if isinstance(answer, Annotation) else "" for answer in answers]
    failures = collections.Counter(a.reason for a in answers if isinstance(a, ParseFailure))
    return TeacherAudit(
        outputs=len(answers),
        release_accuracy=None
        if released_labels is None
        else _accuracy(released_labels, golds, correct),
        accuracy=_accuracy(ours, golds, correct),
        repaired=sum(isinstance(a, Annotation) and a.repaired for a in answers),
        failures=dict(failures.most_common()),
    )


def _accuracy(
    labels: Sequence[str], golds: Sequence[str | None], correct: Callable[[str, str], bool]
) -> float | None:
    pairs = [(label, gold) for label, gold in zip(labels, golds, strict=True) if gold is not None]
    return sum(correct(*pair) for pair in pairs) / len(pairs) if pairs else None


def audit_lengths(lengths: Sequence[int], limit: int) -> Lengths:
    """Quantiles of token counts, and how many exceed `limit`."""
    counts = np.asarray(lengths, np.int64)
    shares = np.asarray(QUANTILES) / 100
    quantiles = np.quantile(counts, shares, method="inverted_cdf") if len(counts) else ()
    return Lengths(tuple(int(q) for q in quantiles), limit, int((counts > limit).sum()))


def table(audits: Iterable[SplitAudit]) -> str:
    """One aligned block a data set: a column a split, a line a number."""
    blocks: dict[str, list[SplitAudit]] = {}
    for audit in audits:
        blocks.setdefault(audit.dataset, []).append(audit)
    return "\n\n".join(_block(dataset, splits) for dataset, splits in blocks.items())


def _block(dataset: str, splits: Sequence[SplitAudit]) -> str:
    columns = [_lines(audit) for audit in splits]
    # The order of the fullest column, with the lines that only others have after their kin.
    names = sorted(dict.fromkeys(name for column in columns for name in column), key=_place)
    grid = [[dataset, *(audit.split for audit in splits)]]
    grid += [[name[1], *(column.get(name, "-") for column in columns)] for name in names]
    widths = [max(map(len, cells)) for cells in zip(*grid, strict=True)]
    lines = []
    for first, *rest in grid:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.insert(1, "-" * len(lines[0]))
    notes = [
        f"  missing from {audit.split}: {_few(audit.missing)}" for audit in splits if audit.missing
    ]
    notes += [
        f"  not as released in {audit.split}: {_few(audit.differs)}"
        for audit in splits
        if audit.differs
    ]
    return "\n".join(lines + notes)


_Line = tuple[int, str]


def _place(line: _Line) -> int:
    return line[0]


def _lines(audit: SplitAudit) -> dict[_Line, str]:
    """(place in the block, name) -> cell."""
    if not audit.rows:
        return {(0, "rows"): "missing" if audit.missing else "0"}
    cells: dict[_Line, str] = {(0, "rows"): f"{audit.rows:,}"}
    cells |= {(1, f"  {what}"): f"{n:,}" for what, n in audit.decisions.items()}
    cells |= {(1, f"  {what}"): text for what, text in audit.triage.items()}
    if common := audit.commonest:
        cells[2, "commonest label"] = f"{common.share:.1%} {_short(common.label)!r}"
    if teacher := audit.teacher:
        cells[2, "teacher outputs"] = f"{teacher.outputs:,}"
        failures = f"{sum(teacher.failures.values()):,}"
        if teacher.release_accuracy is None:
            cells[4, "teacher accuracy"] = _percent(teacher.accuracy)
            cells[6, "without a label of its own"] = failures
        else:
            cells[3, "teacher accuracy, release's rules"] = _percent(teacher.release_accuracy)
            cells[4, "teacher accuracy, after repair"] = _percent(teacher.accuracy)
            cells[5, "labels repaired"] = f"{teacher.repaired:,}"
            cells[6, "parse failures"] = failures
        cells |= {(7, f"  {reason}"): f"{n:,}" for reason, n in teacher.failures.items()}
    cells[8, "duplicate inputs"] = f"{audit.duplicates:,}"
    cells |= {(9, f"inputs also in {split}"): f"{n:,}" for split, n in audit.overlaps.items()}
    if audit.rationales:
        cells[10, "rationales"] = f"{audit.rationales:,}"
        cells[11, "  that state the gold label"] = f"{audit.states_gold:,}"
        if audit.states_own is not None:
            cells[12, "  that state their own label"] = f"{audit.states_own:,}"
    quantiles = "/".join(map(str, QUANTILES))
    for feature, lengths in audit.lengths.items():
        name = f"{feature} tokens at {quantiles}%"
        cells[13, name] = " / ".join(map(str, lengths.quantiles)) or "-"
        cells[14, f"{feature} rows over {lengths.limit:,} tokens"] = f"{lengths.truncated:,}"
    return cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"


def _short(text: str) -> str:
    return text if len(text) <= _LABEL_WIDTH else text[: _LABEL_WIDTH - 3] + "..."


def _few(paths: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(paths) - shown} more" if len(paths) > shown else ""
    return ", ".join(paths[:shown]) + more
