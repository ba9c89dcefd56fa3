"""Texts as the phones that an aligner heard in recordings: the text front-end of models that speak phones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from retort.errors import DataError
from retort.nn.phone_numbers import phone_numbers
from retort.text import espeak
from retort.text.normalise import normaliser
from retort.text.reading import Reading, count_letters, spelled_letters

_ENDS = re.compile(r"(?<=[.!?])\s+")
_STRESSES = ("\u02c8", "\u02cc")
"""Primary and secondary."""


@dataclass(frozen=True)
class PhoneReader:
    """Reads sentences as ``retort align`` does, with a pause at both ends and between clauses.

    Attributes:
        voice: of espeak-ng.
        language: of the texts, whose numbers and the like are written out first.
        inventory: phones that the model knows, with stress; a phone that it knows only with another stress, or with
            none, is read as that one.
    """

    voice: str
    language: str
    inventory: tuple[str, ...]

    def phones(self, text: str) -> tuple[str, ...]:
        """The phones that are known, and pauses as empty strings; none where there is nothing to say."""
        return self._known(self._clauses(self.written(text)))[0]

    def written(self, text: str) -> str:
        """What is read of a text: numbers and the like in words."""
        return normaliser(self.language)(text)

    def read(self, text: str) -> Reading:
        """The numbers of the phones, with what cannot be read of the text, even if that is all of it."""
        written = self.written(text)
        phones, unknown = self._known(self._clauses(written))
        spelled = "".join(spelled_letters(written, self.voice))
        letters = count_letters(written) if phones else 0
        return Reading(tuple(phone_numbers(phones, self.inventory)), letters, len(spelled), spelled + "".join(unknown))

    def spoken(self, text: str) -> Reading:
        """What :meth:`read` gives of a text that can be said, if only a part of it.

        Raises:
            DataError: there is nothing to speak in it, or nothing that can be read.
        """
        reading = self.read(text)
        if not reading.num_letters:
            raise DataError(f"there is nothing to speak in {text[:80]!r}; give it a letter or a digit")
        if not reading.says_something:
            raise DataError(
                f"none of the letters of {text[:80]!r} can be read in this voice ({self.voice}); write it in that "
                "language, or take a model that was trained on the language of the text"
            )
        return reading

    def _clauses(self, written: str) -> list[tuple[str, ...]]:
        # Capitals are gone, by which espeak-ng tells the end of a sentence; of punctuation alone it says the names.
        sentences = [text for text in _ENDS.split(written) if count_letters(text)]
        return [clause for found in espeak.clauses_of_all(sentences, voice=self.voice) for clause in found]

    def _known(self, clauses: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[str]]:
        """Phones and pauses that the model knows, and the phones that it does not."""
        phones: list[str] = []
        unknown: list[str] = []
        known = frozenset(self.inventory)
        for clause in clauses:
            found = [next((form for form in _forms(phone) if form in known), None) for phone in clause]
            unknown += [phone for phone, form in zip(clause, found, strict=True) if form is None]
            said = [form for form in found if form is not None]
            phones += ["", *said] if said else []
        return (*phones, "") if phones else (), unknown


def _forms(phone: str) -> tuple[str, ...]:
    """A phone, then the same with less or other stress."""
    bare = phone.lstrip("".join(_STRESSES))
    return (phone, bare, *(stress + bare for stress in _STRESSES))
