import pytest

from stepdistill_jax.teacher import wording


def test_words_numbers_and_apostrophes():
    assert wording.words("It's 84.0 / 2.50, an_Eel’s (re-do)!") == [
        "it's", "84", "2.50", "an", "eel’s", "re", "do",
    ]  # fmt: skip


def test_unigram_f1_by_hand():
    assert wording.unigram_f1("a b b", "b b b c") == pytest.approx(4 / 7)
    assert wording.unigram_f1("", "b") == wording.unigram_f1("", "") == 0


def test_repetition_by_hand():
    # aba, bab, aba, bab: two of four were there before.
    assert wording.repetition("a b a b a b") == 0.5
    assert wording.repetition("a b") == 0
    assert wording.repetition("one two three four five") == 0


def test_overlap_and_copies_by_hand():
    text = "Where would a hungry cook find flour?"
    # cook and flour of cook, keeps, flour, pantry; "the", "in" and "a" do not count.
    assert wording.input_overlap("The cook keeps flour in a pantry", text) == 0.5
    assert wording.input_overlap("is it of the", text) == 0
    assert wording.longest_copy("I say: a hungry COOK may find flour", text) == 3
    assert wording.longest_copy("", text) == 0
