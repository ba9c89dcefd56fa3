import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.evaluation.wer import WordErrors, score_text, word_errors


def edit_distance(reference, hypothesis):
    """Slow reference: the textbook table, row by row."""
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, start=1):
        previous, row = row, [i]
        for j, h in enumerate(hypothesis, start=1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (r != h)))
    return row[-1]


sentences = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=9).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(sentences, sentences)
def test_counts_equal_the_slow_edit_distance(reference, hypothesis):
    words = word_errors(reference, hypothesis)
    assert words.errors == edit_distance(reference.split(), hypothesis.split())
    assert words.words == len(reference.split())
    # Whatever the alignment, lengths must balance.
    assert words.words - words.deletions + words.insertions == len(hypothesis.split())


@given(sentences)
def test_a_text_against_itself_has_no_errors(text):
    assert word_errors(text, text).errors == 0
    assert word_errors(text, text).wer == 0.0


def test_known_counts():
    assert word_errors("one two three", "one too three four") == WordErrors(1, 0, 1, 3)
    assert word_errors("one two three", "") == WordErrors(0, 3, 0, 3)


@pytest.mark.parametrize(
    ("raw", "scored"),
    [
        ("Hello, World!", "hello world"),
        ("a well-known  fact\n", "a well known fact"),
        ("Don\u2019t 'quote' me", "don't quote me"),
        ("\uff21\uff22\uff23 \u2014 \u20ac5", "abc 5"),
        ("\u00c9t\u00e9 \u00fcber", "\u00e9t\u00e9 \u00fcber"),
        ("' \u2026 '", ""),
        ("\u0149 J\u030c", "n \u01f0"),
    ],
)
def test_score_text(raw, scored):
    assert score_text(raw) == scored


@given(st.text(max_size=40))
def test_score_text_is_idempotent(text):
    assert score_text(score_text(text)) == score_text(text)


def test_score_text_is_idempotent_for_every_character():
    for number in range(sys.maxunicode + 1):
        scored = score_text(chr(number))
        assert score_text(scored) == scored, hex(number)


@given(st.text(st.characters(max_codepoint=127)))
def test_score_text_ignores_the_case_of_ascii(text):
    assert score_text(text.upper()) == score_text(text.lower()) == score_text(text)


def test_both_sides_are_normalised_identically():
    assert word_errors("Well-known: DON'T!", "well known don\u2019t").errors == 0


def test_empty_reference_counts_every_word_as_an_insertion():
    assert word_errors("", "").wer == 0.0
    assert word_errors("...", "two words") == WordErrors(0, 0, 2, 0)
    assert word_errors("...", "two words").wer == 2.0
