"""Word errors of a recognised transcript against its text.

Both sides go through the same :func:`score_text`, whichever recogniser heard: one writes "7" and "Mr. Smith", another
"seven" and "mister smith", and no rate may depend on that. Digits may stand for several ways to say them ("735" is
what Whisper writes for "seven three five" too), so those of a transcript are read in the way that fits the text best;
the text itself is read in one way, as the text front-end reads it, so that all systems answer to the same words.

Rates are given twice, as Seed-TTS-eval (mean over utterances) and as Kaldi (errors over words of the whole corpus)
define them: published tables use either, and they differ whenever utterances differ in length.

Empty reference: it has no words to get wrong, so every hypothesis word is an insertion, and the rate is errors divided
by ``max(words, 1)``: 0 for an empty hypothesis, the number of invented words otherwise.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from retort.text.normalise import words as spoken_words
from retort.text.numbers import cardinal, spell_digits

NORMALISER_ID = "retort-spoken-2"
"""Written beside every score: rates of different normalisers must not be compared."""

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})
_WRITTEN = re.compile(r"[0-9$£€%&@+=°#]|\b(?:mr|mrs|dr)\b|\b[a-z]{2,6}\.")
"""Where something may be written otherwise than it is said."""
_FILLERS = frozenset({"um", "umm", "uh", "uhm", "erm", "hm", "hmm", "mm", "mmm", "mhm"})
_DIGITS = re.compile(r"[0-9]+")
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])[\s,.:;-]+(?=[0-9])")


@dataclass(frozen=True)
class WordErrors:
    """Edit counts of one utterance; ``words`` is the number of reference words (characters, for characters)."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Errors per reference word, a fraction that may exceed 1; see the module for an empty reference."""
        return self.errors / max(self.words, 1)

    @property
    def capped(self) -> int:
        """Errors, at most one for each reference word (one where there is none).

        Recognisers such as Whisper may fall into a loop, and a loop's hundred insertions say nothing of the speech.
        """
        return min(self.errors, max(self.words, 1))


def score_text(text: str) -> str:
    """Normalise text for scoring.

    NFKC, lower case; numbers, money, times, signs and titles written out in English as the text front-end does; no
    punctuation or symbols but ``'`` inside a word; no fillers (um, hmm); single spaces. Punctuation becomes a space, so
    that ``well-known`` and ``well known`` are the same two words.
    """
    # Lower case may be another composition, and either may bring an apostrophe to light: U+0149 is an n after one.
    lower = unicodedata.normalize("NFKC", text).lower()
    folded = unicodedata.normalize("NFKC", lower).translate(_APOSTROPHES)
    if _WRITTEN.search(folded):
        folded = spoken_words(folded)
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] not in "PSCZ" else " " for c in folded)
    return " ".join(word for raw in kept.split() if (word := raw.strip("'")) and word not in _FILLERS)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Minimum-edit word errors of ``hypothesis`` against ``reference``, both normalised by :func:`score_text`.

    Of the ways to read the hypothesis' digits the one with the fewest errors counts.
    """
    expected = score_text(reference)
    return min((_errors(expected, heard) for heard in _readings(hypothesis)), key=lambda found: found.errors)


def character_errors(reference: str, hypothesis: str) -> WordErrors:
    """Minimum-edit character errors of ``hypothesis``, spaces among them; see :func:`word_errors` for its digits."""
    expected = score_text(reference)
    if not expected:
        return WordErrors(0, 0, len(score_text(hypothesis)), 0)
    import jiwer

    readings = [jiwer.process_characters(expected, heard) for heard in _readings(hypothesis)]
    counts = [WordErrors(found.substitutions, found.deletions, found.insertions, len(expected)) for found in readings]
    return min(counts, key=lambda found: found.errors)


def is_loop(reference: str, hypothesis: str, *, copies: int = 4) -> bool:
    """Whether ``hypothesis`` runs in circles: it says the same again and again, longer than the whole text.

    Args:
        reference: what should be said.
        hypothesis: what was heard.
        copies: of the same words back to back, at least.
    """
    words = next(iter(_readings(hypothesis))).split()
    least = max(len(score_text(reference).split()), len(words) // 2)
    for period in range(1, len(words) // copies + 1):
        run = period
        for position in range(period, len(words)):
            run = run + 1 if words[position] == words[position - period] else period
            if run >= copies * period and run > least:
                return True
    return False


def _readings(hypothesis: str) -> list[str]:
    """The ways to say a transcript, without repetition: as it is read by itself, and by other readings of digits."""
    found = [score_text(hypothesis)]
    if _DIGITS.search(hypothesis):
        apart = _BETWEEN_DIGITS.sub(" ", hypothesis)
        found += [score_text(_said(apart, say)) for say in (spell_digits, _with_oh, _in_pairs)]
    return list(dict.fromkeys(found))


def _said(text: str, say: Callable[[str], str]) -> str:
    return _DIGITS.sub(lambda match: f" {say(match[0])} ", text)


def _with_oh(digits: str) -> str:
    return spell_digits(digits).replace("zero", "oh")


def _in_pairs(digits: str) -> str:
    """1984 as nineteen eighty four, 1905 as nineteen oh five."""
    first = len(digits) % 2
    pairs = [digits[:first], *(digits[i : i + 2] for i in range(first, len(digits), 2))]
    return " ".join(_with_oh(pair) if pair[0] == "0" else cardinal(int(pair)) for pair in pairs if pair)


def _errors(reference: str, hypothesis: str) -> WordErrors:
    """Of two normalised texts."""
    if not reference:
        return WordErrors(0, 0, len(hypothesis.split()), 0)
    import jiwer

    found = jiwer.process_words(reference, hypothesis)
    return WordErrors(found.substitutions, found.deletions, found.insertions, len(reference.split()))
