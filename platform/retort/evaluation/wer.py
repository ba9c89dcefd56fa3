"""Word and character errors of a recognised transcript against its text.

Both sides go through the same :func:`score_text`. Rates are given twice, as Seed-TTS-eval (mean over utterances) and as
Kaldi (errors over words of the whole corpus) define them: published tables use either, and they differ whenever
utterances differ in length.

Empty reference: it has no words to get wrong, so every hypothesis word is an insertion, and the rate is errors divided
by ``max(words, 1)``: 0 for an empty hypothesis, the number of invented words otherwise.
"""

import unicodedata
from dataclasses import dataclass

NORMALISER_ID = "retort-lower-nopunct-1"
"""Written beside every score: rates of different normalisers must not be compared."""

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})


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


def score_text(text: str) -> str:
    """Normalise text for scoring: NFKC, lower case, no punctuation or symbols but ``'`` inside a word, single spaces.

    Punctuation becomes a space, so that ``well-known`` and ``well known`` are the same two words. Numbers are not
    spelled out: give the scorer the text that was spoken.
    """
    # Lower case may be another composition, and either may bring an apostrophe to light: U+0149 is an n after one.
    lower = unicodedata.normalize("NFKC", text).lower()
    folded = unicodedata.normalize("NFKC", lower).translate(_APOSTROPHES)
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] not in "PSCZ" else " " for c in folded)
    return " ".join(word for word in (raw.strip("'") for raw in kept.split()) if word)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Minimum-edit word errors of ``hypothesis`` against ``reference``, both normalised by :func:`score_text`."""
    reference, hypothesis = score_text(reference), score_text(hypothesis)
    if not reference:
        return WordErrors(0, 0, len(hypothesis.split()), 0)
    import jiwer

    found = jiwer.process_words(reference, hypothesis)
    return WordErrors(found.substitutions, found.deletions, found.insertions, len(reference.split()))
