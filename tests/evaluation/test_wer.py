import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.evaluation.wer import WordErrors, character_errors, is_loop, score_text, word_errors


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
        ("\uff21\uff22\uff23 \u2014 \u20ac5", "abc five euros"),
        (
            "Mr. Smith, um, paid $2.50 in 1984 - 50%!",
            "mister smith paid two dollars and fifty cents in nineteen eighty four fifty percent",
        ),
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


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("seven three five", ["735", "7-3-5.", "7, 3, 5", "7 3 5", "73, 5", "Seven three five."]),
        ("seven zero five", ["705", "7-0-5"]),
        ("seven oh five", ["705", "7 0 5"]),
        ("seven hundred thirty five", ["735", "seven hundred thirty-five"]),
        ("nineteen eighty four", ["1984", "19 84"]),
        ("one nine eight four", ["1984", "19-84"]),
        ("he paid five dollars to mister smith", ["He paid $5 to Mr. Smith.", "he, uh, paid five dollars to Mr Smith"]),
        ("the second of may", ["the 2nd of May"]),
        ("half past ten thirty", ["Half past 10:30"]),
    ],
)
def test_no_way_to_write_what_was_said_is_an_error(said, heard):
    for transcript in heard:
        assert word_errors(said, transcript) == WordErrors(0, 0, 0, len(said.split())), transcript


def test_a_wrong_digit_is_one_error_however_it_is_written():
    for heard in ("seven four five", "745", "7-4-5", "7 4 5"):
        assert word_errors("seven three five", heard) == WordErrors(1, 0, 0, 3), heard


@pytest.mark.parametrize("text", ["735", "In 1984 he had 7-3-5 and $5.", "the 2nd, 10:30"])
def test_the_words_of_a_text_do_not_depend_on_what_was_heard(text):
    counts = {word_errors(text, heard).words for heard in ("", "735", "seven three five", "nonsense 19 84", text)}
    assert counts == {len(score_text(text).split())}


def test_errors_are_capped_at_the_words_and_the_uncapped_are_kept():
    looped = word_errors("one two three", "one two three " * 20)
    assert (looped.errors, looped.capped, looped.wer) == (57, 3, 19.0)
    assert word_errors("", "one two").capped == 1
    assert word_errors("one two three", "one too").capped == 2


@pytest.mark.parametrize(
    ("text", "heard", "loops"),
    [
        ("one two three", "one two three " * 20, True),
        ("one two three", "735 " * 30, True),
        ("seven seven seven seven seven", "seven seven seven seven seven", False),
        ("one two three", "one two three", False),
        ("one two three", "three three three three", True),
        ("one two three four five six", "one two three three three three four five six", False),
        ("one two three", "", False),
        ("a long text that says many things and never the same", "a long text that " + "goes on " * 9, True),
    ],
)
def test_a_loop_is_what_repeats_for_longer_than_the_text(text, heard, loops):
    assert is_loop(text, heard) is loops


def test_character_errors_count_letters_and_spaces_and_read_digits_as_words_do():
    found = character_errors("Seven three five.", "735")
    assert found == WordErrors(0, 0, 0, len("seven three five"))
    assert character_errors("one two", "one too").errors == 1
    assert character_errors("one two", "").wer == 1.0
    assert character_errors("", "ab").insertions == 2
