import pytest

from retort.text.numbers import cardinal, ordinal, spell_digits, whole, year

_VALUES = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def _value(words):
    """Read cardinal words back: the slow reference."""
    total = part = 0
    for word in words.split():
        if word in _SCALES:
            total, part = total + part * _SCALES[word], 0
        elif word == "hundred":
            part *= 100
        else:
            part += _VALUES[word]
    return total + part


def test_cardinals_read_back_as_the_number():
    numbers = [*range(2000), *range(9990, 1_100_000, 997), *(10**k + d for k in range(4, 12) for d in (-1, 0, 1, 20))]
    assert all(_value(cardinal(number)) == number for number in numbers)


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "first"), (2, "second"), (3, "third"), (5, "fifth"), (8, "eighth"), (9, "ninth"), (12, "twelfth"),
     (20, "twentieth"), (21, "twenty first"), (100, "one hundredth"), (1_000_000, "one millionth")],
)  # fmt: skip
def test_ordinals(number, words):
    assert ordinal(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(1984, "nineteen eighty four"), (1905, "nineteen oh five"), (1900, "nineteen hundred"), (2000, "two thousand"),
     (2005, "two thousand five"), (2024, "twenty twenty four")],
)  # fmt: skip
def test_years(number, words):
    assert year(number) == words


def test_codes_are_read_digit_by_digit():
    assert spell_digits("907") == "nine zero seven"
    assert whole("007") == "zero zero seven"
    assert whole("0") == "zero"
    assert whole("1" * 13) == " ".join(["one"] * 13)
    assert whole("9" * 12).startswith("nine hundred ninety nine billion")
