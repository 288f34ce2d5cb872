"""The trivial baseline of a test set: the best accuracy of a rule that almost ignores the input."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

# Choices as CQA's inputs list them.
_CHOICE = re.compile(r"^\((\w)\) (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class TrivialBaseline:
    """The best trivial rule on a test set.

    Attributes:
        accuracy: in [0, 1]; the rule is fitted on the test set itself, so this is an upper bound.
        rule: in words.
    """

    accuracy: float
    rule: str


def trivial_baseline(inputs: Sequence[str], targets: Sequence[str]) -> TrivialBaseline:
    """The best of three kinds of rules, fitted on the examples that they are scored on.

    Always the most frequent label; one label if the input has a certain word and another if not;
    and, if inputs list choices as ``(a) text``, always the same position.

    Args:
        inputs: texts, at least one.
        targets: gold labels, one an input.
    """
    labels = Counter(targets)
    label, frequency = _most_frequent(labels)
    best = TrivialBaseline(frequency / len(targets), f"always {label!r}")
    labels_with: dict[str, Counter[str]] = collections.defaultdict(Counter)
    for text, target in zip(inputs, targets, strict=True):
        for word in set(text.split()):
            labels_with[word][target] += 1
    for word, inside in sorted(labels_with.items()):
        label, with_word = _most_frequent(inside)
        other, without = _most_frequent(labels, inside)
        accuracy = (with_word + without) / len(targets)
        # One example more than the most frequent label is chance on these very examples.
        if with_word + without > frequency + 1 and accuracy > best.accuracy:
            rule = f"{label!r} if the input has {word!r}, else {other!r}"
            best = TrivialBaseline(accuracy, rule)
    positions = _target_positions(inputs, targets)
    if positions is not None:
        position, right = _most_frequent(positions)
        if right / len(targets) > best.accuracy:
            best = TrivialBaseline(right / len(targets), f"always choice ({position})")
    return best


def _most_frequent(counts: Counter[str], less: Counter[str] | None = None) -> tuple[str, int]:
    """The most frequent label after subtracting `less`; of equals the first in the alphabet."""
    best, highest = "", 0
    for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count <= highest:
            break
        left = count - (less[label] if less else 0)
        if left > highest:
            best, highest = label, left
    return best, highest


def _target_positions(inputs: Sequence[str], targets: Sequence[str]) -> Counter[str] | None:
    """Letter -> how often it is the target's; None if an input does not list its target."""
    positions: Counter[str] = Counter()
    for text, target in zip(inputs, targets, strict=True):
        letters = {choice.strip(): letter for letter, choice in _CHOICE.findall(text)}
        if target.strip() not in letters:
            return None
        positions[letters[target.strip()]] += 1
    return positions
