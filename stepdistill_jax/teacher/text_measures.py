"""Overlap between texts, and repetition within one, counted in words.

Words are runs of letters (with an apostrophe inside) or numbers, in any case. A text without blanks
counts as few, long words.
"""

from __future__ import annotations

import collections
import difflib
import re

_NGRAM = 3
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+(?:['’][^\W\d_]+)*")
# English words that carry no topic.
_FUNCTION_WORDS = """
a about after all also am an and any are as at be because been before being but by can could did do
does for from had has have he her his how i if in into is it its may me more most must my no not of
on one only or other our out over she should so some such than that the their them then there these
they this those to too up was we were what when where which while who why will with would you your
"""
_FUNCTION = frozenset(_FUNCTION_WORDS.split())


def words(text: str) -> list[str]:
    """The words of a text; ``84.0`` is ``84``."""
    return [re.sub(r"\.0+$", "", word) for word in _WORD.findall(text.casefold())]


def unigram_f1(text: str, reference: str) -> float:
    """F1 of common words, repeats counted: ROUGE-1 without stemming, in [0, 1].

    ``a b b`` and ``b b b c`` have 2 words in common: ``2 * 2 / (3 + 4)``.
    """
    counts, expected = collections.Counter(words(text)), collections.Counter(words(reference))
    total = counts.total() + expected.total()
    return 2 * (counts & expected).total() / total if total else 0.0


def repetition(text: str) -> float:
    """Fraction of trigrams that occurred before: ``a b a b a b`` has aba, bab, aba, bab, so 0.5."""
    tokens = words(text)
    ngrams = [tuple(tokens[i : i + _NGRAM]) for i in range(len(tokens) - _NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def input_overlap(rationale: str, text: str) -> float:
    """Fraction of the rationale's content words that are in `text`; 0 without such words."""
    content = [word for word in words(rationale) if word not in _FUNCTION]
    text_words = set(words(text))
    return sum(word in text_words for word in content) / len(content) if content else 0.0


def longest_copy(rationale: str, text: str) -> int:
    """Number of words in the longest run that both texts have."""
    matcher = difflib.SequenceMatcher(None, words(text), words(rationale), autojunk=False)
    return matcher.find_longest_match().size
