"""English words for numbers: cardinals, ordinals, years, decimals. Words are parted by spaces, not by hyphens."""

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"))
_IRREGULAR_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip

MAX_DIGITS = 12  # up to 999 billion; what is longer is a code and is read digit by digit


def cardinal(number: int) -> str:
    """Return the words of 0 <= ``number`` < 10**12, as ``two hundred five``."""
    assert 0 <= number < 10**MAX_DIGITS
    words: list[str] = []
    for size, name in _SCALES:
        if number >= size:
            words += [_below_thousand(number // size), name]
            number %= size
    if number or not words:
        words.append(_below_thousand(number))
    return " ".join(words)


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [_ONES[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        words.append(_TENS[rest // 10])
        rest %= 10
    if rest or not (words or hundreds):
        words.append(_ONES[rest])
    return " ".join(words)


def ordinal(number: int) -> str:
    """Return the ordinal of 0 <= ``number`` < 10**12, as ``twenty first``."""
    head, space, last = cardinal(number).rpartition(" ")
    if last in _IRREGULAR_ORDINALS:
        last = _IRREGULAR_ORDINALS[last]
    elif last.endswith("y"):
        last = f"{last[:-1]}ieth"
    else:
        last += "th"
    return head + space + last


def year(number: int) -> str:
    """Return 1100 <= ``number`` <= 2099 as people say a year: ``nineteen oh five``, ``two thousand one``."""
    century, rest = divmod(number, 100)
    if 2000 <= number < 2010:
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def spell_digits(digits: str) -> str:
    """Return ASCII digits one by one, as ``zero zero seven``."""
    return " ".join(_ONES[int(digit)] for digit in digits)


def whole(digits: str) -> str:
    """Return ASCII digits as a cardinal, or one by one where they are a code: a leading zero, or too many."""
    if len(digits) > MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return spell_digits(digits)
    return cardinal(int(digits))
