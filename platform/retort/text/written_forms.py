# ruff: noqa: RUF001  (signs that look alike are what this file is about)
"""English written forms to what they stand for: ``$3.5M``, ``10 kg``, ``No. 5``, ``123 Main St.``, ``C#``.

What comes out is English text still, whose numbers and titles :mod:`retort.text.normalise` says. Every rule wants a
digit, a capital or a sign, of which the words at the end hold none: so a second pass finds nothing. No pattern can
backtrack over more than a few characters.
"""

import re
from collections.abc import Callable

from retort.text.numbers import ordinal

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_START = r"(?<![\w.,])"

SIGNS = {
    "¥": "yen", "₹": "rupees", "₩": "won", "₽": "rubles", "₿": "bitcoins", "¢": "cents", "№": "number",
    "±": "plus or minus", "×": "times", "÷": "divided by", "≈": "about", "≠": "is not equal to", "≤": "at most",
    "≥": "at least", "→": "to",
    "√": "square root of", "∞": "infinity", "§": "section", "¶": "paragraph", "©": "copyright", "®": "registered",
    "™": "trademark", "‰": "per mille", "Ω": "ohms",
}  # fmt: skip
"""Names of signs that are said where no rule takes them."""

_MARKS = str.maketrans({
    "。": ". ", "｡": ". ", "۔": ".", "।": ".", "॥": ".", "،": ",", "、": ", ", "؛": ";", "؟": "?", "¿": " ", "¡": " ",
    "「": '"', "」": '"', "『": '"', "』": '"', "〈": '"', "〉": '"', "《": '"', "》": '"', "‹": "'", "›": "'",
    "•": " ", "‣": " ", "◦": " ", "·": " ", "†": " ", "‡": " ", "′": "'", "″": '"', "µ": "μ",
})  # fmt: skip

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_MONTH_OF = {name[:3]: name for name in _MONTHS} | {"Sept": "September"}
_SHORT_MONTHS = "|".join(sorted((name for name in _MONTH_OF if name != "May"), key=len, reverse=True))
_STREETS = {
    "St": "Street", "Dr": "Drive", "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Ln": "Lane", "Hwy": "Highway",
    "Pkwy": "Parkway", "Ct": "Court", "Sq": "Square",
}  # fmt: skip
_STREET = "|".join(_STREETS)
_REFERENCES = {
    "no": "number", "nos": "numbers", "p": "page", "pp": "pages", "vol": "volume", "vols": "volumes", "ch": "chapter",
    "fig": "figure", "figs": "figures", "eq": "equation", "sec": "section", "art": "article", "apt": "apartment",
}  # fmt: skip
_NAMES = {"Mt": "Mount", "Ft": "Fort", "Inc": "Incorporated", "Corp": "Corporation", "Bros": "Brothers", "Ms": "Ms"}
_SCALES = {
    "k": "thousand", "m": "million", "mm": "million", "mn": "million", "b": "billion", "bn": "billion", "t": "trillion",
    "tn": "trillion",
}  # fmt: skip
_FOREIGN_MONEY = {"¥": ("yen", "yen"), "₹": ("rupee", "rupees"), "₩": ("won", "won"), "₽": ("ruble", "rubles")}
_UNITS = {
    "kg": "kilogram", "g": "gram", "mg": "milligram", "μg": "microgram", "t": "ton", "km": "kilometer", "m": "meter",
    "cm": "centimeter", "mm": "millimeter", "μm": "micrometer", "nm": "nanometer", "l": "liter", "L": "liter",
    "ml": "milliliter", "mL": "milliliter", "cl": "centiliter", "dl": "deciliter", "lb": "pound", "lbs": "pound",
    "oz": "ounce", "ft": "foot", "yd": "yard", "mi": "mile", "s": "second", "sec": "second", "secs": "second",
    "ms": "millisecond", "μs": "microsecond", "ns": "nanosecond", "min": "minute", "mins": "minute", "h": "hour",
    "hr": "hour", "hrs": "hour", "yr": "year", "yrs": "year", "W": "watt", "kW": "kilowatt", "MW": "megawatt",
    "GW": "gigawatt", "kWh": "kilowatt hour", "Wh": "watt hour", "mAh": "milliampere hour", "V": "volt",
    "mV": "millivolt", "mA": "milliampere", "cal": "calorie", "kcal": "kilocalorie", "kB": "kilobyte", "KB":
    "kilobyte", "MB": "megabyte",
    "GB": "gigabyte", "TB": "terabyte", "PB": "petabyte", "KiB": "kibibyte", "MiB": "mebibyte", "GiB": "gibibyte",
    "Kb": "kilobit", "Mb": "megabit", "Gb": "gigabit", "dB": "decibel", "px": "pixel", "m²": "square meter",
    "m2": "square meter", "km²": "square kilometer", "km2": "square kilometer", "cm²": "square centimeter",
    "ft²": "square foot", "m³": "cubic meter", "m3": "cubic meter", "cm³": "cubic centimeter", "ha": "hectare",
    "Ω": "ohm", "kΩ": "kiloohm",
}  # fmt: skip
_FIXED_UNITS = {
    "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "mph": "miles per hour",
    "kph": "kilometers per hour", "km/h": "kilometers per hour", "kmh": "kilometers per hour",
    "m/s": "meters per second", "kbps": "kilobits per second", "Kbps": "kilobits per second",
    "Mbps": "megabits per second", "Gbps": "gigabits per second", "MB/s": "megabytes per second",
    "GB/s": "gigabytes per second", "rpm": "revolutions per minute", "fps": "frames per second",
    "bpm": "beats per minute", "dpi": "dots per inch",
    "°C": "degrees celsius", "° C": "degrees celsius", "°F": "degrees fahrenheit", "° F": "degrees fahrenheit",
    "°": "degrees", "sq ft": "square feet", "sq. ft.": "square feet", "fl oz": "fluid ounces",
}  # fmt: skip
_PER = (
    "hour|hr|h|day|week|wk|month|mo|year|yr|minute|min|second|sec|s|kg|lb|oz|gal|night|person|user|seat|unit|head|page"
)
_PER_NAMES = {
    "hr": "hour", "h": "hour", "wk": "week", "mo": "month", "yr": "year", "min": "minute", "sec": "second",
    "s": "second", "kg": "kilogram", "lb": "pound", "oz": "ounce", "gal": "gallon",
}  # fmt: skip
_DENOMINATORS = {"2": ("half", "halves"), "4": ("quarter", "quarters")}
_DOMAINS = "com|org|net|io|gov|edu|dev|ai|app|info|co|uk|de|fr|eu"
_DOMAIN = re.compile(
    rf"(?<![^\W_]|[.@-])(?:[A-Za-z0-9-]{{1,63}}\.){{1,3}}(?i:{_DOMAINS})(?:/[\w./-]{{0,200}})?(?![\w@.-]\w)(?!\w)"
)
_VERSUS = re.compile(r"(?<![^\W\d_])(?i:vs)(?![^\W\d_])\.?")


def spoken_marks(text: str) -> str:
    """Return ``text`` with the marks of other scripts as English ones, and with ranges said as such."""
    return re.sub(r"(?<=\d)\s?[–‒]\s?(?=[$£€¥]?\d)", " to ", text.translate(_MARKS))


def expand(text: str) -> str:
    """Return ``text`` (one line, plain quotes and dashes) with its written forms expanded."""
    for pattern, said in _RULES:
        text = pattern.sub(said, text)
    return text


def expand_words(text: str) -> str:
    """Return lower-case words as they are said where a sign or a number that is gone has set one free."""
    said = _DOMAIN.sub(_address, _VERSUS.sub(" versus ", text))
    return text if said == text else " ".join(said.split())


def _address(match: re.Match[str]) -> str:
    whole = re.sub(r"^(?i:https?)://", "", match[0])
    bare = whole.rstrip(".,;:!?'\")/")
    after = whole[len(bare) :].lstrip("/")
    said = re.sub(r"\b[wW]{3}\.", "w w w.", bare)
    for sign, name in ((".", "dot"), ("/", "slash"), ("-", "dash"), ("_", "underscore"), ("@", "at"), (":", "colon")):
        said = said.replace(sign, f" {name} ")
    return f" {said}{after} "


def _date(match: re.Match[str]) -> str:
    year, month, day = match[1], int(match[2]), int(match[3])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return f"{_MONTHS[month - 1]} {ordinal(day)}, {year}"


def _range(match: re.Match[str]) -> str:
    first, last = int(match[1]), int(match[2])
    are_years = 1000 <= first < last < 2200
    is_range = first < last and (len(match[2]) <= 3 or are_years)
    return f"{match[1]} to {match[2]}" if is_range else match[0]


def _street(match: re.Match[str]) -> str:
    # The point of an abbreviation may end the sentence, too.
    after = match.string[match.end() :].lstrip(" ")
    end = "." if match[3] and (not after or after[:1].isupper()) else ""
    return f"{match[1]}{_STREETS[match[2]]}{end}"


def _initials(match: re.Match[str]) -> str:
    after = match.string[match.end() :].strip(" \"')")
    return " ".join(match[0].replace(".", "")) + ("" if after else ".")


def _foreign_money(match: re.Match[str]) -> str:
    one, many = _FOREIGN_MONEY[match[1]]
    return f"{match[2]}{match[3] or ''} {one if match[2] == '1' and not match[3] else many}"


def _scale(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]} {_SCALES[match[3].lower()]}"


def _bare_scale(match: re.Match[str]) -> str:
    # Names, not numbers: resolutions, and an American pension.
    if match[2] == "K" and match[1] in ("2", "4", "5", "8", "401"):
        return match[0]
    return f"{match[1]} {_SCALES[match[2].lower()]}"


def _unit(match: re.Match[str]) -> str:
    number, unit = match[1], match[3]
    if unit in ("s", "t", "h", "V", "W", "l", "L") and not match[2] and unit != "V" and unit != "W":
        return match[0]  # "1990s", "10t": plurals and names
    if unit in _FIXED_UNITS:
        return f"{number} {_FIXED_UNITS[unit]}"
    return f"{number} {_many(_UNITS[unit], is_one=number == '1')}"


def _many(noun: str, *, is_one: bool) -> str:
    if is_one:
        return noun
    return noun.replace("foot", "feet") if noun.endswith("foot") else f"{noun}s"


def _fraction(match: re.Match[str]) -> str:
    above, below = match[2], match[3]
    if int(above) >= int(below):
        return match[0]
    one, many = _DENOMINATORS.get(below, (ordinal(int(below)), f"{ordinal(int(below))}s"))
    return f"{match[1] or ''}{' and ' if match[1] else ''}{above} {one if above == '1' else many}"


def _longest_first(names: object) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))  # type: ignore[call-overload]


_Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]
_RULES: tuple[_Rule, ...] = tuple(
    (re.compile(pattern), said)
    for pattern, said in (
        # Addresses come first, since they hold everything else.
        (r"\b(?i:https?://|www\.)\S+", _address),
        (r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}\b", _address),
        (_DOMAIN, _address),
        (r"(?<![\d-])(\d{4})-(\d{2})-(\d{2})(?![\d-])", _date),
        (r"(?<![\w'\"])(\d{1,2})'\s?(\d{1,2})(?:\"|'')", r"\1 feet \2 inches"),
        (r"(?<=\d)\s?([AaPp])\.\s?[Mm]\.?(?!\w)", r" \1 m"),
        (r"(?<=\d)\s?([AaPp])[Mm](?!\w)", r" \1 m"),
        # Abbreviations.
        (
            r"\b(?i:(nos?|pp?|vols?|ch|figs?|eq|sec|art|apt))\.\s?(?=\d)",
            lambda match: f"{_REFERENCES[match[1].lower()]} ",
        ),
        (rf"\b({_SHORT_MONTHS})\.?(?=\s\d)|(?<=\d\s)({_SHORT_MONTHS})\b\.?", lambda m: _MONTH_OF[m[1] or m[2]]),
        (rf"\b(\d+(?:st|nd|rd|th)\s)({_STREET})\b(\.?)", _street),
        (rf"\b(\d+(?:\s[NSEW]\.?)?(?:\s[A-Z][\w']{{0,30}}){{1,3}}\s)(?!Dr)({_STREET})\b(\.?)", _street),
        (r"\b(\d+(?:\s[NSEW]\.?)?(?:\s[A-Z][\w']{0,30}){1,3}\s)(Dr)(\.)(?!\s[A-Z])", _street),
        (r"\b([A-Z]\w{1,30}\s)(St|Ave|Blvd|Rd|Ln|Hwy|Pkwy)(\.)(?!\s[A-Z])", _street),
        (r"\b(Mt|Ft)\.\s(?=[A-Z])", lambda match: f"{_NAMES[match[1]]} "),
        (r"\b(Inc|Corp|Bros)\.", lambda match: _NAMES[match[1]]),
        (r"\bPh\.\s?D\b\.?", "P h D"),
        (r"\b(?:[A-Z]\.){2,}", _initials),
        (r"\bw/o\b", "without"),
        (r"\bw/(?=\s|\w)", "with "),
        (_VERSUS, " versus "),
        # Names with signs.
        (r"(?<![A-Za-z\d])([A-GJ])#(?![\w#])", r"\1 sharp"),
        (r"(?<![\w#&])#(?=[A-Za-z])", " hashtag "),
        (r"(?<![\w.])\.(?=[A-Z]{2,})", " dot "),
        # Money.
        (r"(?<![\w)])-\s?([$£€¥₹])(?=\d)", r"minus \1"),
        (r"([$£€¥₹])-(?=\d)", r"minus \1"),
        (rf"([$£€¥₹₩₽])\s?({_NUMBER})\s?(?i:(k|mm|mn|m|bn|b|tn|t))(?![\w])", _scale),
        (rf"([¥₹₩₽])\s?({_NUMBER})( (?:thousand|million|billion|trillion))?", _foreign_money),
        (rf"{_START}({_NUMBER})\s?([£€])(?!\s?\d)", r"\2\1"),
        (rf"{_START}({_NUMBER})(K|M|B|bn)(?!\w)", _bare_scale),
        # Numbers with units; ranges before them.
        (r"(?<![\w.,/-])(\d{1,4})-(\d{1,4})(?![\w.,/-]*\d)(?![-/])", _range),
        (
            rf"{_START}({_NUMBER})(\s?)({_longest_first({**_UNITS, **_FIXED_UNITS})})(?![\w'²³])",
            _unit,
        ),
        (rf"(?<=[\w%])/({_PER})(?![\w/])", lambda match: f" per {_PER_NAMES.get(match[1], match[1])}"),
        # A little mathematics.
        (r"(?<![\w/.,])(?:(\d+)\s)?([1-9])/([2-9]|10)(?![\w/]|[.,]\d)", _fraction),
        (r"(?<=\d)\s?[x×]\s?(?=\d)", " by "),
        (r"(?<=\d)[x×](?!\w)", " times"),
        (r"~\s?(?=[$£€]?\d)", " about "),
        (r"(?<!\S)>=\s?(?=[$£€]?\d)", "at least "),
        (r"(?<!\S)<=\s?(?=[$£€]?\d)", "at most "),
        (r"(?<!\S)>\s?(?=[$£€]?\d)", "more than "),
        (r"(?<!\S)<\s?(?=[$£€]?\d)", "less than "),
        (f"[{''.join(SIGNS)}]", lambda match: f" {SIGNS[match[0]]} "),
    )
)
