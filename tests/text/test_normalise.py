# ruff: noqa: RUF001
import sys
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retort.text.normalise import clean, normalise, normaliser

# Digits, marks and abbreviations meet far more often here than in arbitrary Unicode.
_DENSE = st.lists(
    st.sampled_from([*"0123456789.,:;-$£€%&'()/ \n\té½²³٣️‍", "mr", "Dr.", "etc", "e", "g", "i", "st", "th", "s", "kg",
                     " million", "pm", "😀", "́"])
).map("".join)  # fmt: skip
_ANY = st.one_of(st.text(), _DENSE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Dr. Smith paid $1,234.50 on the 3rd!", "doctor smith paid one thousand two hundred thirty four dollars and "
                                                 "fifty cents on the third!"),
        ("In 1984, 2005 and the 1990s.", "in nineteen eighty four, two thousand five and the nineteen nineties."),
        ("-5, .5, 3.14; covid-19", "minus five, point five, three point one four; covid nineteen"),
        ("e.g. Mr Jones & Mrs. Brown, etc.", "for example mister jones and missus brown, et cetera"),
        ("$5.2 million, £1 and €1.01", "five point two million dollars, one pound and one euro and one cent"),
        ("£2.05 or 50%", "two pounds and five pence or fifty percent"),
        ("1,000,000 or 1,23", "one million or one, twenty three"),
        ("at 3:30pm, 10:05 or 10:00", "at three thirty p m, ten oh five or ten o'clock"),
        ("agent 007, v2.0.1", "agent zero zero seven, v two point zero point one"),
        ("½ cup, x³, ٣ and ⑫", "one half cup, x three, three and twelve"),
        ("“Quoted” — isn’t it…", '"quoted" - isn\'t it...'),
        ("  Many \t spaces\r\n\n here ", "many spaces here"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("5kg of b2b", "five kilograms of b two b"),
    ],
)  # fmt: skip
def test_golden(text, words):
    assert normalise(text) == words


@settings(max_examples=250)
@given(_ANY)
@example("etc 😀.")
@example("İ1")
@example("mr . e .g. 5")
@example("0.CO0")
@example("\u00b2VS")
@example("\u00ae.cO.")
@example("```0")
def test_twice_is_once(text):
    once = normalise(text)
    assert normalise(once) == once
    assert clean(clean(text)) == clean(text)


@settings(max_examples=250)
@given(_ANY)
def test_speakable_text_never_becomes_empty(text):
    # U+02BC counts as a letter, but is written for an apostrophe and becomes one.
    if any(char.isalpha() or char.isdigit() for char in text.replace("\u02bc", "")):
        assert any(char.isalpha() for char in normalise(text))


@settings(max_examples=250)
@given(_ANY)
def test_the_result_is_clean(text):
    result = normalise(text)
    assert result == " ".join(result.split())
    assert not any(char.isdigit() or unicodedata.category(char)[0] in "CS" for char in result)
    assert result.lower() == result
    result.encode("utf-8")


@settings(max_examples=250)
@given(_ANY)
def test_composed_and_decomposed_text_are_one(text):
    assert normalise(unicodedata.normalize("NFC", text)) == normalise(unicodedata.normalize("NFD", text))


def _steps(text):
    """Count the Python function calls that normalising takes."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        result = normalise(text)
    finally:
        sys.setprofile(previous)
    return calls, len(result)


@pytest.mark.parametrize(
    "unit",
    [
        "a.",
        "9",
        "@",
        "(",
        "$",
        "1,",
        "123,",
        "1.",
        "1:",
        "-",
        "e.g.",
        "$1 ",
        "´",
        "́",
        "٣",
        "\u200b",
        "mr.",
        " ",
        "½",
        "😀",
    ],
)
def test_work_and_output_grow_with_the_length_and_no_faster(unit):
    short_calls, short_length = _steps(unit * 500)
    long_calls, long_length = _steps(unit * 2000)
    assert long_calls <= 4 * short_calls + 100
    assert long_length <= 4 * short_length + 100
    assert long_length <= 30 * len(unit) * 2000


def test_other_languages_keep_their_numbers():
    assert normaliser("de")("Dr. Müller, 3 Äpfel") == "dr. müller, 3 äpfel"
    assert normaliser("en-GB")("3 apples") == "three apples"
