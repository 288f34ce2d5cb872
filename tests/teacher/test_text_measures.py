import pytest

from stepdistill_jax.teacher import text_measures


def test_words_numbers_and_apostrophes():
    assert text_measures.words("It's 84.0 / 2.50, an_Eel’s (re-do)!") == [
        "it's", "84", "2.50", "an", "eel’s", "re", "do",
    ]  # fmt: skip


def test_unigram_f1_by_hand():
    assert text_measures.unigram_f1("a b b", "b b b c") == pytest.approx(4 / 7)
    assert text_measures.unigram_f1("", "b") == text_measures.unigram_f1("", "") == 0


def test_repetition_by_hand():
    # aba, bab, aba, bab: two of four were there before.
    assert text_measures.repetition("a b a b a b") == 0.5
    assert text_measures.repetition("a b") == 0
    assert text_measures.repetition("one two three four five") == 0


def test_overlap_and_copies_by_hand():
    text = "Where would a hungry cook find flour?"
    # cook and flour of cook, keeps, flour, pantry; "the", "in" and "a" do not count.
    assert text_measures.input_overlap("The cook keeps flour in a pantry", text) == 0.5
    assert text_measures.input_overlap("is it of the", text) == 0
    assert text_measures.longest_copy("I say: a hungry COOK may find flour", text) == 3
    assert text_measures.longest_copy("", text) == 0
