# ruff: noqa: RUF001  (quotes and dashes that look alike are what this file is about)
"""English text to plain lower-case words: one pass over tokens, so that its work grows with the length of the text.

The text is cut into runs of digits, runs of letters and single other characters: each character belongs to one token,
and each rule looks a fixed number of tokens ahead. There is no pattern that could backtrack. The result holds no digit
and no symbol, so a second pass changes nothing.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator

from retort.text.markdown import plain_text
from retort.text.numbers import MAX_DIGITS, cardinal, ordinal, spell_digits, whole, year
from retort.text.written_forms import SIGNS, expand, expand_words, spoken_marks

# Part of the fingerprint of a text front-end: raise it whenever an output changes, and keep what the old one gave:
# models were trained on it. 1: words of numbers, money and times. 2: no Markdown, compatibility characters folded, and
# the written forms of :mod:`retort.text.written_forms`.
NORMALISER_VERSION = 2

_DASHES = re.compile(r"^(?:-+ ?)+")
_COMPATIBLE = (
    "<compat>",
    "<wide>",
    "<narrow>",
    "<font>",
    "<square>",
    "<small>",
    "<isolated>",
    "<initial>",
    "<medial>",
    "<final>",
)
_TOKENS = re.compile(r"[0-9]+|[^\W\d_]+|.", re.DOTALL)
# Canonical ordering sorts a run of combining marks in quadratic time, so its length is bounded first.
_MAX_COMBINING_RUN = 16

_PUNCTUATION = str.maketrans({
    "‘": "'", "’": "'", "‚": "'", "ʼ": "'", "`": "'", "´": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "―": "-", "−": "-", "…": "...", "⁄": "/",
    "[": "(", "]": ")", "{": "(", "}": ")",
})  # fmt: skip
_SYMBOLS = {
    "&": "and", "%": "percent", "@": "at", "+": "plus", "=": "equals", "°": "degrees", "$": "dollars", "£": "pounds",
    "€": "euros", "½": "one half", "¼": "one quarter", "¾": "three quarters", "#": "number",
}  # fmt: skip
_KEPT = frozenset({*SIGNS, *_SYMBOLS, *"<>~|"})
"""Signs that a rule or a name takes."""
_SILENT = frozenset("/\\_*|~^<>")
_CLOSING = frozenset(",.;:!?)")
# ASCII takes the short way: the same characters, without a look at each one's category.
_ASCII_CONTROLS = dict.fromkeys([*range(32), 127], " ")
_ASCII_SILENT = str.maketrans(dict.fromkeys(_SILENT, " "))
_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
_PLURALS = {"penny": "pence"}
_MAGNITUDES = ("thousand", "million", "billion", "trillion")
_ORDINAL_ENDINGS = ("st", "nd", "rd", "th")
_UNITS = {
    "kg": "kilograms", "km": "kilometers", "cm": "centimeters", "mm": "millimeters", "ml": "milliliters",
    "lb": "pounds", "lbs": "pounds", "ft": "feet", "mph": "miles per hour", "hz": "hertz", "khz": "kilohertz",
    "ms": "milliseconds", "am": "a m", "pm": "p m",
}  # fmt: skip
_TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor"}
_ABBREVIATIONS = {
    **_TITLES, "st": "saint", "prof": "professor", "jr": "junior", "sr": "senior", "capt": "captain",
    "lt": "lieutenant", "sgt": "sergeant", "col": "colonel", "gen": "general", "hon": "honorable", "rev": "reverend",
    "ltd": "limited", "vs": "versus", "etc": "et cetera", "dept": "department", "approx": "approximately",
}  # fmt: skip


# Line, page and next-line controls, and isolates, which stand around words of another direction.
_SPACES = dict.fromkeys([0x0B, 0x0C, 0x85, 0x2066, 0x2067, 0x2068, 0x2069], " ")


def spaced(text: str) -> str:
    """Return ``text`` with spaces for the controls that editors and chat windows write where a person sees a gap."""
    return text.translate(_SPACES)


def visible(text: str) -> str:
    """Return ``text`` in NFC with single spaces, without control, format and private characters and lone surrogates.

    Zero-width characters leave no space, the others do.
    """
    if text.isascii():
        return " ".join(text.translate(_ASCII_CONTROLS).split())
    composed = unicodedata.normalize("NFC", "".join(_without_floods(text)))
    # Taking a character out may bring two others together that compose.
    shown = unicodedata.normalize("NFC", "".join(_visible(char) for char in composed))
    return " ".join(shown.split())


def clean(text: str) -> str:
    """Return ``text`` as :func:`visible` does, in lower case, with plain quotes and dashes; for any language."""
    return visible(visible(text).translate(_PUNCTUATION).lower())


def _without_floods(text: str) -> Iterator[str]:
    run = 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) else 0
        if run <= _MAX_COMBINING_RUN:
            yield char


def _visible(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cf":
        return ""
    return " " if category[0] in "CZ" else char


def normalise(text: str) -> str:
    """Return English ``text`` as lower-case words: what is written as marks, signs and abbreviations is written out.

    Applying it twice is applying it once, and a text with a letter or a digit never becomes empty. Symbols that have
    no name here, emoji among them, are dropped; punctuation and the letters of other languages stay.
    """
    written = spoken_marks(_compatible(visible(plain_text(spaced(text)))))
    known = "".join(_named(char) for char in written.translate(_PUNCTUATION))
    said = expand_words(words(expand(_closed_up(visible(known).split(" ")))))
    # A dash at the start of a line is a mark of a list, so that a second pass would take it away.
    return _DASHES.sub("", _closed_up(said.split(" ")))


def unmarked(text: str) -> str:
    """Return ``text`` of any language as :func:`clean` does, without Markdown and compatibility characters."""
    return _DASHES.sub("", clean(_compatible(visible(plain_text(spaced(text))))))


def _compatible(text: str) -> str:
    """Ligatures, wide and squared characters as those that they stand for; no fractions, exponents and circles."""
    if text.isascii():
        return text
    return visible("".join(unicodedata.normalize("NFKC", char) if _is_compatible(char) else char for char in text))


def _is_compatible(char: str) -> bool:
    form = unicodedata.decomposition(char)
    return form.startswith(_COMPATIBLE) and char not in SIGNS and not form.startswith("<compat> 0020")


def _named(char: str) -> str:
    return " " if char not in _KEPT and unicodedata.category(char)[0] == "S" else char


def words(text: str) -> str:
    """Return English ``text`` as lower-case words: numbers, money, times and common abbreviations written out.

    This is the whole of version 1.
    """
    tokens = _TOKENS.findall(_tidy(_plain(clean(text))))
    pieces: list[str] = []
    position = 0
    while position < len(tokens):
        words, used = _speak(tokens, position)
        pieces.append(words)
        position += used
    return _tidy("".join(pieces))


def _tidy(text: str) -> str:
    """Return ``text`` with single spaces, and none before a mark that closes; the point of ``.5`` opens."""
    return _closed_up(clean(text).split(" "))


def _closed_up(words: list[str]) -> str:
    return "".join(word if word[:1] in _CLOSING and not word[1:2].isdigit() else f" {word}" for word in words).strip()


def _plain(text: str) -> str:
    """Return ``text`` with ASCII digits, and spaces for the symbols that have no name."""
    return text.translate(_ASCII_SILENT) if text.isascii() else "".join(_plain_characters(text))


def _plain_characters(text: str) -> Iterator[str]:
    for char in text:
        digit = unicodedata.digit(char, None)
        if digit is not None:
            yield str(digit)
        elif char in _SYMBOLS:
            yield char
        elif char in _SILENT or unicodedata.category(char)[0] == "S":
            yield " "
        elif unicodedata.category(char) == "No":
            # Circled numbers and fractions; a compatibility form may hold anything, so it is cleaned again.
            yield f" {clean(unicodedata.normalize('NFKC', char))} "
        else:
            yield char


def _at(tokens: list[str], position: int) -> str:
    return tokens[position] if 0 <= position < len(tokens) else ""


def _is_number(token: str) -> bool:
    return token.isascii() and token.isdigit()


def _speak(tokens: list[str], position: int) -> tuple[str, int]:
    """Return what the tokens from ``position`` on say, and how many of them that was (at least one)."""
    token = tokens[position]
    if _is_number(token):
        return _number(tokens, position)
    if token in _CURRENCIES and _is_number(_at(tokens, position + 1)):
        return _money(tokens, position)
    if token.isalpha():
        return _word(tokens, position)
    if token in "-." and _is_number(_at(tokens, position + 1)):
        return _sign(tokens, position)
    if token in _SYMBOLS:
        return f" {_SYMBOLS[token]} ", 1
    return token, 1


def _word(tokens: list[str], position: int) -> tuple[str, int]:
    token = tokens[position]
    dotted = "".join(tokens[position : position + 4])
    if dotted in ("e.g.", "i.e."):
        return (" for example " if dotted == "e.g." else " that is "), 4
    if _at(tokens, position + 1) == "." and token in _ABBREVIATIONS:
        return f" {_ABBREVIATIONS[token]} ", 2
    return _TITLES.get(token, token), 1


def _sign(tokens: list[str], position: int) -> tuple[str, int]:
    """A minus or a decimal point that opens a number; a hyphen or stop after a word parts it from the number."""
    before = _at(tokens, position - 1)
    opens = before in ("", " ", "(", "$", "£", "€")
    if tokens[position] == "-":
        return (" minus " if opens else " "), 1
    if opens:
        return f" point {spell_digits(tokens[position + 1])} ", 2
    return ". ", 1


def _digits(tokens: list[str], position: int) -> tuple[str, int]:
    """Read a whole number with its thousands; return its digits and how many tokens that was."""
    digits, used = tokens[position], 1
    grouped = len(digits) <= 3
    while grouped and _at(tokens, position + used) == "," and _is_thousands(_at(tokens, position + used + 1)):
        digits += tokens[position + used + 1]
        used += 2
        grouped = len(digits) <= MAX_DIGITS
    return digits, used


def _is_thousands(token: str) -> bool:
    return len(token) == 3 and _is_number(token)


def _decimals(tokens: list[str], position: int) -> list[str]:
    """Return the runs of digits after points: one for a decimal, several for a version."""
    runs: list[str] = []
    while _at(tokens, position) == "." and _is_number(_at(tokens, position + 1)):
        runs.append(tokens[position + 1])
        position += 2
    return runs


def _points(runs: list[str]) -> str:
    return "".join(f" point {spell_digits(run)}" for run in runs)


def _number(tokens: list[str], position: int) -> tuple[str, int]:
    digits, used = _digits(tokens, position)
    following = _at(tokens, position + used)
    decimals = _decimals(tokens, position + used)
    short = len(digits) <= MAX_DIGITS
    if decimals:
        words, used = whole(digits) + _points(decimals), used + 2 * len(decimals)
    elif short and following in _ORDINAL_ENDINGS:
        return f" {ordinal(int(digits))} ", used + 1
    elif following == ":" and _is_minutes(_at(tokens, position + used + 1)):
        words, used = _time(digits, tokens[position + used + 1]), used + 2
    else:
        words = year(int(digits)) if used == 1 and _is_year(digits) else whole(digits)
        if following == "s":
            return f" {_plural(words)} ", used + 1
    unit = _at(tokens, position + used)
    return (f" {words} {_UNITS[unit]} ", used + 1) if unit in _UNITS else (f" {words} ", used)


def _is_year(digits: str) -> bool:
    return len(digits) == 4 and (1100 <= int(digits) < 2000 or 2010 <= int(digits) < 2100)


def _is_minutes(token: str) -> bool:
    return len(token) == 2 and _is_number(token) and int(token) < 60


def _time(hours: str, minutes: str) -> str:
    if minutes == "00":
        return whole(hours) + " o'clock"
    return f"{whole(hours)} {'oh ' if minutes[0] == '0' else ''}{cardinal(int(minutes))}"


def _plural(words: str) -> str:
    if words.endswith("y"):
        return f"{words[:-1]}ies"
    return words + ("es" if words.endswith("x") else "s")


def _money(tokens: list[str], position: int) -> tuple[str, int]:
    unit, small = _CURRENCIES[tokens[position]]
    digits, used = _digits(tokens, position + 1)
    used += 1
    decimals = _decimals(tokens, position + used)
    used += 2 * len(decimals)
    magnitude = _at(tokens, position + used + 1) if _at(tokens, position + used) == " " else ""
    scaled = magnitude in _MAGNITUDES
    if scaled or [len(run) for run in decimals] not in ([], [2]):
        amount = f"{whole(digits)}{_points(decimals)} {magnitude if scaled else ''}"
        return f" {amount} {_count_noun(unit, 2)} ", used + (2 if scaled else 0)
    words = f" {whole(digits)} {_count_noun(unit, 1 if digits == '1' else 2)} "
    if decimals and decimals != ["00"]:
        words += f"and {cardinal(int(decimals[0]))} {_count_noun(small, int(decimals[0]))} "
    return words, used


def _count_noun(noun: str, count: int) -> str:
    return noun if count == 1 else _PLURALS.get(noun, f"{noun}s")


def is_english(language: str) -> bool:
    """Whether a language tag, such as ``en-GB`` or ``en_US``, names English."""
    return language.lower().replace("_", "-").split("-")[0] in ("en", "eng", "english")


def normaliser(language: str, version: int = NORMALISER_VERSION) -> Callable[[str], str]:
    """Return the normaliser of a language: :func:`normalise` for English, :func:`unmarked` for the others.

    Raises:
        ValueError: there is no such version.
    """
    match version:
        case 1:
            return words if language.split("-")[0] == "en" else clean
        case 2:
            return normalise if is_english(language) else unmarked
    raise ValueError(f"no version {version} of the normaliser; there are 1 to {NORMALISER_VERSION}")
