"""What a text front-end makes of a text, and which of its characters it cannot read."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Scripts whose letters espeak-ng spells by name ("Chinese letter") in every voice but these languages'; measured with
# espeak-ng 1.52. It reads Latin, Greek, Hangul, Devanagari and the others in any voice.
_SPELLED = {
    "CJK": frozenset({"cmn", "zh", "yue", "hak"}),
    "HIRAGANA": frozenset({"ja"}),
    "KATAKANA": frozenset({"ja"}),
    "CYRILLIC": frozenset({"ru", "uk", "be", "bg", "mk", "sr", "kk", "ky", "tt", "ba", "cv"}),
    "ARABIC": frozenset({"ar", "fa", "ur", "sd", "ug"}),
    "THAI": frozenset({"th"}),
    "HEBREW": frozenset({"he"}),
    "ETHIOPIC": frozenset({"am"}),
}


@dataclass(frozen=True)
class Reading:
    """A text as ids, with what was lost on the way.

    Attributes:
        ids: of the tokenizer.
        num_letters: letters and digits of the text as it is spoken.
        num_unread_letters: how many of them the front-end cannot read.
        unread: all characters that it cannot read, in order, punctuation too.
    """

    ids: tuple[int, ...]
    num_letters: int
    num_unread_letters: int
    unread: str

    @property
    def says_something(self) -> bool:
        """Whether a letter or a digit of it can be read."""
        return self.num_letters > self.num_unread_letters

    @property
    def unread_fraction(self) -> float:
        """Share of the letters that cannot be read; 0 of a text without letters."""
        return self.num_unread_letters / self.num_letters if self.num_letters else 0.0


def count_letters(text: str) -> int:
    """Letters and digits of a text."""
    return sum(map(str.isalnum, text))


def spelled_letters(text: str, voice: str) -> Iterator[str]:
    """The letters of ``text`` that espeak-ng would spell by their names in ``voice``, one by one."""
    language = voice.split("+")[0].split("-")[0].lower()
    for char in text:
        if char.isalpha() and not char.isascii():
            script = unicodedata.name(char, "").split(" ")[0]
            if language not in _SPELLED.get(script, (language,)):
                yield char


def shown(unread: str, most: int = 8) -> str:
    """The different characters of ``unread`` for a message, in order, the first ``most`` of them."""
    different = list(dict.fromkeys(unread))
    return " ".join(different[:most]) + (f" and {len(different) - most} others" if len(different) > most else "")
