"""What a data set is made of: the numbers of ``python -m launch.prepare``, and their table.

Everything here is a pure function of examples in memory; `survey` reads files and calls it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from stepdistill_jax import text
from stepdistill_jax.data.metrics import correct
from stepdistill_jax.data.subsets import content_key
from stepdistill_jax.records import Annotation, ParseFailure

QUANTILES = (50, 95, 99, 100)
# With more different labels, or fewer than two examples a label, labels count as free text.
MAX_LABELS = 100
_LABEL_WIDTH = 24


@dataclasses.dataclass(frozen=True)
class TeacherAudit:
    """How good a teacher's outputs are on one split.

    Attributes:
        outputs: examples of the split that the teacher annotated.
        release_accuracy: share in [0, 1] of outputs whose label is the gold one, parsed as the
            release does; None without gold labels or released outputs.
        accuracy: the same with our parsing, repairs included; a failure counts as wrong.
        repaired: outputs whose label was certain although not in the agreed format.
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
        quantiles: at `QUANTILES` percent, nearest rank: this share of the examples is no longer.
        limit: tokens at which the feature is cut.
        truncated: examples longer than that.
    """

    quantiles: tuple[int, ...]
    limit: int
    truncated: int


@dataclasses.dataclass(frozen=True)
class CommonLabel:
    """The most frequent gold label and its share, in (0, 1], of the examples with a gold label."""

    label: str
    share: float


@dataclasses.dataclass(frozen=True)
class SplitAudit:
    """One column of the table.

    Attributes:
        missing: files of the release that DATA_DIR lacks; without any examples, all other numbers
            are 0.
        differs: files whose sha256 is not the release's.
        rows: examples.
        decisions: what joining did -> to how many examples; for a run's configuration only.
        triage: lines of `triage.yields`, where a run's configuration names filters.
        commonest: None where there are no gold labels, or they are free text.
        duplicates: examples whose input occurs earlier in the split, by `content_key`.
        overlaps: other split -> examples whose input also occurs there, by `content_key`.
        rationales: examples with a rationale that is not blank.
        states_gold: of those, examples whose rationale contains the gold label.
        states_own: of those, examples whose rationale contains its writer's label; None where only
            gold labels are known.
        teacher: None where no teacher annotated the split.
        lengths: feature -> tokens; empty without a vocabulary.
        lost: what texts lose as tokens -> how much; see `lost_text`.
        warnings: about that.
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
    lost: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def commonest(labels: Iterable[str | None]) -> CommonLabel | None:
    """The most frequent label: of a, b, None and a it is a, with 2/3.

    None for no labels and for free text: more than `MAX_LABELS`, or fewer than two uses a label.
    """
    counts = collections.Counter(label for label in labels if label is not None)
    if not counts or len(counts) > min(MAX_LABELS, max(1, counts.total() // 2)):
        return None
    label, count = counts.most_common(1)[0]
    return CommonLabel(label, count / counts.total())


def duplicates(inputs: Sequence[str]) -> int:
    """Inputs that occur earlier: ``["A b", "c", "a  B", "A b"]`` gives 2."""
    return len(inputs) - len(set(map(content_key, inputs)))


def overlap(inputs: Iterable[str], others: Iterable[str]) -> int:
    """How many of `inputs` also occur among `others`, repeats counted."""
    keys = set(map(content_key, others))
    return sum(key in keys for key in map(content_key, inputs))


def states(rationale: str, label: str, metric: str) -> bool:
    """Whether `rationale` contains `label` as whole words, in any case.

    With the metric ``equation``, ``so 84/2 = 42`` contains ``( 84.0 / 2.0 )``: numbers are compared
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
    # Rationales write a label's 84.0 as 84.
    parts = [
        re.escape(re.sub(r"\.0+$", "", token)) + (r"(?:\.0+)?" if token[0].isdigit() else "")
        for token in tokens
    ]
    expression = r"\s*".join(parts)
    return re.compile(rf"(?<![\d.]){expression}(?!\.?\d)") if parts else None


def _unwrapped(tokens: list[str]) -> list[str]:
    """Without the parentheses that enclose everything else."""
    while len(tokens) > 2 and (tokens[0], tokens[-1]) == ("(", ")"):
        depths = itertools.accumulate((t == "(") - (t == ")") for t in tokens[:-1])
        if min(depths) < 1:
            break
        tokens = tokens[1:-1]
    return tokens


def audit_teacher(
    golds: Sequence[str | None],
    annotations: Sequence[Annotation | ParseFailure],
    released_labels: Sequence[str] | None,
    metric: str,
) -> TeacherAudit:
    """Accuracy by both parsings, repairs and failures.

    Args:
        golds: an example's gold label.
        annotations: what our parser reads from the example's output.
        released_labels: what the release's code reads from it; None where it does not apply.
    """
    ours = [a.label if isinstance(a, Annotation) else "" for a in annotations]
    failures = collections.Counter(a.reason for a in annotations if isinstance(a, ParseFailure))
    released = None if released_labels is None else _accuracy(released_labels, golds, metric)
    return TeacherAudit(
        outputs=len(annotations),
        release_accuracy=released,
        accuracy=_accuracy(ours, golds, metric),
        repaired=sum(isinstance(a, Annotation) and a.repaired for a in annotations),
        failures=dict(failures.most_common()),
    )


def _accuracy(labels: Sequence[str], golds: Sequence[str | None], metric: str) -> float | None:
    pairs = [(label, gold) for label, gold in zip(labels, golds, strict=True) if gold is not None]
    return sum(correct(metric, *pair) for pair in pairs) / len(pairs) if pairs else None


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
    names = sorted(dict.fromkeys(itertools.chain(*columns)), key=operator.itemgetter(0))
    headings = [audit.split for audit in splits]
    grid = [[dataset, *headings]]
    grid += [[name[1], *(column.get(name, "-") for column in columns)] for name in names]
    lines = text.columns(grid, right=headings).splitlines()
    lines.insert(1, "-" * len(lines[0]))
    for audit in splits:
        if audit.missing:
            lines.append(f"  missing from {audit.split}: {_few(audit.missing)}")
    for audit in splits:
        if audit.differs:
            lines.append(f"  not as released in {audit.split}: {_few(audit.differs)}")
    return "\n".join(lines)


def _lines(audit: SplitAudit) -> dict[tuple[int, str], str]:
    """(place in the block, name) -> cell."""
    if not audit.rows:
        return {(0, "rows"): "missing" if audit.missing else "0"}
    cells = {(0, "rows"): f"{audit.rows:,}"}
    cells |= {(1, f"  {what}"): f"{n:,}" for what, n in audit.decisions.items()}
    cells |= {(1, f"  {what}"): n for what, n in audit.triage.items()}
    if common := audit.commonest:
        cells[2, "most frequent label"] = f"{common.share:.1%} {_short(common.label)!r}"
    if teacher := audit.teacher:
        cells[2, "teacher outputs"] = f"{teacher.outputs:,}"
        failures = f"{sum(teacher.failures.values()):,}"
        if teacher.release_accuracy is None:
            cells[4, "teacher accuracy"] = _percent(teacher.accuracy)
            cells[6, "without a label"] = failures
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
            cells[12, "  that state their writer's label"] = f"{audit.states_own:,}"
    quantiles = "/".join(map(str, QUANTILES))
    for feature, lengths in audit.lengths.items():
        name = f"{feature} tokens at {quantiles}%"
        cells[13, name] = " / ".join(map(str, lengths.quantiles)) or "-"
        cells[14, f"{feature} rows over {lengths.limit:,} tokens"] = f"{lengths.truncated:,}"
    cells |= {(15, what): f"{n:,}" for what, n in audit.lost.items()}
    return cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"


def _short(label: str) -> str:
    return label if len(label) <= _LABEL_WIDTH else label[: _LABEL_WIDTH - 3] + "..."


def _few(paths: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(paths) - shown} more" if len(paths) > shown else ""
    return ", ".join(paths[:shown]) + more
